"""The device that tests compute on, for the tests of the core and of the plugins: ``--device``.

With ``cpu``, the default, no CUDA device is found, here or in a process that a test starts. With ``cuda`` all that
takes its device from ``run.device = "auto"`` or from the fixture ``device`` is on CUDA. ``stand-in`` is for machines
without one: the CPU computes, and tests/stand_in_cuda.py sees to it that a tensor of the device is nowhere taken for
one of the CPU. Processes that a test starts then compute on the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import pairwise
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

BEYOND_THE_STAND_IN = {
    "but the raw Tensor object is already associated to a python object of type CudaTensor": "a tensor class of a "
    "library's own, which the stand-in's can't be",
    "DispatchStub: missing kernel for cuda": "a parameter that is given data of the stand-in",
}
"""Errors that the stand-in alone gives, with the reason for which a test is skipped then."""


CHOSEN = "STACKWISE_TESTS_ON"
"""Environment variable by which a worker of pytest-xdist knows the device before it is told the options."""
if f"--device={STAND_IN}" in sys.argv or ("--device", STAND_IN) in pairwise(sys.argv):
    os.environ[CHOSEN] = STAND_IN
if os.environ.get(CHOSEN) == STAND_IN:  # before a conftest imports torch, which then asks which devices there are
    from tests import stand_in_cuda

    stand_in_cuda.use()


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
    elif os.environ.get(CHOSEN) != STAND_IN:
        raise pytest.UsageError(f"give --device {STAND_IN} on the command line itself")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = SKIPPED[config.getoption("--device")]
    for item in items:
        for mark in skipped.keys() & {each.name for each in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=skipped[mark]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Count a test as skipped that takes what the stand-in can't be."""
    report = yield
    if item.config.getoption("--device") == STAND_IN and call.excinfo is not None:
        said = str(call.excinfo.value)
        for words, reason in BEYOND_THE_STAND_IN.items():
            if words in said and report.outcome == "failed":
                report.outcome, report.longrepr = (
                    "skipped",
                    (str(item.path), item.location[1] or 0, f"Skipped: {reason}"),
                )
    return report


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that this session's tests compute on."""
    import torch

    return torch.device(CPU if request.config.getoption("--device") == CPU else CUDA)
