"""Waiting of OpenMP's threads for one another, decided before torch loads the library that reads it."""

import os
import sys

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables with which a user says how threads wait: OpenMP's own, GNU's, and two of LLVM's and Intel's."""


SPINS = 5000
"""Turns that a thread spins before it sleeps: some microseconds. GNU's default is 300,000. With none a small run alone
is a good quarter slower, with these hardly (docs/benchmarks/busy.md)."""


def wait_passively() -> None:
    """Make threads sleep at barriers, unless the environment says how they wait or torch is loaded already.

    By default they spin for long. Where several processes share the cores, they then take the core that the thread they
    wait for needs, and a run becomes many times slower (docs/benchmarks/busy.md). torch's wheels bring GNU's library on
    Linux and LLVM's on macOS; each reads its variables once, when it is loaded.
    """
    if "torch" in sys.modules or any(name in os.environ for name in WAITING):
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    os.environ["KMP_BLOCKTIME"] = "0"  # milliseconds; by default 200
