"""A run's directory from somebody else: nothing in it runs, leads out of it, or is believed unseen."""

import json
import os
import shutil
import sys

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.config.load import load_run
from stackwise_core.engine.boundary.stores import Stores
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.ending import read_ending
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.metrics import Metrics
from stackwise_core.run_files.names import MANIFEST
from stackwise_core.run_files.stored_boundaries import StoredBoundary, write_record
from tests.survival.fuzz.specimens import forge, specimens

pytestmark = pytest.mark.slow

PLUGIN = "raise SystemExit('it ran')\n"


@pytest.fixture
def run(tmp_path):
    """A finished run, to be tampered with."""
    return shutil.copytree(specimens() / "finished", tmp_path / "theirs")


@pytest.mark.parametrize("name", ["evil_plugin.py", "./evil_plugin.py", "{run}/evil_plugin.py", "../evil_plugin.py"])
def test_a_plugin_that_came_with_a_run_is_not_loaded(name, run):
    """It is named and refused, by whatever path, before any of its lines is executed."""
    for folder in (run, run.parent):
        (folder / "evil_plugin.py").write_text(PLUGIN)
    (run / "config.toml").write_text(f"[run]\nplugins = ['{name.format(run=run)}']\n")
    with pytest.raises(
        UsageError, match=r"config.toml:2:12: run.plugins\[0\]: .*evil_plugin.py came with the run"
    ) as error:
        load_run(run)
    assert f"help: -p {run.parent}" in str(error.value)
    assert "evil_plugin" not in sys.modules


def test_a_plugin_that_came_with_a_run_is_loaded_when_it_is_named(run, monkeypatch, hook_source, implementation_source):
    """-p says that it is trusted."""
    monkeypatch.syspath_prepend(run)
    (run / "our_sine.py").write_text(hook_source(module="our_sine") + implementation_source)
    (run / "config.toml").write_text("[run]\nplugins = ['our_sine.py']\n[mask_schedule]\nuse = 'sine'\n")
    monkeypatch.delitem(sys.modules, "our_sine", raising=False)
    config, _ = load_run(run, plugins=[str(run / "our_sine.py")])
    assert config.mask_schedule.use == "sine"
    monkeypatch.delitem(sys.modules, "our_sine")


def test_a_plugin_elsewhere_is_loaded_as_ever(run, tmp_path, monkeypatch, hook_source, implementation_source):
    """A run writes the absolute path of the user's own file, and resumes with it."""
    (tmp_path / "own_sine.py").write_text(hook_source(module="own_sine") + implementation_source)
    (run / "config.toml").write_text(f"[run]\nplugins = ['{tmp_path}/own_sine.py']\n[mask_schedule]\nuse = 'sine'\n")
    monkeypatch.delitem(sys.modules, "own_sine", raising=False)
    assert load_run(run)[0].mask_schedule.use == "sine"
    monkeypatch.delitem(sys.modules, "own_sine")


def test_the_configuration_of_a_run_extends_nothing(run):
    """No other file is read for it."""
    (run.parent / "secret.toml").write_text("password = 1\n")
    (run / "config.toml").write_text('extends = "../secret.toml"\n')
    with pytest.raises(UsageError, match=r"config.toml:1:11: extends: the configuration of a run has all") as error:
        load_run(run)
    assert "password" not in str(error.value)


def test_a_folder_that_is_a_link_is_refused(run, tmp_path):
    """The manifest would have files replaced and deleted in another directory."""
    theirs = json.loads((run / MANIFEST).read_text())
    (run / "stacks").rename(tmp_path / "mine")
    (run / "stacks").symlink_to(tmp_path / "mine")
    for changes in ({}, {"pending": ["stacks/000.safetensors"]}, {"dropped": ["stacks/007.safetensors"]}):
        (run / MANIFEST).write_text(json.dumps({**theirs, **changes}))
        with pytest.raises(StackwiseError, match="an entry isn't a file of this directory"):
            Manifest(run)
    assert sorted(os.listdir(tmp_path / "mine")) == ["000.safetensors", "001.safetensors"]


def test_a_run_may_be_reached_by_a_link(run, tmp_path):
    """Only links within it are refused."""
    (tmp_path / "link").symlink_to(run)
    manifest = Manifest(tmp_path / "link")
    assert list(manifest)
    assert all(manifest.problem(name) is None for name in manifest)


@pytest.mark.parametrize("name", ["stacks/\x1b[31m", "stacks/\u202e", "a\nb", "\ud800"])
def test_names_that_a_terminal_would_obey_are_refused(name, run):
    """``verify`` prints the names of files."""
    theirs = json.loads((run / MANIFEST).read_text())
    theirs["files"][name] = {"bytes": 1, "sha256": "0"}
    (run / MANIFEST).write_text(json.dumps(theirs))
    with pytest.raises(StackwiseError, match="an entry isn't a file of this directory"):
        Manifest(run)


def test_metrics_are_not_appended_through_a_link(tmp_path):
    """What the link leads to stays as it is."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"):
        Metrics(tmp_path / "metrics.jsonl")
    assert (tmp_path / "mine").read_text() == "mine"


def test_only_what_has_the_name_of_a_store_is_deleted(tmp_path):
    """A ``cache`` that is a link to a directory of the user's loses nothing."""
    mine, store = tmp_path / "mine", "0f" * 16
    for name in ("letters", store):
        (mine / name).mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cache").symlink_to(mine)
    Stores(backend=None, directory=tmp_path / "run" / "cache", run=tmp_path / "run").drop_others()
    assert os.listdir(mine) == ["letters"]


def test_what_a_record_says_is_printed_without_its_escapes(run):
    """A phase's name is text in a table, and nothing else."""
    layout = Layout(tokens=8, d_model=32, dtype="bf16")
    write_record(run / "cache", StoredBoundary("0f" * 16, str(run), "\x1b]0;title\x07phase", (0,), layout, {}))
    done = CliRunner().invoke(main, ["cache", "list", str(run)])
    assert done.exit_code == 0, done.output
    assert "]0;title" in done.output
    assert "\x1b" not in done.output


def test_errors_are_printed_without_escapes_too(run, capsys):
    """Also where the message quotes a file."""
    (run / "plan.json").write_text('{"rack": {}, "\\u001b": 1}')
    (run / MANIFEST).write_text('{"\\u001b[2J": 1, "format": "\\u001b[2J"}')
    (run / "cache" / f"{'0f' * 16}.json").write_text('{"format": 1, "trunk": [0], "layout": {"\\u001b": 1}}')
    for words in (["verify"], ["evaluate"], ["cache", "list"]):
        with pytest.raises(SystemExit):
            main.main([*words, str(run)])
        assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "expected a table, found nothing"),
        ('{"active": [0]}', "expected phases to be an array of tables, found nothing"),
        ('{"phases": [], "active": 1}', "expected active to be an array of integers, found 1"),
        ('{"phases": [], "active": ["0"]}', r'expected active\[0\] to be an integer, found the string "0"'),
        ('{"phases": [], "active": [true]}', r"expected active\[0\] to be an integer, found true"),
        ('{"phases": [], "active": [-1]}', r"expected active to be whole numbers of 0 or more, found \[-1\]"),
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
    ],
)
def test_what_is_no_ending_is_named(content, message, run):
    """A checksum proves nothing where it came with the file."""
    (run / "finished.json").write_text(content)
    forge(run, "finished.json")
    with pytest.raises(StackwiseError, match=rf"finished.json: {message}"):
        read_ending(RunDirectory(run))


def tampered(run, change):
    theirs = json.loads((run / MANIFEST).read_text())
    change(theirs)
    (run / MANIFEST).write_text(json.dumps(theirs))


def test_a_stack_that_is_missing_is_not_made_up(run):
    """A manifest without it is refused; the stack would else be a random one."""
    tampered(run, lambda manifest: manifest["files"].pop("stacks/001.safetensors"))
    with pytest.raises(StackwiseError, match=r"stacks/001.safetensors: the run hasn't written it"):
        FinishedRun.open(run)


def test_an_adapter_of_which_nothing_is_known_is_refused(run):
    """Its configuration says of each adapter what makes it."""
    tampered(
        run,
        lambda manifest: manifest["files"].update(
            {
                name.replace("/stack/", "/other/"): entry
                for name, entry in manifest["files"].items()
                if name.startswith("adapters/001")
            }
        ),
    )
    with pytest.raises(StackwiseError, match=r"stack 1 has an adapter .other., and config"):
        FinishedRun.open(run)


@pytest.mark.parametrize("words", [["merge"], ["restore", "--precision", "int8"]])
def test_other_commands_look_before_they_copy(words, run):
    """A rack that the files aren't of is refused, and nothing is left beside the run."""
    (run / "config.toml").write_text("")
    forge(run, "config.toml")
    done = CliRunner().invoke(main, [words[0], str(run), *words[1:]])
    assert done.exit_code == 1
    assert os.listdir(run.parent) == ["theirs"]
    assert isinstance(done.exception, SystemExit)
