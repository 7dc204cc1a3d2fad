"""The device that tests compute on, for the tests of the core and of the plugins: ``--device``.

With ``cpu``, the default, no CUDA device is found, here or in a process that a test starts. With ``cuda`` whatever takes
its device from ``run.device = "auto"`` or from the fixture ``device`` is on CUDA. ``stand-in`` is for machines without
one: the CPU computes, and tests/stand_in_cuda.py sees to it that a tensor of the device is nowhere taken for one of the
CPU. Processes that a test starts then compute on the CPU.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# Two workers on two cores: more threads would only wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CPU, CUDA, STAND_IN = "cpu", "cuda", "stand-in"
SKIPPED = {
    CPU: {"cuda": "needs a CUDA device: --device cuda"},
    CUDA: {"cpu": "of the CPU alone"},
    STAND_IN: {"cpu": "of the CPU alone", "cuda": "needs a CUDA device: --device cuda"},
}
"""Marks of tests that a device skips, with the reason."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=tuple(SKIPPED), default=CPU, help="what tests compute on (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--device")
    if chosen == CPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif chosen == CUDA:
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(f"--device cuda: torch {torch.__version__} finds no CUDA device")
    else:
        assert "torch" not in sys.modules, "the stand-in must be there before torch is"
        from tests import stand_in_cuda

        stand_in_cuda.use()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = SKIPPED[config.getoption("--device")]
    for item in items:
        for mark in skipped.keys() & {each.name for each in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=skipped[mark]))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that this session's tests compute on."""
    import torch

    return torch.device(CPU if request.config.getoption("--device") == CPU else CUDA)
