"""Imports of libraries are quiet and offline."""

import logging
import sys
from types import ModuleType

import pytest

from stackwise_core.system.quiet_imports import importing_quietly


@pytest.mark.parametrize("there", [None, ModuleType("kernels")])
def test_kernels_can_not_be_imported_meanwhile(there, monkeypatch):
    """bitsandbytes would have it download one; it is as it was after that, also if the import failed."""
    if there is None:
        monkeypatch.delitem(sys.modules, "kernels", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "kernels", there)
    with pytest.raises(ImportError), importing_quietly():
        import kernels  # noqa: F401
    assert sys.modules.get("kernels") is there


def test_warnings_go_unsaid_meanwhile(caplog):
    """An error is still said, and what follows is said as before."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with importing_quietly():
        logger.warning("no kernel")
        logger.error("no library")
    logger.warning("later")
    assert caplog.messages == ["no library", "later"]
