"""Names and paths that aren't UTF-8 are refused before a run could fail to write them down."""

import os
from pathlib import Path

import pytest

from stackwise_core.config.dump import dump
from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load, structure
from stackwise_core.errors import UsageError
from tests.tiny import tiny_config

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("text")
    path = folder / "small.toml"
    path.write_text('[data]\ncorpus = "text.txt"\n')
    return path


def test_a_name_from_the_command_line_or_the_environment(tmp_path):
    """Each with its key."""
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=r"run\.name: expected UTF-8, found 'caf\\udce9'"):
        load(path, overrides=[f"run.name={NOT_UTF8}"])
    with pytest.raises(ConfigError, match=r"STACKWISE_RUN__NAME: run\.name: expected UTF-8"):
        load(path, environ={"STACKWISE_RUN__NAME": NOT_UTF8})
    path.write_text("")
    with pytest.raises(ConfigError, match=r"sources.*expected UTF-8"):
        load(path, overrides={f'data.sources."{NOT_UTF8}".corpus': str(tmp_path / "text.txt")})


def test_the_folder_of_a_path_that_the_file_names(tmp_path):
    """The file itself is UTF-8; the line is shown. Without a path of its own it would be fine."""
    path = write(tmp_path / NOT_UTF8)
    with pytest.raises(ConfigError, match=r"2:10: data\.corpus: expected UTF-8") as caught:
        load(path)
    assert caught.value.exit_code == 2
    path.write_text("")
    load(path)


def test_a_plugin_by_a_relative_path(tmp_path, monkeypatch, hook_source):
    """Its full path would stand in the run's configuration."""
    path = write(tmp_path / NOT_UTF8)
    path.write_text("")
    (path.parent / "own_plugin.py").write_text(hook_source())
    monkeypatch.chdir(path.parent)
    with pytest.raises(UsageError):
        load(path, plugins=["own_plugin.py"])


def test_a_configuration_that_is_written_down(tmp_path):
    """As that of a copy of a run in such a folder."""
    config, registry = tiny_config(tmp_path, {"run": {"directory": "runs"}})
    assert "runs" in dump(config)
    with pytest.raises(UsageError, match=r"run\.directory: expected UTF-8"):
        structure({"run": {"directory": NOT_UTF8}}, registry)
