"""Reading a run's directory, finished or not, whole or not."""

import json
import math
import os
import re
import shutil

import pytest

from stackwise_core.engine.events.events import StepDone
from stackwise_core.run_files.reading import read_run, read_runs
from stackwise_core.run_files.run import Likelihood
from tests.changed_files import lies
from tests.interrupted_runs import Broken, engine
from tests.small_runs import SHORT, lines
from tests.tiny import run_tiny


def test_a_finished_run(finished):
    """Every number is that of its file."""
    run, ending = read_run(finished), json.loads((finished / "finished.json").read_text())
    plan = json.loads((finished / "plan.json").read_text())
    assert (run.state, run.finished, run.gaps, run.name, run.label) == ("finished", True, [], "tiny", "tiny")
    assert run.steps == 18
    assert run.tokens == sum(phase["tokens"] for phase in plan["phases"])
    assert run.seconds == pytest.approx(sum(phase["seconds"] for phase in ending["phases"]))
    assert run.peak_bytes == max(phase["peak_bytes"] for phase in ending["phases"])
    assert [phase.begins for phase in run.phases] == [0, 6, 12]
    assert [phase.planned_peak for phase in run.phases] == [phase["memory"]["total"] for phase in plan["phases"]]
    assert [sum(phase.planned_memory.values()) for phase in run.phases] == [phase.planned_peak for phase in run.phases]
    likelihoods = lines(finished, "likelihood")
    assert [each.nats_per_token for each in run.likelihoods] == [line["nats_per_token"] for line in likelihoods]
    assert run.whole.perplexity == pytest.approx(2.718281828459045 ** likelihoods[-1]["nats_per_token"])
    for phase in run.phases:
        steps = [line for line in lines(finished, "step") if line["phase"] == phase.name]
        for key in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "masked", "peak_bytes"):
            assert list(phase.curves[key].points()) == [(line["step"], line[key]) for line in steps]
        assert [step for step, _ in phase.curves["validation"].points()] == [3, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "state", "steps"),
    [
        (("stack 0", 4), "not finished: 0 of 3 phases done, step 4 of 6 of stack 0", 4),
        (("stack 1", 1), "not finished: 1 of 3 phases done, step 1 of 6 of stack 1", 7),
        (("stack 2", 6), "not finished: 2 of 3 phases done, step 6 of 6 of stack 2", 18),
    ],
)
def test_a_run_that_broke_off(tmp_path, stop, state, steps):
    """Its results so far are read, and its state says that it isn't finished."""

    def listen(event) -> None:
        if isinstance(event, StepDone) and (event.planned.phase.name, event.step) == stop:
            raise Broken

    with pytest.raises(Broken):
        engine(tmp_path, SHORT, listen).run()
    run = read_run(tmp_path / "runs" / "tiny")
    assert (run.state, run.finished, run.gaps, run.likelihoods) == (state, False, [], [])
    assert run.steps == steps
    assert len(run.phases) == 3
    assert run.peak_bytes > 1_000_000
    assert 0 < run.tokens < 3 * 6 * 8 * 32 + 1


def test_a_run_that_is_trained_and_not_measured(run, changed):
    """finished.json comes before the likelihoods, and says so; a run that lost them later was finished all the same."""
    (run / "metrics.jsonl").unlink()
    assert read_run(run).finished
    found = read_run(changed("finished.json", lambda ending: ending.update(evaluated=False)))
    assert (found.state, found.finished) == ("not finished: trained, not measured", False)


def test_a_run_without_a_validation_split_is_finished_without(tmp_path):
    """Then there is nothing to measure on."""
    changes = {"data.validation_fraction": 0.0, "rack.stacks": 1, "training.steps_per_stack": 2}
    run = read_run(run_tiny(tmp_path, changes).directory)
    assert (run.state, run.likelihoods, run.gaps) == ("finished", [], [])


def test_a_last_line_that_a_kill_cut_off_is_no_fault(run):
    """All others are read, and no gap is said."""
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole + b'{"kind": "step", "phase": "stack 2", "st')
    assert read_run(run).gaps == []
    (run / "metrics.jsonl").write_bytes(whole[: len(whole) // 2])
    found = read_run(run)
    assert found.gaps == []
    assert 0 < sum(len(phase.curves["loss"]) for phase in found.phases) < 18


@pytest.mark.parametrize(
    ("line", "gap"),
    [
        ("{", "metrics.jsonl: 1 line is no JSON object, and left out"),
        ("[1]", "metrics.jsonl: 1 line is no JSON object, and left out"),
        ("[" * 100_000, "metrics.jsonl: 1 line is no JSON object, and left out"),
        ('{"kind": "step", "phase": "stack 0", "step": 2, "loss": "nan"}', "metrics.jsonl: 1 line has no number"),
        ('{"kind": "step", "phase": "stack 0", "step": 2, "loss": NaN}', "metrics.jsonl: 1 line has no number"),
        ('{"kind": "step", "phase": "stack 0", "step": 2, "loss": 1e999}', "metrics.jsonl: 1 line has no number"),
        ('{"kind": "step", "phase": "stack 0", "step": 2, "loss": true}', "metrics.jsonl: 1 line has no number"),
        ('{"kind": "step", "phase": "stack 0", "step": -1, "loss": 1}', "metrics.jsonl: 1 line has no number"),
        ('{"kind": "validation", "phase": "stack 0", "loss": 1}', "metrics.jsonl: 1 line has no number"),
        ('{"kind": "likelihood", "depth": 1}', "metrics.jsonl: 1 line has no number"),
    ],
)
def test_a_line_that_is_no_measurement_is_a_gap(run, line, gap):
    """It is counted and left out; the curves are as they were without it."""
    before = read_run(run)
    (run / "metrics.jsonl").write_text(line + "\n" + (run / "metrics.jsonl").read_text())
    found = read_run(run)
    assert len(found.gaps) == 1
    assert found.gaps[0].startswith(gap)
    assert [list(phase.curves["loss"].points()) for phase in found.phases] == [
        list(phase.curves["loss"].points()) for phase in before.phases
    ]


def test_kinds_of_a_later_version_are_passed_over(run):
    """A line that says something new is nobody's fault."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "weather", "rain": 1}\n')
    assert read_run(run).gaps == []


def test_bad_steps_and_spikes_of_a_phase_on_its_way_are_counted(run):
    """Of one that is done they are as progress.json has them."""
    (run / "finished.json").unlink()
    (run / "progress.json").write_text('{"phases": [], "metrics": 0}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "bad_step", "phase": "stack 2", "step": 4, "reason": "the loss is nan"}\n')
        file.write('{"kind": "loss_spike", "phase": "stack 2", "step": 5, "loss": 9.5, "mean": 3.0}\n')
    phase = read_run(run).phases[2]
    assert (phase.bad_steps, phase.loss_spikes, list(phase.curves["bad"].steps)) == (1, 1, [4.0])
    assert list(phase.curves["loss_spike"].points()) == [(5.0, 9.5)]


@pytest.mark.parametrize("name", ["plan.json", "finished.json", "environment.json", "config.toml", "metrics.jsonl"])
@pytest.mark.parametrize("how", ["missing", "cut", "binary", "link", "pipe", "folder", "huge"])
def test_a_file_that_can_not_be_read_is_one_gap(tmp_path, run, name, how):
    """The rest is still there, the gap says which file and why, and nothing outside the directory is read."""
    path, content = run / name, (run / name).read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 3 * 2])
    elif how == "binary":
        path.write_bytes(b"\xff\xfe\x00\x01" * 99)
    elif how == "link":
        (tmp_path / "secret").write_text('{"kind": "step", "phase": "password", "step": 1, "loss": 1}')
        path.symlink_to(tmp_path / "secret")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "huge":
        with path.open("wb") as file:
            file.truncate(65 << 20)
    found = read_run(run)
    if (name, how) == ("finished.json", "missing"):
        assert found.state.startswith("not finished")
    elif (name, how) == ("metrics.jsonl", "cut"):
        assert found.gaps == []
    else:
        assert any(gap.startswith(f"{name}: ") for gap in found.gaps)
    assert len({gap.partition(":")[0] for gap in found.gaps}) <= 1
    assert "password" not in repr(found)
    assert [phase.name for phase in found.phases] == ["stack 0", "stack 1", "stack 2"]


def test_a_file_that_was_changed_since_is_shown_and_said(changed):
    """The page is what the file says, with a warning."""
    found = read_run(changed("plan.json", lambda plan: plan["notes"].append("mine"), sealed=False))
    assert found.notes[-1] == "mine"
    assert found.gaps == ["plan.json: damaged; its checksum isn't the one in manifest.json. It is shown as it is."]


def test_a_manifest_that_is_none_is_a_gap(run):
    """Then no checksum can be compared."""
    (run / "manifest.json").write_text("{")
    (gap,) = read_run(run).gaps
    assert gap.startswith("manifest.json: not a manifest: JSONDecodeError")
    assert gap.endswith("no checksum was compared")


@pytest.mark.parametrize("name", ["plan.json", "finished.json", "environment.json"])
def test_a_file_of_a_later_version_or_of_a_liar_is_read_all_the_same(run, name):
    """Any value of a file replaced by another; what comes out has no control characters."""
    for lie in lies((run / name).read_text(), name):
        (run / name).write_text(lie)
        found = read_run(run)
        assert any(gap.startswith(name) for gap in found.gaps)
        assert "\\x1b" not in repr(found)
        assert "\\u202e" not in repr(found)
        assert found.state


def test_what_is_nested_beyond_reason_is_cut(run):
    """However deep it is, it ends in neither a traceback nor a stack overflow."""
    config, environment = (run / "config.toml").read_text(), json.loads((run / "environment.json").read_text())
    for depth in (29, 200, 350, 450, 900, 5000):
        nest = "[" * depth + "]" * depth
        (run / "config.toml").write_text(f"deep = {nest}\n{config}")
        (run / "environment.json").write_text(json.dumps(environment)[:-1] + f', "deep": {nest}}}')
        found = read_run(run)
        assert len(repr(found)) < 100_000


def test_labels_differ(tmp_path, finished):
    """Runs in directories of one name are told apart by their paths."""
    shutil.copytree(finished, tmp_path / "tiny")
    labels = [run.label for run in read_runs([finished, tmp_path / "tiny", tmp_path / "tiny"])]
    assert len(set(labels)) == 3
    assert all("tiny" in label for label in labels)


@pytest.mark.parametrize("bound", ['"nan"', "NaN", '"inf"'])
def test_a_whole_rack_without_a_bound_has_none(run, bound):
    """A bound that is no number is a gap, and no other depth's stands in its place; a shallower one is left out."""
    written, before = (run / "metrics.jsonl").read_text().splitlines(), read_run(run)
    assert len(before.likelihoods) == 3
    for depth, left in ((3, []), (1, before.likelihoods[1:])):
        harmed = [
            re.sub(r'"nats_per_token": [\d.]+', f'"nats_per_token": {bound}', line, count=1)
            if f'"depth": {depth},' in line
            else line
            for line in written
        ]
        (run / "metrics.jsonl").write_text("\n".join(harmed) + "\n")
        found = read_run(run)
        assert found.likelihoods == left
        assert found.gaps == ["metrics.jsonl: 1 line has no number where one belongs"]


def test_a_perplexity_beyond_floats_is_no_smaller_one():
    """exp(1000) is more than any number that could stand for it as a bound."""
    found = Likelihood(1, 1000.0, None, None, None, ())
    assert found.perplexity == math.inf
