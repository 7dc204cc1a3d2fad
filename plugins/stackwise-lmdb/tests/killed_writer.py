"""A writer that is killed at a random instant, some times over; `test_kill.py` looks at what it leaves behind.

Prints, for each directory given, how many entries were acknowledged: put before a flush that returned.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.testing.cache_backend import entries_of, keys_of
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb

LAYOUT = Layout(tokens=16, d_model=32, dtype="fp32")


def write_for_ever(directory: Path, acknowledge: int) -> None:
    """Put entries 0, 1, 2, ... in transactions of four, flush after every third, and report each flush on a pipe."""
    store, number = Lmdb(LmdbOptions(batch_entries=4)).open(directory, LAYOUT, None), 0
    while True:
        store.put(keys_of(number), entries_of(LAYOUT, number))
        number += 1
        if number % 3 == 0:
            store.flush()
            os.write(acknowledge, number.to_bytes(4, "little"))


def killed(directory: Path) -> int:
    """Entries acknowledged by a writer that lived for an instant after its first flush."""
    readable, writable = os.pipe()
    writer = os.fork()
    if writer == 0:
        try:
            write_for_ever(directory, writable)
        finally:
            os._exit(1)
    os.close(writable)
    acknowledged = os.read(readable, 4)
    time.sleep(random.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    while number := os.read(readable, 4):
        acknowledged = number
    return int.from_bytes(acknowledged, "little")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no thread pool
    for name in sys.argv[1:]:
        print(killed(Path(name)))
