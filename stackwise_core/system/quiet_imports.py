"""Imports of libraries that log warnings when they are imported."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_quietly() -> Iterator[None]:
    """Silence warnings in the log, and make ``import kernels`` fail.

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
