import json
import math
import random
from collections.abc import Callable

import pytest
import torch

from stackwise_core.engine.events.events import BadStep, StepDone
from stackwise_core.engine.loop.loss_course import SETTLED, LossCourse
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.rack.not_finite import first_not_finite
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from tests.tiny import Ran, run_tiny

ONE = {"rack.stacks": 1, "training.steps_per_stack": 8}


def spoil(monkeypatch, bad: Callable[[int], float]) -> list[dict[str, torch.Tensor]]:
    """Multiply each step's losses by a number; gives the weights that each step begins with."""
    weights: list[dict[str, torch.Tensor]] = []
    weighted_loss = TrainingStep.weighted_loss

    def spoilt(step: TrainingStep, *arguments):
        weights.append({name: each.detach().clone() for name, each in step.named})
        return weighted_loss(step, *arguments) * bad(len(weights))

    monkeypatch.setattr(TrainingStep, "weighted_loss", spoilt)
    return weights


def test_a_step_without_a_finite_loss_is_left_out_and_counted(tmp_path, monkeypatch):
    """No weight is changed by it; the event, the phase's result and the metrics say so."""
    weights = spoil(monkeypatch, lambda step: math.nan if step in (3, 4) else 1.0)
    ran = run_tiny(tmp_path, ONE)
    for before, after, changed in ((2, 3, True), (3, 4, False), (4, 5, False), (5, 6, True)):
        pairs = zip(weights[before - 1].values(), weights[after - 1].values(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs) is changed
    bad = [event for event in ran.events if isinstance(event, BadStep)]
    assert [(event.step, event.reason) for event in bad] == [(3, "the loss is nan"), (4, "the loss is nan")]
    assert [event.step for event in ran.events if isinstance(event, StepDone)] == [1, 2, 5, 6, 7, 8]
    assert ran.result.phases[0].bad_steps == 2
    lines = [json.loads(line) for line in (ran.directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "bad_step"] == [3, 4]


def test_a_gradient_that_is_not_finite_is_found_where_it_is(tmp_path, monkeypatch):
    """The first weight whose gradient isn't finite is named, though the loss is."""
    monkeypatch.setattr("stackwise_core.engine.loop.running_phase.MOST_OVERFLOWS", 0)

    def before(ran: Ran) -> None:
        place = ran.engine.placement.place

        def placed(*arguments, **options) -> None:
            place(*arguments, **options)
            weight = ran.engine.placement.stack(0).layers[0].mlp.up_proj.weight
            weight.register_hook(lambda gradient: gradient * math.inf)

        monkeypatch.setattr(ran.engine.placement, "place", placed)

    with pytest.raises(StackwiseError, match=r"first in stacks\.0\.layers\.0\.mlp\.up_proj\.weight"):
        run_tiny(tmp_path, ONE | {"training.max_bad_steps": 0}, before)


def test_too_many_in_a_row_stop_the_run_at_its_last_good_checkpoint(tmp_path, monkeypatch):
    """The message says phase, stack, step and batch; the newest checkpoint has the weights before the first bad one."""
    weights = spoil(monkeypatch, lambda step: math.inf if step > 4 else 1.0)
    with pytest.raises(StackwiseError) as raised:
        run_tiny(tmp_path, ONE | {"training.max_bad_steps": 2, "checkpoint.steps": 1})
    message = str(raised.value)
    assert 'phase "stack 0" (stack 0), step 7 of 8, batch of sequences ' in message
    assert "the loss is inf. It is number 3 of bad steps in a row." in message
    run = RunDirectory(tmp_path / "runs" / "tiny")
    _, kept = run.read_checkpoint(run.checkpoints()[-1])
    assert all(torch.equal(kept[f"rack.{name}"], each.cpu()) for name, each in weights[4].items())
    assert not all(torch.equal(kept[f"rack.{name}"], each.cpu()) for name, each in weights[3].items())


def test_bad_steps_that_are_not_in_a_row_do_not_stop_a_run(tmp_path, monkeypatch):
    """A good step between them begins the count anew."""
    spoil(monkeypatch, lambda step: math.nan if step % 2 else 1.0)
    ran = run_tiny(tmp_path, ONE | {"training.max_bad_steps": 1})
    assert ran.result.phases[0].bad_steps == 4


def test_a_phase_of_bad_steps_alone_is_no_phase(tmp_path, monkeypatch):
    """However few steps it has: nothing was trained."""
    spoil(monkeypatch, lambda step: math.nan)
    with pytest.raises(StackwiseError, match="no step of it had a finite loss and gradient"):
        run_tiny(tmp_path, ONE)


def test_a_spike_stands_out_and_noise_does_not():
    """Of a noisy course only what is far above it is a spike, each time, and not what is far below."""
    course, noise = LossCourse(), random.Random(0)
    assert not any(course.spikes(3 + noise.gauss(0, 0.3)) for _ in range(10 * SETTLED))
    assert course.mean == pytest.approx(3, abs=0.2)
    assert [course.spikes(loss) for loss in (9.0, 3.0, 9.0, -3.0)] == [True, False, True, False]


def test_spikes_are_told_and_counted(tmp_path, monkeypatch):
    """A loss of many times the others' is in the metrics with the mean before it."""
    spoil(monkeypatch, lambda step: 30.0 if step == SETTLED + 5 else 1.0)
    changes = {"training.steps_per_stack": SETTLED + 10, "rack.stacks": 1, "training.weighting": "mean"}
    ran = run_tiny(
        tmp_path, changes | {"training.block_lr": 1e-4, "mask_schedule": {"use": "constant", "fraction": 0.5}}
    )
    assert ran.result.phases[0].loss_spikes == 1
    lines = [json.loads(line) for line in (ran.directory / "metrics.jsonl").read_text().splitlines()]
    (spike,) = (line for line in lines if line["kind"] == "loss_spike")
    assert spike["step"] == SETTLED + 5
    assert spike["loss"] > 10 * spike["mean"]


def test_a_run_that_gives_up_says_where_numbers_stop_being_finite(tmp_path):
    """The stack and the weight are named after the loss."""

    def before(ran: Ran) -> None:
        place = ran.engine.placement.place

        def placed(*arguments, **options) -> None:
            place(*arguments, **options)
            ran.engine.placement.stack(0).layers[0].mlp.up_proj.weight.data[2, 3] = math.nan

        ran.engine.placement.place = placed

    with pytest.raises(StackwiseError, match=r"the loss is nan: stack 0, layers\.0\.mlp\.up_proj\.weight isn't finite"):
        run_tiny(tmp_path, ONE | {"training.max_bad_steps": 0}, before)


def test_a_trunk_that_is_not_finite_makes_no_boundary(tmp_path):
    """It is named when its boundary is made, however that is stored: scaled formats would make numbers of NaN."""

    def before(ran: Ran) -> None:
        place = ran.engine.placement.place

        def placed(phase, **options) -> None:
            place(phase, **options)
            if phase.frozen_prefix:
                ran.engine.placement.stack(0).layers[0].mlp.up_proj.weight.data[2, 3] = math.nan

        ran.engine.placement.place = placed

    changes = {"rack.stacks": 2, "training.steps_per_stack": 1, "cache_backend": {"use": "memory", "dtype": "int8"}}
    with pytest.raises(
        StackwiseError, match=r"^stack 0, layers\.0\.mlp\.up_proj\.weight isn't finite: nan at \[2, 3\]"
    ):
        run_tiny(tmp_path, changes, before)


@pytest.mark.parametrize("computed", ["fp16", "fp32"])
def test_an_overflow_in_fp16_is_told_what_helps(tmp_path, computed):
    """Weights that are finite give hidden states that aren't, which fp16 explains and fp32 doesn't."""
    active = {"use": "fp16", "cpu_compute": "fp16"} if computed == "fp16" else {"use": "fp32"}
    ran = run_tiny(tmp_path, {"rack.stacks": 1, "training.steps_per_stack": 1, "precision": {"active": active}})
    forward = ran.engine.forward
    largest = 6e4 if computed == "fp16" else 3e38
    with torch.no_grad():
        for weight in (
            forward.placement.stack(0).layers[0].mlp.up_proj.weight,
            forward.placement.stack(0).layers[0].mlp.gate_proj.weight,
        ):
            weight.copy_(largest * weight.sign())
    draws = ran.engine.training_drawer(ran.plan.phases[0]).draw(range(4), 0)
    found = first_not_finite(forward, (0,), draws)
    assert found.startswith("what leaves stack 0, whose weights are all finite, isn't finite: ")
    assert ("It computes in fp16" in found) is (computed == "fp16")
