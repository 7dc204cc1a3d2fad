"""A step gives the device its work and goes on: nothing of it is read, and nothing is copied there blocking."""

from collections import Counter
from typing import Any

import pytest
import torch
from attrs import evolve
from torch.utils._python_dispatch import TorchDispatchMode

from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.loop.running_phase import RunningPhase
from stackwise_core.engine.loop.step_batches import StepBatches
from stackwise_core.engine.offload.host_memory import HostMemory
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.rack.number_range import NumberRange
from tests.tiny import run_tiny, tiny_config

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select", "unique")
"""Operators whose results the host needs, so that it waits for them."""


class Watched(TorchDispatchMode):
    """Counts of operators that make the host wait, while this is on."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        if name in READS:
            self.waits[name] += 1
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], result) if name == "_to_copy" else (args[1], args[0])
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if source.device != target.device and blocking:
                self.waits[f"{name} from {source.device} to {target.device}"] += 1
        return result


WAYS = {
    "from the tokens": {"trainer_mode": {"use": "end_to_end"}},
    "documents in a row": {"trainer_mode": {"use": "end_to_end"}, "data.seq_len": 64},
    "from a cache": {},
    "with checkpointing": {"trainer_mode": {"use": "end_to_end"}, "training.activation_checkpointing": True},
    "clipped by stack": {"trainer_mode": {"use": "end_to_end"}, "training.clip": "stack"},
    "several passes": {"trainer_mode": {"use": "end_to_end"}, "training.gradient_accumulation": 2},
    "streamed": {"trainer_mode": {"use": "end_to_end"}, "training.residency": "stream", "training.offload": "memory"},
    "scaled by fp16": {"trainer_mode": {"use": "end_to_end"}, "precision": {"active": "fp16"}},
    "a time input": {"trainer_mode": {"use": "end_to_end"}, "training.time": "input"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_reads_nothing_on_the_host(tmp_path, monkeypatch, way):
    """From a step's batches to its numbers, in every step but a phase's first, which may bring stacks."""
    watched: list[Watched] = []
    take_step = RunningPhase._take_step

    def watch(phase: RunningPhase, batches) -> None:
        with Watched() as mode:
            take_step(phase, batches)
        watched.append(mode)

    monkeypatch.setattr(RunningPhase, "_take_step", watch)
    run_tiny(tmp_path, {"training.steps_per_stack": 4, "rack.stacks": 2} | WAYS[way])
    assert len(watched) == 8
    assert all(mode.operators["mm"] > 10 for mode in watched)
    first = watched[:: 4 if len(WAYS[way]) == 0 else 8]
    assert [mode.waits for mode in watched if mode not in first] == [Counter()] * (8 - len(first))


class OnDevice(HostMemory):
    """An offload whose entries stay on the device, since nothing can be copied from one of shapes alone."""

    def write(self, entry, tensors) -> None:
        self._held[entry] = {name: each.detach().clone() for name, each in tensors.items()}


@pytest.mark.parametrize("way", ["from the tokens", "documents in a row", "several passes", "a time input"])
@pytest.mark.parametrize("streams", [False, True], ids=["in memory", "streamed"])
def test_nothing_is_copied_to_the_device_blocking(tmp_path, monkeypatch, way, streams):
    """On a device of shapes alone, from which nothing can be read, and to which every copy shows."""
    config, registry = tiny_config(tmp_path, WAYS[way] | {"rack.stacks": 2})
    setup = set_up(config, registry)
    plan = make_plan(setup)
    setup = evolve(setup, device=torch.device("meta"))
    engine = Engine(setup, plan, registry, lambda event: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which there is none of
    monkeypatch.setattr(NumberRange, "holds", lambda *_: True)  # looked at once, when a stack is brought
    (planned,) = plan.phases
    offload = OnDevice(setup.device) if streams else None
    engine.placement.place(planned.phase, offload=offload)
    phase = engine.phase(planned, None, lambda event: None, offload=offload)
    draws = [engine.training_drawer(planned).draw(range(at, at + 8), 0) for at in (0, 8)]
    batches = StepBatches.of(draws, 0, engine.objective(planned), torch.device("cpu"))
    phase.step.backward(batches, seed=0, factor=1.0)  # brings the stacks
    with Watched() as mode:
        numbers = phase.step.backward(batches, seed=0, factor=1.0)
    assert numbers.loss.device.type == "meta"
    assert mode.operators["_to_copy"] >= len(batches.batches) * len(batches.batches[0].host)
    assert mode.waits == Counter()


def test_the_watch_sees_what_waits():
    """A number that is read, positions of what is True, and a blocking copy to another device."""
    with Watched() as mode:
        float(torch.ones(3).sum())
        torch.ones(3).nonzero()
        torch.ones(3).to("meta")
        torch.ones(3).to("meta", non_blocking=True)
    assert mode.waits == {"_local_scalar_dense": 1, "nonzero": 1, "_to_copy from cpu to meta": 1}
