"""A run by its name."""

from pathlib import Path

import pytest

from stackwise_core.config.errors import ConfigError
from stackwise_core.config.run_names import configuration_or_run_named, run_named, runs_directory
from stackwise_core.errors import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with two runs, and one elsewhere."""
    monkeypatch.chdir(tmp_path)
    for run in ("runs/first", "runs/second", "elsewhere/third"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "plan.json").touch()
    return tmp_path


def test_runs_are_where_the_configuration_puts_them(here, monkeypatch):
    """The default, then a file that stackwise.toml extends, then that, then the environment."""
    assert runs_directory() == Path("runs")
    (here / "base.toml").write_text('[run]\ndirectory = "below"\n[data]\nseq_len = 9\n')
    (here / "stackwise.toml").write_text('extends = "base.toml"\n')
    assert runs_directory() == Path("below")
    (here / "stackwise.toml").write_text('extends = "base.toml"\n[run]\ndirectory = "elsewhere"\n')
    assert runs_directory() == Path("elsewhere")
    monkeypatch.setenv("STACKWISE_RUN__DIRECTORY", "outside")
    assert runs_directory() == Path("outside")


@pytest.mark.parametrize("directory", ["3", '""', '["runs"]'])
def test_a_directory_that_is_none_is_located(here, directory):
    """As any other mistake."""
    (here / "stackwise.toml").write_text(f"[run]\ndirectory = {directory}\n")
    with pytest.raises(ConfigError, match=r"stackwise\.toml:2:13: run\.directory: expected a string that names a dir"):
        runs_directory()
    assert run_named("runs/first") == Path("runs/first")  # which needs no configuration


def test_a_name_is_a_run_s(here):
    """In the directory of runs; whatever has slashes is a path."""
    assert run_named("first") == Path("runs/first")
    assert run_named("runs/first") == Path("runs/first")
    assert run_named("runs/frist") == Path("runs/frist")
    (here / "stackwise.toml").write_text('[run]\ndirectory = "elsewhere"\n')
    assert run_named("third") == Path("elsewhere/third")


def test_a_run_here_wins_over_a_name(here):
    """But a directory that no run wrote doesn't, unless nothing else is meant."""
    (here / "first").mkdir()
    assert run_named("first") == Path("runs/first")
    (here / "first/plan.json").touch()
    assert run_named("first") == Path("first")
    (here / "empty").mkdir()
    assert run_named("empty") == Path("empty")


@pytest.mark.parametrize(
    ("name", "guess"), [("frist", ' Did you mean "first"?'), ("secnod", ' Did you mean "second"?'), ("xyz", "")]
)
def test_a_wrong_name_has_the_nearest_one(here, name, guess):
    """And what lists them all."""
    with pytest.raises(UsageError) as error:
        run_named(name)
    assert str(error.value) == (
        f'no run is called "{name}": it is neither in runs nor here.{guess} "stackwise runs" lists them.'
    )


def test_a_configuration_or_a_run(here):
    """A file wins; a name that is nearer to a file's than to a run's is left to what reads files."""
    assert configuration_or_run_named("first") == "runs/first"
    assert configuration_or_run_named("stackwise.toml") == "stackwise.toml"
    (here / "first").touch()
    assert configuration_or_run_named("first") == "first"
    with pytest.raises(UsageError, match=r'no run in runs is called so\. Did you mean "second"'):
        configuration_or_run_named("secnd")
    (here / "secnd2.toml").touch()
    assert configuration_or_run_named("secnd") == "secnd"
    assert configuration_or_run_named("xyz") == "xyz"
