import pytest
from attrs import evolve

from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan import compiling
from stackwise_core.engine.plan.compiling import SAVED, with_compiling, with_recorded_compiling
from stackwise_core.engine.plan.plan import make_plan
from tests.tiny import TinyRun, tiny_config

LONG = 1e5
"""Seconds of a phase that repays compiling."""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Plan a tiny run, whose phases take as long as is asked for, and decide what is compiled."""

    def planned(asked, seconds, changes=None, missing="", narrowest=1):
        monkeypatch.setattr(compiling, "missing_for_compiling", lambda device: missing)
        monkeypatch.setattr(compiling, "NARROWEST", {"cpu": narrowest})
        run = TinyRun.of(tmp_path, {"training.epochs_per_stack": 1} | (changes or {}))
        setup = evolve(run.setup, config=evolve(run.setup.config, run=evolve(run.setup.config.run, compile=asked)))
        return with_compiling([evolve(each, seconds=seconds) for each in run.plan.phases], setup)

    return planned


@pytest.mark.parametrize(
    ("asked", "seconds", "compiles"),
    [("auto", 1.0, False), ("auto", LONG, True), (True, 1.0, True), (False, LONG, False)],
)
def test_blocks_are_compiled_where_that_repays_or_is_asked_for(planned, asked, seconds, compiles):
    """By the seconds of all phases together, which it shortens."""
    phases, notes = planned(asked, seconds)
    assert [each.compiles for each in phases] == [compiles] * 3
    assert phases[0].seconds == pytest.approx(seconds * (1 - SAVED["cpu"] * compiles))
    assert bool(notes) is compiles


def test_narrow_racks_are_left_eager_however_long_they_train(planned):
    """Unless it is asked for, and then the plan's time is that of eager blocks."""
    assert not any(each.compiles for each in planned("auto", LONG, narrowest=256)[0])
    assert [(each.compiles, each.seconds) for each in planned(True, 1.0, narrowest=256)[0]] == [(True, 1.0)] * 3


def test_without_a_compiler_auto_leaves_blocks_and_says_so(planned):
    """Where compiling would have been worth it; otherwise there is nothing to say."""
    phases, (note,) = planned("auto", LONG, missing="there is no C++ compiler")
    assert not any(each.compiles for each in phases)
    assert "there is no C++ compiler" in note
    assert planned("auto", 1.0, missing="there is no C++ compiler")[1] == []


def test_what_cannot_be_compiled_is_left_and_named(planned, monkeypatch):
    """A frozen stack whose precision doesn't support it; the phases that train others are compiled all the same."""
    monkeypatch.setattr("stackwise_precision.floats.Bf16.compiles", False)
    phases, notes = planned(True, 1.0, {"precision": {"active": "fp32", "trunk": "bf16"}})
    assert [each.compiles for each in phases] == [True] * 3
    assert [round(1 - each.seconds, 3) for each in phases] == [0.1, 0.05, 0.033]
    assert "bf16" in notes[1]
    assert "stacks 0, 1" in notes[1]
    monkeypatch.setattr("stackwise_precision.floats.Fp32.compiles", False)
    phases, notes = planned(True, 1.0)
    assert not any(each.compiles for each in phases)
    assert len(notes) == 1


def test_a_resumed_run_is_compiled_as_it_began(tmp_path):
    """Whatever would be decided now."""
    config, registry = tiny_config(tmp_path, {"training.epochs_per_stack": 1})
    plan = make_plan(set_up(config, registry))
    began = evolve(plan, phases=tuple(evolve(each, compiles=True) for each in plan.phases)).file
    assert all(each.compiles for each in with_recorded_compiling(plan.phases, began))
    assert not any(each.compiles for each in with_recorded_compiling(plan.phases, plan.file))
