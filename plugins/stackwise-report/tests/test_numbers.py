"""A run's numbers as JSON and as tables, also of a run that is damaged or of another version."""

import json

import pytest

from stackwise_core.config.dump import dump
from stackwise_core.run_files.reading import read_run
from stackwise_report import tables, wording
from stackwise_report.as_json import as_plain
from tests.changed_files import lies
from tests.small_runs import lines
from tests.tiny import TinyRun


def test_its_numbers_as_json(finished):
    """They survive a round trip, and curves are points of a step and a value."""
    plain = json.loads(json.dumps(as_plain(read_run(finished)), allow_nan=False))
    assert plain["finished"] is True
    assert plain["config"]["trainer_mode.use"] == '"blockwise"'
    losses = [[line["step"], line["loss"]] for line in lines(finished, "step")]
    assert [point for phase in plain["phases"] for point in phase["curves"]["loss"]] == losses


@pytest.mark.parametrize("name", ["plan.json", "finished.json", "environment.json"])
def test_a_file_of_a_later_version_or_of_a_liar_is_shown_all_the_same(run, name):
    """Any value of a file replaced by another; what comes out can be written as JSON and has no control characters."""
    for lie in lies((run / name).read_text(), name):
        (run / name).write_text(lie)
        found = read_run(run)
        said = json.dumps(as_plain(found), allow_nan=False)
        assert "\\u001b" not in said
        assert "\\u202e" not in said
        assert all(table_of(found) for table_of in (tables.phases, tables.memory, tables.method, tables.environment))


def test_what_is_nested_beyond_reason_is_cut(run):
    """However deep it is, it ends in neither a traceback nor a stack overflow."""
    config, environment = (run / "config.toml").read_text(), json.loads((run / "environment.json").read_text())
    for depth in (29, 200, 350, 450, 900, 5000):
        nest = "[" * depth + "]" * depth
        (run / "config.toml").write_text(f"deep = {nest}\n{config}")
        (run / "environment.json").write_text(json.dumps(environment)[:-1] + f', "deep": {nest}}}')
        found = read_run(run)
        assert json.dumps(as_plain(found), allow_nan=False)
        assert tables.environment(found).rows == [] or "deep" in dict(tables.environment(found).rows)


def test_adapters_that_train_are_named(tmp_path):
    """By their names and stacks."""
    lora = {"use": "lora", "rank": 2}
    mode = {"trainer_mode": {"use": "progressive", "trunk": "adapters"}, "adapter": {"trunk": lora}, "rack.stacks": 2}
    changes = {**mode, "precision": {"active": "fp32", "trunk": "nvfp4"}, "training.steps_per_stack": 1}
    run = TinyRun.of(tmp_path, changes)
    (tmp_path / "plan.json").write_text(json.dumps(run.plan.to_json()))
    (tmp_path / "config.toml").write_text(dump(run.setup.config))
    found = read_run(tmp_path)
    assert [tables.trains(phase) for phase in found.phases] == [
        "embedding, stack 0, head",
        "stack 1, trunk adapter of 0",
    ]
    assert dict(tables.method(found).rows)["adapter, trunk"].startswith("lora (rank = 2")


def test_a_perplexity_beyond_floats_is_said_to_be_one():
    """No number stands for it."""
    assert wording.perplexity(float("inf")) == ">\xa01.8e308"
