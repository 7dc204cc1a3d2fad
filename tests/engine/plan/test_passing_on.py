"""Steps that a phase leaves to the next one, at a plateau of its loss on held-out text."""

import pytest

from stackwise_core.engine.events.events import PhaseStarted, StepDone
from stackwise_core.engine.phases.learning_rate import learning_rate_factor
from stackwise_core.errors import UsageError
from stackwise_core.run_files.reading import read_run
from tests.interrupted_runs import break_everywhere
from tests.run_bits import bits
from tests.tiny import TinyRun, run_tiny

STILL = {
    "trainer_mode": {"use": "progressive", "trunk": "trains", "growth": "all", "start": "copy", "joins": "plateau"},
    "training.steps_per_stack": 8,
    "training.block_lr": 0.0,
    "training.embedding_lr": 0.0,
    "training.patience": 2,
    "evaluation.every": 1,
}
"""Nothing changes, so that the loss is at a plateau from the third validation on."""


@pytest.mark.slow
def test_the_next_phase_gets_what_is_left(tmp_path):
    """A phase takes its least share, passes the rest on, and the last one takes all of it, at a plateau or not."""
    ran = run_tiny(tmp_path, STILL)
    first, whole = ran.result.phases
    assert [planned.steps for planned in ran.plan.phases] == [12, 12]
    assert (first.steps, first.stopped_early, first.passed_on) == (3, True, 9)
    assert (whole.steps, whole.stopped_early, whole.passed_on) == (21, False, 0)
    started = [event for event in ran.events if isinstance(event, PhaseStarted)]
    assert [(event.first, event.planned.steps, event.planned.phase.begins) for event in started] == [
        (0, 12, 0),
        (3, 21, 3),
    ]
    shown = read_run(ran.directory)
    assert [(phase.steps, phase.planned_steps) for phase in shown.phases] == [(3, 3), (21, 21)]
    tokens = [sum(planned.tokens for planned in ran.plan.phases) * steps // 24 for steps in (3, 21)]
    assert [phase.tokens for phase in shown.phases] == tokens


@pytest.mark.slow
def test_a_phase_takes_its_least_share(tmp_path):
    """Whatever its loss does."""
    mode = STILL["trainer_mode"] | {"least": 0.5}
    assert [phase.steps for phase in run_tiny(tmp_path, STILL | {"trainer_mode": mode}).result.phases] == [6, 18]


@pytest.mark.slow
def test_a_least_share_is_of_a_phase_s_own_budget(tmp_path):
    """What others passed on to it doesn't count."""
    mode = {"use": "progressive", "trunk": "trains", "start": "copy", "joins": "plateau", "least": 0.5}
    ran = run_tiny(tmp_path, STILL | {"trainer_mode": mode, "training.steps_per_stack": 12})
    assert [planned.steps for planned in ran.plan.phases] == [12, 12, 12]
    assert [phase.steps for phase in ran.result.phases] == [6, 6, 24]


def test_the_plan_has_room_for_what_may_be_passed_on(tmp_path):
    """Boundaries of every step that a phase may get: with several draws a sample they are more than its own."""
    changes = {"trainer_mode": {"use": "blockwise"}, "rack.stacks": 2, "training.masks_per_sample": 8}
    changes |= {"cache_backend": {"use": "disk"}, "training.patience": 1, "evaluation.every": 1}
    own = TinyRun.of(tmp_path, changes).plan.phases[1]
    passing = changes | {"trainer_mode": {"use": "blockwise", "joins": "plateau", "least": 0.0}}
    longer = TinyRun.of(tmp_path, passing).plan.phases[1]
    assert longer.steps == own.steps
    assert longer.disk == pytest.approx(2 * own.disk, rel=0.1)


def test_an_adapter_s_own_phase_can_t_get_what_a_stack_leaves(tmp_path):
    """It would train for as long as the next stack should."""
    adapter = {"stack": {"use": "lora", "rank": 2}}
    changes = {"trainer_mode": {"use": "blockwise", "joins": "plateau"}, "adapter": adapter}
    with pytest.raises(UsageError, match=r'adapter\.attach = "freeze".*passes on'):
        run_tiny(tmp_path, STILL | changes)


@pytest.mark.slow
def test_one_course_goes_on_over_the_steps_that_were_taken(tmp_path):
    """No step of the schedule is left out or taken twice, and its decay is at the run's end."""
    changes = STILL | {"training.course": "run", "training.block_lr": 1e-6}
    ran = run_tiny(tmp_path, changes | {"training.patience": 1, "training.embedding_lr": 10.0})
    first, whole = ran.result.phases
    assert first.passed_on > 0
    assert first.steps + whole.steps == 24
    training = ran.setup.config.training
    found = [event.learning_rate for event in ran.events if isinstance(event, StepDone)]
    assert found == pytest.approx([1e-6 * learning_rate_factor(step, 24, training) for step in range(24)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["progressive", "blockwise"])
def test_a_run_resumes_with_the_same_decision(tmp_path, mode):
    """Broken off in each phase and between them, and planned anew each time, it ends with the same bits."""
    modes = {"progressive": STILL["trainer_mode"], "blockwise": {"use": "blockwise", "joins": "plateau"}}
    changes = STILL | {
        "trainer_mode": modes[mode],
        "training.steps_per_stack": 5,
        "training.embedding_lr": 10.0,
        "training.block_lr": 0.01,
        "training.patience": 1,
        "checkpoint.steps": 1,
    }
    undisturbed = run_tiny(tmp_path, changes)
    assert any(phase.passed_on for phase in undisturbed.result.phases)
    directory, lives, result = break_everywhere(tmp_path, changes)
    assert len(lives) > len(undisturbed.plan.phases)
    assert [(p.steps, p.passed_on) for p in result.phases] == [
        (p.steps, p.passed_on) for p in undisturbed.result.phases
    ]
    assert bits(directory) == bits(undisturbed.directory)


def test_a_plateau_needs_a_patience(tmp_path):
    """Without one nothing says what a plateau is."""
    with pytest.raises(UsageError, match=r'training\.patience: phase "stack 0" ends when its loss'):
        run_tiny(tmp_path, STILL | {"training.patience": None})
