"""Shared by all tests: a clean environment, and distributions that a test makes up."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from stackwise_core.cli import pulse

# Under nohup and the like it would be ignored, which tests of endings take for the user's wish.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine isn't to make commands say more than a quiet one.
pulse.SECONDS_OF_SILENCE = 3600.0

Install = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STACKWISE_") and "UPDATE" not in name]:
        monkeypatch.delenv(name)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a distribution with entry points in the group ``stackwise``, found as an installed one is; its folder."""
    before = set(sys.modules)

    def install(
        distribution: str, modules: Mapping[str, str], entry_points: Mapping[str, str], version: str = "1.0"
    ) -> Path:
        site = tmp_path / "site" / distribution
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [f"{name} = {value}\n" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("[stackwise]\n" + "".join(lines))
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        return site

    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def hook_source() -> Callable[..., str]:
    """The source of a hook module with one mask schedule."""

    def source(name: str = "sine", module: str = "somebody", hook: str = "mask_schedule", **fields: object) -> str:
        extra = "".join(f", {key}={value!r}" for key, value in fields.items())
        return (
            "from stackwise_core.hookspecs import Implementation, hookimpl\n\n"
            "@hookimpl\n"
            f"def {hook}():\n"
            f"    return [Implementation({name!r}, 'Of somebody', '{module}:Sine', '{module}:Options'{extra})]\n"
        )

    return source


@pytest.fixture
def implementation_source() -> str:
    """The source of the module that ``hook_source`` points at."""
    return """
from attrs import frozen
from stackwise_core.interfaces.mask_schedule import MaskSchedule

@frozen
class Options:
    slope: float = 1.0

class Sine(MaskSchedule):
    def fraction(self, progress):
        return progress
"""
