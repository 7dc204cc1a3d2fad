"""Runs that are streamed, trunk and stacks that train, and what the plan says of it."""

import pytest
import torch
from attrs import evolve

from stackwise_core.config.changes import with_choices_of
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.phases.setup import WINDOW, resolved_chunk, set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.plan.plan_limits import check_memory
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.rack.stack_loader import StackLoader
from stackwise_core.errors import UsageError
from stackwise_core.options import ByteSize
from tests.tiny import run_tiny, tiny_config

LORA = {"use": "lora", "rank": 2, "dropout": 0.1}
RUNS = {
    "cached on disk": {"cache_backend": {"use": "disk", "shard_entries": 16}},
    "made anew": {"cache_backend": None, "training.window": 64},
    "copies in bf16": {"precision": {"active": "bf16"}, "trainer_mode": {"use": "blockwise", "start": "copy"}},
    "nf4 and adapters": {
        "precision": {"active": "fp32", "trunk": "nf4"},
        "adapter": {"stack": LORA},
        "training.epochs_per_stack": 1,
    },
    "validated, fused": {
        "trainer_mode": {"use": "fused"},
        "evaluation": {"every": 7, "sequences": 20},
        "training.window": 40,
    },
    "a finale of all": {"trainer_mode": {"use": "progressive", "finale": 0.3}},
    "clm": {"objective": "clm", "rack.attention": "causal", "training.masks_per_sample": 1},
    "end to end": {"trainer_mode": {"use": "end_to_end"}},
    "end to end, in host memory": {"trainer_mode": {"use": "end_to_end"}, "training.offload": "memory"},
    "tied ends, several passes a step": {
        "trainer_mode": {"use": "end_to_end"},
        "training.batch_size": 4,
        "training.gradient_accumulation": 3,
        "evaluation": {"every": 5, "sequences": 20},
    },
    "a head of its own, time as an input": {
        "trainer_mode": {"use": "end_to_end"},
        "rack.tie_embeddings": False,
        "training.time": "input",
        "precision": {"active": "bf16"},
        "training.head": "trains",
    },
    "prepended below frozen stacks": {"trainer_mode": {"use": "progressive", "building": "prepend"}},
    "fused, trainable": {"trainer_mode": {"use": "fused", "fusion": "trainable"}, "training.masks": "resampled"},
    "all but one join at once, as copies": {
        "trainer_mode": {"use": "progressive", "trunk": "trains", "growth": "all", "start": "copy"},
        "training.course": "run",
    },
    "hierarchical": {"trainer_mode": {"use": "fused", "fusion": "hierarchical", "start": "copy"}},
    "one of several trains": {"trainer_mode": {"use": "end_to_end", "scope": "stackwise", "cycles": 2}},
    "adapters with dropout over nf4": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.3},
        "precision": {"active": "fp32", "trunk": "nf4"},
        "adapter": {"stack": LORA, "trunk": LORA},
        "training.offload": "memory",
    },
    "masters restored from int8": {
        "trainer_mode": {"use": "fused", "fusion": "trainable", "restore": True},
        "precision": {"active": "fp32", "trunk": "int8"},
    },
    "each stack clipped by itself": {
        "trainer_mode": {"use": "end_to_end"},
        "training.clip": "stack",
        "training.max_grad_norm": 0.05,
        "training.gradient_accumulation": 2,
    },
    "adapters clipped by stack, with buffers in the trunk": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.3},
        "precision": {"active": "fp32", "trunk": "int8"},
        "adapter": {"stack": LORA, "trunk": LORA},
        "training.clip": "stack",
        "training.offload": "memory",
    },
    "moments in 8 bits": {
        "trainer_mode": {"use": "end_to_end"},
        "optimizer": {"use": "adamw_8bit"},
        "rack.d_model": 64,  # large enough for matrices whose moments are in 8 bits
        "rack.d_ff": 128,
    },
}


@pytest.fixture
def most_resident(monkeypatch) -> list[int]:
    """How many stacks are in memory whenever one computes."""
    counts, through = [], Forward.through

    def counted(forward, index, hidden, context):
        counts.append(sum(stack in forward.placement for stack in range(forward.placement.spec.stacks)))
        return through(forward, index, hidden, context)

    monkeypatch.setattr(Forward, "through", counted)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_streamed_run_has_the_bits_of_one_in_memory(tmp_path, run, most_resident):
    """Losses, weights, validation and likelihoods; of the stacks one that trains and one that doesn't are in memory."""
    changes = {"rack.stacks": 4, "training.epochs_per_stack": 2, "training.offload": "disk"} | RUNS[run]
    checkpointing = {"training.residency": "memory", "training.activation_checkpointing": True}
    resident = run_tiny(tmp_path / "memory", changes | checkpointing)
    assert max(most_resident) == 4
    most_resident.clear()
    streamed = run_tiny(tmp_path / "stream", changes | {"training.residency": "stream"})
    assert max(most_resident) <= 2
    if all(len(planned.phase.live_path) > 1 for planned in streamed.plan.phases):
        assert max(most_resident) == 1
    assert streamed.losses == resident.losses
    for file in resident.directory.rglob("*.safetensors"):
        assert (streamed.directory / file.relative_to(resident.directory)).read_bytes() == file.read_bytes()
    assert streamed.result.likelihoods == resident.result.likelihoods
    assert [planned.streams for planned in streamed.plan.phases] == [
        bool(planned.phase.frozen_prefix) for planned in streamed.plan.phases
    ]
    assert [planned.offload for planned in streamed.plan.phases] == [
        changes["training.offload"] if len(planned.phase.live_path) > 1 else None for planned in streamed.plan.phases
    ]
    assert not any(planned.streams or planned.offload for planned in resident.plan.phases)
    assert not list(streamed.directory.glob("offload*"))


@pytest.mark.slow
def test_a_finished_run_is_evaluated_as_it_was_trained(tmp_path, most_resident):
    """With one stack at a time where it was streamed, to the same numbers."""
    ran = run_tiny(tmp_path, {"training.residency": "stream", "training.epochs_per_stack": 1})
    most_resident.clear()
    finished = FinishedRun.open(ran.directory)
    likelihoods = finished.likelihoods(finished.evaluation(*finished.text(None)))
    assert tuple(likelihoods) == ran.result.likelihoods
    assert max(most_resident) == 1


def plan_of(tmp_path, changes):
    return make_plan(set_up(*tiny_config(tmp_path, changes)))


def test_left_to_itself_a_trunk_is_streamed_where_a_window_repays_the_reading(tmp_path, monkeypatch):
    """Or where the budget doesn't hold it; what is asked for outright is done."""
    # The corpus has 100 sequences of 32 tokens, and so has its largest window.
    monkeypatch.setattr("stackwise_core.engine.plan.residency.LOADED_FOR", 100 * 32)
    auto = {
        "training.residency": "auto",
        "training.chunk_tokens": 16 * 32,
        "rack": {"stacks": 8, "d_model": 256, "n_heads": 2},
    }

    def streams(changes) -> bool:
        return plan_of(tmp_path, auto | changes).phases[-1].streams

    assert streams({"training.window": 1024})
    assert not streams({"training.window": 64})
    last = plan_of(tmp_path, auto | {"training.window": 64}).phases[-1].boundary
    assert last.streamed < last.resident
    between = (last.streamed + last.resident) // 2
    assert streams({"training.window": 64, "training.memory_budget": between})
    assert not streams({"training.window": 1024, "training.residency": "memory"})
    assert streams({"training.window": 64, "training.residency": "stream"})


def test_a_streamed_trunk_doesn_t_count_in_the_plan_s_memory(tmp_path):
    """Eight stacks more cost nothing, and in memory they cost their bytes."""
    shape = {"d_model": 128, "n_heads": 2, "blocks_per_stack": 1}
    last = [plan_of(tmp_path, {"rack": {"stacks": stacks, **shape}}).phases[-1] for stacks in (4, 12)]
    # The process itself grows between the two plans.
    streamed, resident = (
        [getattr(each.boundary, way) - each.memory.process for each in last] for way in ("streamed", "resident")
    )
    assert streamed[0] == streamed[1]
    assert resident[1] - resident[0] == 8 * 4 * plan_of(
        tmp_path, {"rack": {"stacks": 4, **shape}}
    ).spec.stack_parameters(0)


def test_the_window_is_halved_until_the_budget_holds_it(tmp_path):
    """Its boundaries take a quarter of the budget at most, and it holds a step in any case; what is set stands."""

    def window(budget, **more):
        config, registry = tiny_config(tmp_path, {"training.memory_budget": budget, **more})
        return set_up(config, registry).window

    sequence = 4 * 32 * 32
    assert window("1 TB") == WINDOW
    assert window(4 * sequence * WINDOW) == WINDOW
    assert window(4 * sequence * WINDOW - 1) == WINDOW // 2
    assert window(4 * sequence * 100) == 64
    assert window(1) == 8  # a batch
    assert window(1, **{"training.gradient_accumulation": 5}) == 40
    assert window(1, **{"training.window": 300}) == 300


def test_a_chunk_is_as_large_as_the_device_needs(tmp_path):
    """4096 tokens, or on a GPU 65,536: fewer that divide a window, or of a wide rack; what is set stands."""

    def chunk(device, window=1024, **changes):
        config, _ = tiny_config(tmp_path, {"data.seq_len": 1024, **changes})
        return resolved_chunk(config, window, torch.device(device))

    assert (chunk("cpu"), chunk("cuda")) == (4096, 65_536)
    assert (chunk("cuda", 96), chunk("cuda", 16), chunk("cuda", 1), chunk("cpu", 1)) == (32_768, 16_384, 4096, 4096)
    wide = {"rack": {"stacks": 2, "d_model": 8192, "n_heads": 64, "d_ff": 28_672}}
    assert (chunk("cuda", **wide), chunk("cpu", **wide)) == (8192, 4096)
    assert {chunk(device, **{"training.chunk_tokens": 100}) for device in ("cpu", "cuda")} == {100}


def test_sizes_that_were_chosen_are_in_the_run_s_configuration(tmp_path):
    """So that a run that goes on has the same window and chunks, however much memory is free then, on any device."""
    ran = run_tiny(tmp_path, {"training.memory_budget": "8 GB", "training.epochs_per_stack": 1})
    config = (ran.directory / "config.toml").read_text()
    assert f"window = {WINDOW}" in config
    assert "chunk_tokens = 4096" in config
    asked, _ = tiny_config(tmp_path)
    here = evolve(ran.setup.config, training=evolve(ran.setup.config.training, chunk_tokens=8192))
    assert with_choices_of(here, asked).training.chunk_tokens == 8192


def test_a_plan_beyond_the_budget_is_refused(tmp_path):
    """With the phase, what takes most, and what helps; without a budget nothing is refused."""
    wide = {"rack": {"stacks": 8, "d_model": 256, "n_heads": 2}, "training.window": 64}
    plan = plan_of(tmp_path, wide)
    needed = plan.phases[-1].memory.total
    check_memory(plan, None)
    check_memory(plan, ByteSize(needed + 1))
    with pytest.raises(UsageError, match=r'Phase "stack 7" needs .* training.residency = "stream" needs less'):
        check_memory(plan, ByteSize(needed - 1))
    streamed = plan_of(tmp_path, wide | {"training.residency": "stream"})
    with pytest.raises(UsageError, match=r"for Python and torch, and .* is 1 MB\. A larger budget"):
        check_memory(streamed, ByteSize(10**6))
    config, registry = tiny_config(tmp_path, {"training.memory_budget": "1 MB"})
    setup = set_up(config, registry)
    with pytest.raises(UsageError, match="memory_budget is 1 MB"):
        Engine(setup, make_plan(setup), registry, lambda event: None)
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.slow
def test_streaming_gives_the_same_gradients_as_a_hand_written_loop(tmp_path):
    """The first step over a streamed trunk of two: the loss of the last stack, computed here from the tokens on."""
    seen = []

    def watch(ran):
        backward = TrainingStep.backward

        def first(self, step, seed, factor):
            numbers = backward(self, step, seed, factor)
            if self.phase.name == "stack 2" and not seen:
                draws = [batch.draws for batch in step.batches]
                seen.append((numbers.loss.item(), draws, [each.grad.clone() for _, each in self.named]))
            return numbers

        monkey.setattr(TrainingStep, "backward", first)

    with pytest.MonkeyPatch.context() as monkey:
        changes = {"training.residency": "stream", "cache_backend": {"use": "disk", "dtype": "fp32"}}
        ran = run_tiny(tmp_path, changes | {"training.max_grad_norm": 1e9}, before=watch)
    loss, step, gradients = seen[0]
    objective = ran.engine.objective(ran.plan.phases[2])
    masters, formats = Below(ran.engine.files, 2), ran.setup.implementations.formats
    placed = Placement(StackLoader(ran.setup.spec, formats, masters, 3, ran.setup.device), mask_id=256)
    fresh = Forward(placed, window=8)
    placed.load_written_ends()
    placed.place(ran.plan.phases[2].phase)
    (draws,) = step
    hidden = fresh.embed(0, draws.inputs, draws.fraction)
    for index in range(3):
        hidden = placed.stack(index)(hidden, fresh.context(draws.segments))
    masked = hidden.flatten(0, 1)[draws.masked]
    predicted = objective.predicted(draws)
    losses = fresh.losses(2, masked, draws.targets.to(fresh.device), objective.losses)
    again = objective.weighted_sum(losses, predicted) / objective.normaliser([predicted])
    again.backward()
    assert loss == pytest.approx(again.item(), rel=1e-6)
    for ours, (_, theirs) in zip(gradients, placed.trainable(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-7)


class Below:
    """A run's masters as they were before a stack was written."""

    def __init__(self, directory, stack):
        self._directory, self._stack = directory, stack

    def has_stack(self, index):
        return index < self._stack

    def __getattr__(self, name):
        return getattr(self._directory, name)
