"""``make run`` installs what the run needs, ``make test`` and ``make check`` what tests need beyond it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stackwise_core.config.choices import chosen
from stackwise_core.config.load import load
from stackwise_core.registry.blocking import CORE
from stackwise_core.registry.official import OFFICIAL

ROOT = Path(__file__).parents[1]


def plugins_in(requirements: str) -> set[str]:
    """The plugins that a file of requirements has, without those of files that it includes."""
    lines = (ROOT / requirements).read_text().splitlines()
    return {line.removeprefix("-e plugins/") for line in lines if line.startswith("-e plugins/")}


def test_the_run_has_its_plugins_and_no_others():
    """Those that stackwise.toml comes to, and those that its end names; development has the rest, once."""
    config, registry = load(ROOT / "stackwise.toml", environ={})
    used = {registry.resolve(hook, choice.use).distribution for _, hook, choice in chosen(config)} - {CORE}
    used |= {*OFFICIAL["command"].values(), *OFFICIAL["checkpoint_format"].values()}
    assert plugins_in("requirements.txt") == used
    every = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")} - {"stackwise"}  # a list of the others
    assert plugins_in("requirements-dev.txt") == every - used
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()


@pytest.fixture
def clone(tmp_path) -> Path:
    """A checkout with the files that make reads, in which nothing was made yet."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for file in ROOT.glob("plugins/*/pyproject.toml"):
        (tmp_path / "plugins" / file.parent.name).mkdir(parents=True)
        shutil.copy(file, tmp_path / "plugins" / file.parent.name)
    for file in tmp_path.rglob("*"):
        os.utime(file, (1e9, 1e9))
    return tmp_path


def make(clone: Path, target: str) -> list[str]:
    """The commands that a target takes."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", target, "PYTHON=python3"]
    done = subprocess.run(command, cwd=clone, env=outside, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_make_does_in_a_fresh_clone(clone):
    """The run installs nothing that only tests need."""
    venv, install, touch, run = make(clone, "run")
    assert (venv, run) == ("python3 -m venv .venv", ".venv/bin/stackwise run stackwise.toml")
    assert install.endswith("-m pip install --quiet -r requirements.txt")
    assert touch == "touch .venv/.ready-to-run"
    venv, install, touch, *_, test = make(clone, "test")
    assert (venv, test) == ("python3 -m venv .venv", ".venv/bin/python -m pytest -n 2")
    assert install.endswith("-m pip install --quiet -r requirements-dev.txt")
    assert touch == "touch .venv/.ready-to-run .venv/.ready-to-test"


def test_check_is_test_without_what_is_slow(clone):
    """The same installation, lint and types come before."""
    *before, last = make(clone, "check")
    *expected, everything = make(clone, "test")
    assert before == expected
    assert [line.removeprefix(".venv/bin/") for line in before[3:]] == ["ruff check .", "ruff format --check .", "mypy"]
    assert last == f'{everything} -m "not slow"'


def test_what_is_installed_is_installed_once(clone):
    """Until a plugin asks for something else; after the tests' packages the run needs none."""
    (clone / ".venv").mkdir()
    for marker in ("run", "test"):
        (clone / f".venv/.ready-to-{marker}").touch()
    assert make(clone, "run") == [".venv/bin/stackwise run stackwise.toml"]
    assert not any("pip" in line for line in make(clone, "test"))
    (clone / "requirements-dev.txt").touch()
    assert make(clone, "run") == [".venv/bin/stackwise run stackwise.toml"]
    assert any("pip" in line for line in make(clone, "test"))
    (clone / "plugins/stackwise-cache/pyproject.toml").touch()
    assert any("pip" in line for line in make(clone, "run"))
