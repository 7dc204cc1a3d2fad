"""Resuming a run: paths with the same content, and plugins that compute the same."""

import json
import os
import shutil
from pathlib import Path

import pytest

import stackwise_core as sw
from stackwise_core.engine.events.events import EnvironmentChanged
from tests.projects import CONFIG, SCHEDULE, forget_plugins, gone_on_from, interrupted, project


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A project whose run broke off after its second step; copied, never changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")
        folder = project(tmp_path_factory.mktemp("broken") / "project")
        interrupted(folder)
        patch.chdir("/")
    return folder


@pytest.fixture
def moved(broken, tmp_path, monkeypatch) -> Path:
    """The project elsewhere, and nothing where it was."""
    shutil.copytree(broken, tmp_path / "mounted" / "here", copy_function=shutil.copy)
    broken.rename(broken.with_name("gone"))
    monkeypatch.chdir(tmp_path / "mounted" / "here")
    yield tmp_path / "mounted" / "here"
    broken.with_name("gone").rename(broken)
    forget_plugins()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["small.toml", "runs/small"])
def test_a_project_that_was_moved_goes_on(moved, source):
    """By its configuration; by its directory, once -p says that the plugin files are trusted."""
    events: list = []
    if source == "small.toml":
        configuration = sw.load_config(source)
    else:
        with pytest.raises(sw.UnavailableError, match=r"-p \S+plugins/project_square.py loads the copy"):
            sw.load_config(source)
        configuration = sw.load_config(source, plugins=["project_square.py", "project_own.py"])
    result = sw.run(configuration, listener=events.append)
    assert result.directory == moved / "runs" / "small"
    assert gone_on_from(events) == [2]
    assert not [event for event in events if isinstance(event, EnvironmentChanged)]
    written = json.loads((moved / "runs/small/manifest.json").read_text())["files"]["config.toml"]
    assert written["written_in"] == str(moved / "runs/small")


@pytest.mark.slow
def test_it_ends_as_one_that_was_never_moved(moved, tmp_path):
    """With the same bits."""
    result = sw.run("small.toml")
    undisturbed = sw.run("small.toml", fresh=True)
    assert result.likelihoods == undisturbed.likelihoods
    for name in ("embedding.safetensors", "stacks/000.safetensors"):
        assert (result.directory / name).read_bytes() == (undisturbed.directory / name).read_bytes()


def test_texts_and_tokenizers_under_another_name_are_the_same(moved):
    """What is there counts, not where."""
    for name in ("text.txt", "tok.json"):
        shutil.move(name, f"other-{name}")
    Path("small.toml").write_text(
        CONFIG.replace('"text.txt"', '"other-text.txt"').replace('"tok.json"', '"other-tok.json"')
    )
    events: list = []
    sw.run("small.toml", listener=events.append)
    assert gone_on_from(events) == [2]


def test_another_text_is_refused(moved):
    """It is named; nothing is trained."""
    Path("text.txt").write_text(Path("text.txt").read_text().replace("God", "She"))
    before = (moved / "runs/small/manifest.json").read_bytes()
    with pytest.raises(sw.UsageError, match=r"no longer the text of \S+here/text\.txt"):
        sw.run("small.toml")
    Path("text.txt").rename("other.txt")
    with pytest.raises(sw.UsageError, match=r"no longer the text of \S+here/other\.txt"):
        sw.run(sw.load_config("small.toml", overrides={"data.corpus": "other.txt"}))
    assert (moved / "runs/small/manifest.json").read_bytes() == before


def test_another_tokenizer_is_refused(moved):
    """Whether its path is the same or not."""
    content = json.loads(Path("tok.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    Path("tok.json").write_text(json.dumps(content))
    with pytest.raises(sw.UsageError, match=r"data\.tokenizer changes what comes out"):
        sw.run("small.toml")


@pytest.mark.slow
def test_folders_that_are_written_to_may_be_others(moved):
    """No acceptance is asked for: nothing depends on them."""
    events: list = []
    overrides = {"data.tokens_directory": "other-tokens"}
    result = sw.run(sw.load_config("small.toml", overrides=overrides), listener=events.append)
    assert gone_on_from(events) == [2]
    assert os.listdir("other-tokens")
    with pytest.raises(sw.Finished):
        sw.run(result.directory)


def test_a_plugin_file_that_changed_within_a_phase_must_be_accepted(moved):
    """The file is named; once accepted it is the run's, which keeps a copy and says so."""
    Path("project_square.py").write_text(SCHEDULE.replace("** 2", "** 3"))
    with pytest.raises(
        sw.UsageError,
        match=r"within a phase, which would resume with other code:\n  the file project_square.py has changed\n",
    ) as refused:
        sw.run("small.toml")
    assert "--accept-change" in str(refused.value)
    assert "--fresh" in str(refused.value)
    forget_plugins()
    events: list = []

    def stop(event) -> None:
        events.append(event)
        if gone_on_from([event]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sw.run("small.toml", accept_change=True, listener=stop)
    (told,) = (event.differences for event in events if isinstance(event, EnvironmentChanged))
    assert told == ("the file project_square.py has changed",)
    run = moved / "runs/small"
    assert (run / "plugins/project_square.py").read_text() == Path("project_square.py").read_text()
    assert json.loads((run / "environment.json").read_text())["changed"] == list(told)
    forget_plugins()
    sw.run("small.toml")  # as it is now, it is the run's own


def test_a_plugin_that_does_not_decide_numbers_may_change(moved):
    """A file that the configuration names, and doesn't use."""
    Path("small.toml").write_text(CONFIG.replace('["project_square.py"', '["project_unused.py", "project_square.py"'))
    source = SCHEDULE.replace("project_square", "project_unused").replace('"square"', '"unused"')
    Path("project_unused.py").write_text(source)
    events: list = []
    sw.run("small.toml", listener=events.append)
    assert gone_on_from(events) == [2]


SOURCED = """
[run]
name = "sourced"
[data]
corpus = "text.txt"
seq_len = 32
[rack]
init_from = "start"
stacks = 2
blocks_per_stack = 1
[training]
steps_per_stack = 4
batch_size = 4
[checkpoint]
steps = 1
[evaluation]
draws = 1
sequences = 4
[cache_backend]
use = "disk"
directory = "boundaries"
keep = "rack"
"""


@pytest.fixture
def sourced(tmp_path, monkeypatch) -> Path:
    """A folder with a run that starts from another one, shares a folder of boundaries, and broke off."""
    folder = project(tmp_path / "first")
    monkeypatch.chdir(folder)
    start = SOURCED.replace('init_from = "start"', "d_model = 32\nn_heads = 2").replace("stacks = 2", "stacks = 1")
    (folder / "start.toml").write_text(start.replace('"sourced"', '"start"'))
    sw.run("start.toml").directory.rename("start")
    (folder / "small.toml").write_text(SOURCED)
    interrupted(folder)
    return folder


@pytest.mark.slow
def test_a_source_elsewhere_is_the_same_one(sourced):
    """By its weights; another one is refused, though it has the same shape."""
    shutil.copytree("start", "another")
    Path("start").rename("earlier")
    manifest = json.loads(Path("another/manifest.json").read_text())
    manifest["files"]["stacks/000.safetensors"]["sha256"] = "0" * 64
    Path("another/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(sw.UsageError, match=r"rack\.init_from changes what comes out"):
        sw.run(sw.load_config("small.toml", overrides={"rack.init_from": "another"}))
    events: list = []
    sw.run(sw.load_config("small.toml", overrides={"rack.init_from": "earlier"}), listener=events.append)
    assert gone_on_from(events) == [2]


def test_a_moved_run_owns_its_boundaries_still(sourced, tmp_path, monkeypatch):
    """In a folder that runs share, records name the run by its path; those of the run follow it."""
    monkeypatch.chdir(tmp_path)
    sourced.rename("second")
    monkeypatch.chdir("second")
    sw.run("small.toml")
    records = [json.loads(path.read_text())["run"] for path in Path("boundaries").glob("*.json")]
    assert set(records) == {str(tmp_path / "second" / "runs" / "sourced")}


@pytest.mark.slow
def test_a_run_that_was_moved_alone_finds_the_text(sourced, tmp_path):
    """Where it was, seen from where the run was."""
    shutil.move(sourced / "runs" / "sourced", tmp_path / "alone")
    events: list = []
    result = sw.run(tmp_path / "alone", listener=events.append)
    assert gone_on_from(events) == [2]
    assert sw.load_rack(result.directory).evaluate() == list(result.likelihoods)
