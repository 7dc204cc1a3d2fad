"""Processes that kill themselves at a chosen change to the disk."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.chmod", "open"})


def kill_before_change(number: int) -> None:
    """Have this process kill itself with SIGKILL before its n-th change to the disk from now on."""
    left = number

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in CHANGES:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(kill)


STOPPED = 130
"""Exit code of a forked process that was interrupted."""


def forked(work: Callable[[Callable[[bytes], object]], object]) -> tuple[int, int]:
    """Call ``work`` in a fork; its process id, and a descriptor from which what ``work`` tells can be read."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        # Whatever happens here must not come back into the parent's code.
        try:
            work(lambda said: os.write(writable, said))
        except KeyboardInterrupt:
            os._exit(STOPPED)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writable)
    return child, readable


def killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a process that kills itself with SIGKILL before its n-th change to the disk; whether it did."""
    child = os.fork()
    if child == 0:
        kill_before_change(number)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
