"""Imports of libraries that have something to say on their way in."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_quietly() -> Iterator[None]:
    """Have warnings in the log go unsaid, and ``import kernels`` fail.

    On some CPUs bitsandbytes asks the package ``kernels``, if that is installed, to download a kernel, and warns if
    there is none.
    """
    disabled, there = logging.root.manager.disable, "kernels" in sys.modules
    kernels = sys.modules.get("kernels")
    logging.disable(logging.WARNING)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.disable(disabled)
        if there:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]
        else:
            del sys.modules["kernels"]
