import shutil
from pathlib import Path

import pytest
from attrs import evolve

from stackwise_core.config.load import load_run
from stackwise_core.config.source_run import read_source_run
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.copy import beside, copy_run
from stackwise_core.errors import StackwiseError, UsageError
from tests.hashes import hashes
from tests.killing import killed_before_change
from tests.tiny import run_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> RunDirectory:
    """Two stacks, the first of them frozen at nvfp4 meanwhile."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 1,
        "precision": {"active": "fp32", "trunk": "nvfp4"},
    }
    return RunDirectory(run_tiny(tmp_path_factory.mktemp("source"), changes).directory)


def nothing(copy: RunDirectory) -> None:
    """No other change."""


def test_a_copy_has_all_but_what_is_made_from_the_masters(tmp_path, source):
    """Weights and plan are the source's bits; measurements and frozen stacks aren't taken along."""
    before = hashes(source.path)
    config, _ = load_run(source.path)
    copy = copy_run(source, tmp_path / "there" / "copied", config, nothing)
    assert hashes(source.path) == before
    made = hashes(copy.path)
    left_out = {"metrics.jsonl", "trunk/000.safetensors"}
    assert left_out < before.keys()
    assert made.keys() == before.keys() - left_out
    assert {name for name in made if made[name] != before[name]} == {"config.toml", "manifest.json"}
    assert not any(copy.manifest.problem(name) for name in copy.manifest)


def test_a_copy_knows_its_own_name(tmp_path, source):
    """Its configuration is that which it was given, in its own directory."""
    config, _ = load_run(source.path)
    copy = copy_run(source, tmp_path / "copied", evolve(config, run=evolve(config.run, seed=99)), nothing)
    read, _ = load_run(copy.path)
    assert (read.run.name, read.run.directory, read.run.seed) == ("copied", str(tmp_path), 99)
    assert evolve(read, run=config.run) == config


def test_a_copy_says_which_stacks_are_active(tmp_path, source):
    """Those of the source, or others."""
    config, _ = load_run(source.path)
    assert source.read_json("finished.json")["active"] == [1]
    same = copy_run(source, tmp_path / "same", config, nothing)
    none = copy_run(source, tmp_path / "none", config, nothing, active=[])
    assert [each.read_json("finished.json")["active"] for each in (same, none)] == [[1], []]


@pytest.mark.parametrize("name", ["config.toml", "embedding.safetensors", "stacks/001.safetensors", "progress.json"])
def test_a_damaged_source_leaves_no_copy(tmp_path, source, name):
    """What is refused in the middle is no half of a run."""
    damaged = tmp_path / "damaged"
    shutil.copytree(source.path, damaged)
    config, _ = load_run(damaged)
    content = bytearray((damaged / name).read_bytes())
    content[-3] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(StackwiseError, match=rf"damaged/{name}: damaged"):
        copy_run(RunDirectory(damaged), tmp_path / "copied", config, nothing)
    assert not (tmp_path / "copied").exists()


def test_a_change_that_fails_leaves_no_copy(tmp_path, source):
    """Neither does Ctrl-C."""
    config, _ = load_run(source.path)

    def interrupted(copy: RunDirectory) -> None:
        assert copy.has_stack(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_run(source, tmp_path / "copied", config, interrupted)
    assert not (tmp_path / "copied").exists()


def test_a_directory_that_is_there_is_left_alone(tmp_path, source):
    """Whatever it holds."""
    config, _ = load_run(source.path)
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"copied is there already\. Choose another directory with --to"):
        copy_run(source, tmp_path / "copied", config, nothing)
    assert [path.name for path in (tmp_path / "copied").iterdir()] == ["mine.txt"]


def test_a_name_that_no_run_can_have_is_refused(tmp_path, source):
    """Before there is a directory of it."""
    config, _ = load_run(source.path)
    with pytest.raises(UsageError, match=r"\.hidden can't be a run's directory: expected a plain name"):
        copy_run(source, tmp_path / "there" / ".hidden", config, nothing)
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_a_killed_copy_is_no_finished_run(tmp_path, source):
    """At any point it is refused by whoever would use it or go on with it, until it is whole."""
    config, _ = load_run(source.path)
    point, killed, refused = 0, True, 0
    while killed:
        target = tmp_path / str(point)
        killed = killed_before_change(point, lambda: copy_run(source, target, config, nothing))  # noqa: B023
        copy = RunDirectory(target)
        assert not any(copy.manifest.problem(name) for name in copy.manifest)
        if copy.has("finished.json"):
            assert copy.has("progress.json")
            assert read_source_run(target).blocks == (1, 1)
        else:
            with pytest.raises(UsageError):
                read_source_run(target)
            assert not copy.has("progress.json")
            refused += 1
        shutil.rmtree(target, ignore_errors=True)
        point += 7
    assert 5 < refused < point / 7


def test_a_copy_stands_beside_its_source(tmp_path, monkeypatch):
    """Also where the source is the working directory."""
    (tmp_path / "runs/first").mkdir(parents=True)
    assert beside(Path("runs/first"), "nf4") == Path("runs/first-nf4")
    monkeypatch.chdir(tmp_path / "runs/first")
    assert beside(Path(), "nf4") == tmp_path / "runs/first-nf4"
    assert beside(Path(".."), "nf4") == tmp_path / "runs-nf4"
