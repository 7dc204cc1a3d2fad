"""Work in a child process, which ends by itself or is killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import pytest


def in_a_child(work: Callable[[], None]) -> int:
    """Start a process that does this work and ends; return its id.

    What it raises is printed, and its code is then 1.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def code_of(child: int) -> int:
    """Wait for a process's end; return its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(work: Callable[[Callable[[int], None]], None], seconds: float) -> int:
    """Start a process that works for ever, kill it with SIGKILL, and return the last number that it has told.

    Args:
        work: is given a function that tells a number, such as how many entries are durable by now.
        seconds: between the first number and the end.
    """
    readable, writable = os.pipe()

    def tell(number: int) -> None:
        os.write(writable, number.to_bytes(8, "little"))

    child = in_a_child(lambda: work(tell))
    os.close(writable)
    with open(readable, "rb") as pipe:
        told = pipe.read(8)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        told += pipe.read()
    assert code_of(child) == -signal.SIGKILL, "it ended by itself"
    return int.from_bytes(told[-8:], "little")
