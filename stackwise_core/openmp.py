"""Waiting of OpenMP's threads for one another, decided before torch loads the library that reads it."""

import os
import sys

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables with which a user says how threads wait: OpenMP's own, GNU's, and two of LLVM's and Intel's."""


def wait_passively() -> None:
    """Make threads sleep at barriers, unless the environment says how they wait or torch is loaded already.

    By default they spin. Where several processes share the cores, they then take the core that the thread they wait for
    needs, and a run becomes many times slower (docs/benchmarks/busy.md). torch's wheels bring GNU's library on Linux
    and LLVM's on macOS; each reads its variables once, when it is loaded.
    """
    if "torch" in sys.modules or any(name in os.environ for name in WAITING):
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["KMP_BLOCKTIME"] = "0"  # Intel's library spins for 200 ms under that policy, too
