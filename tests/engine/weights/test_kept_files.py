"""A run's directory holds what using it takes, so that it can be moved; code in it runs when ``-p`` names it."""

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest

import stackwise_core as sw
from stackwise_core.cli import main
from stackwise_core.engine.events.events import RunResult
from stackwise_core.engine.runs.directory import RunDirectory
from tests.projects import PRECISION, forget_plugins, project


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, RunResult]:
    """A project with a finished run, and what that measured."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project(tmp_path_factory.mktemp("trained") / "project")
        patch.chdir(folder)
        result = sw.run("small.toml")
        forget_plugins()
    return folder, result


@pytest.fixture
def moved(trained, tmp_path) -> Path:
    """The run alone, elsewhere, and nothing where it was."""
    folder, _ = trained
    shutil.copytree(folder / "runs" / "small", tmp_path / "elsewhere" / "better")
    folder.rename(folder.with_name("gone"))
    yield tmp_path / "elsewhere" / "better"
    folder.with_name("gone").rename(folder)
    forget_plugins()


def copy_of(run: Path, name: str) -> str:
    return str(run / "plugins" / name)


def test_copies_are_checksummed_like_the_rest(trained):
    """The manifest has them, with their own bytes."""
    folder, result = trained
    directory = RunDirectory(result.directory)
    for name, source in (
        ("tokenizer.json", "tok.json"),
        ("plugins/project_square.py", "project_square.py"),
        ("plugins/project_own.py", "project_own.py"),
    ):
        assert directory.manifest.checked(name).read_bytes() == (folder / source).read_bytes()


def test_a_moved_run_measures_what_it_measured(moved, trained, monkeypatch):
    """With its own tokenizer and the plugin that -p names; the mask schedule isn't needed, and isn't loaded."""
    monkeypatch.chdir(moved.parent)
    text = trained[0].with_name("gone") / "text.txt"
    with pytest.raises(sw.UsageError, match="nothing is there"):
        sw.load_rack(moved, plugins=[copy_of(moved, "project_own.py")]).evaluate()
    rack = sw.load_rack("better", plugins=[copy_of(moved, "project_own.py")])
    monkeypatch.chdir("/")  # a rack stays usable
    data = rack.run.parts.config.data
    assert data.tokenizer == str(moved / "tokenizer.json")
    trained[0].mkdir()
    shutil.copy(text, trained[0] / "text.txt")  # where it was when the run was there
    try:
        rack = sw.load_rack(moved, plugins=[copy_of(moved, "project_own.py")])
        assert rack.evaluate() == list(trained[1].likelihoods)
    finally:
        shutil.rmtree(trained[0])
    assert "project_square" not in sys.modules


@pytest.mark.parametrize("command", [["sample", "--length", "4"], ["evaluate", "--corpus", "text.txt"]])
def test_code_that_came_with_a_run_is_not_run_unasked(moved, monkeypatch, capfd, command):
    """The error names the -p that loads it."""
    monkeypatch.chdir(moved.parent)
    (moved.parent / "text.txt").write_text("a text to measure on. " * 20)
    name, *options = command
    with pytest.raises(SystemExit) as ended:
        main.main([name, str(moved), *options])
    said = capfd.readouterr().err
    assert ended.value.code == 3
    assert "project_own.py: " not in said
    assert f"-p {copy_of(moved, 'project_own.py')} loads the copy that the run keeps" in said
    assert not {"project_square", "project_own"} & sys.modules.keys()
    with pytest.raises(SystemExit) as ended:
        main.main([name, str(moved), *options, "-p", copy_of(moved, "project_own.py")])
    assert ended.value.code in (0, None)


def test_an_export_needs_no_plugin(moved, tmp_path):
    """Only the tokenizer, which is the one that the run was trained with."""
    with pytest.raises(SystemExit) as ended:
        main.main(["export", str(moved), "--to", "hf", str(tmp_path / "hf")])
    assert ended.value.code in (0, None)
    ours, theirs = (json.loads((each / "tokenizer.json").read_text()) for each in (moved, tmp_path / "hf"))
    assert ours["model"] == theirs["model"]
    assert not {"project_square", "project_own"} & sys.modules.keys()


def test_a_damaged_copy_is_refused(moved):
    """As every other file is."""
    content = bytearray((moved / "tokenizer.json").read_bytes())
    content[50] ^= 1
    (moved / "tokenizer.json").write_bytes(content)
    with pytest.raises(sw.StackwiseError, match=r"better/tokenizer.json: damaged"):
        sw.load_rack(moved, plugins=[copy_of(moved, "project_own.py")])


def test_a_plugin_file_that_changed_is_not_taken_for_the_same(trained, caplog):
    """It is refused with both ways on; the one that -p names is loaded, with a warning."""
    folder, result = trained
    path = folder / "project_own.py"
    path.write_text(PRECISION + "\n# another\n")
    try:
        with pytest.raises(sw.UnavailableError, match=r"project_own\.py has changed since the run had it") as refused:
            sw.load_rack(result.directory)
        kept = copy_of(result.directory, "project_own.py")
        assert f"-p {path} loads it as it is now, -p {kept} as the run had it" in str(refused.value)
        with caplog.at_level(logging.WARNING):
            sw.load_rack(result.directory, plugins=[str(path)])
        assert f"{path} isn't as the run had it" in caplog.text
    finally:
        path.write_text(PRECISION)
        forget_plugins()


@pytest.mark.slow
def test_a_copy_of_a_run_keeps_them_too(moved, tmp_path):
    """``restore`` makes a run that stands by itself."""
    with pytest.raises(SystemExit) as ended:
        main.main(["restore", str(moved), "--precision", "fp32", "--to", str(tmp_path / "copy")])
    assert ended.value.code == 3  # its active precision is the plugin's
    plugin = copy_of(moved, "project_own.py")
    with pytest.raises(SystemExit) as ended:
        main.main(["restore", str(moved), "--precision", "fp32", "--to", str(tmp_path / "copy"), "-p", plugin])
    assert ended.value.code in (0, None)
    shutil.rmtree(moved)
    forget_plugins()
    rack = sw.load_rack(tmp_path / "copy", plugins=[copy_of(tmp_path / "copy", "project_own.py")])
    assert rack.run.parts.config.data.tokenizer == str(tmp_path / "copy" / "tokenizer.json")
