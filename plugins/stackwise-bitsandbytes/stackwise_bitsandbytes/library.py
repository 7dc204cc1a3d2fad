"""bitsandbytes without the noise of its import; every other module here takes it from this one.

Where a CPU has AVX512-BF16, the import asks the package ``kernels``, if that is installed, to download a kernel, and
warns if there is none. The kernel is for repacked weights, of which there are none here (see ``layers.py``).
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Have ``import kernels`` fail, and the warning about it go unsaid."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, there = logger.level, "kernels" in sys.modules
    kernels = sys.modules.get("kernels")
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.setLevel(level)
        if there:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]
        else:
            del sys.modules["kernels"]


with _without_kernels():
    import bitsandbytes

__all__ = ["bitsandbytes"]
