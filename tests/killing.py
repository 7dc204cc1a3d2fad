"""Processes that kill themselves at a chosen change to the disk."""

import os
import signal
import sys
from collections.abc import Callable

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.chmod", "open"})


def killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a process that kills itself with SIGKILL before its n-th change to the disk; whether it did."""
    child = os.fork()
    if child == 0:
        left = [number]

        def kill(event: str, arguments: tuple[object, ...]) -> None:
            if event in CHANGES:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

        sys.addaudithook(kill)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
