"""Imports of a piece of code, seen in a Python process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

HEAVY = ("numpy", "torch", "transformers")


def heavy_imports(code: str, heavy: Collection[str] = HEAVY) -> list[str]:
    """List those of some modules that a piece of code has imported when it ends.

    Raises:
        AssertionError: the code failed; with its traceback.
    """
    report = f"import sys; print(); print(*(name for name in {tuple(heavy)!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()
