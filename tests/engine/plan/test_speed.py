"""The estimate of time: from two measured speeds, by a formula that can be done by hand."""

import time

import pytest
import torch

from stackwise_core.engine.estimates.memory_estimate import step_activations
from stackwise_core.engine.phases.phase_steps import predicted_share
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan import speed as module
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.plan.speed import (
    ACTIVATION_PASSES,
    LARGEST,
    OPTIMIZER_BYTES,
    Speed,
    computes_in,
    measure_speed,
    phase_seconds,
)
from tests.tiny import tiny_config


def test_a_phase_takes_its_operations_and_what_they_move(tmp_path):
    """At known speeds; boundaries are made as fast as steps compute."""
    setup = set_up(*tiny_config(tmp_path, {"training.batch_size": 10}))
    first, second, _ = make_plan(setup).phases
    moves_nothing, computes_at_once = Speed(1e9, float("inf")), Speed(float("inf"), 1e9)
    assert first.step_flops == first.flops
    assert phase_seconds(first, setup, moves_nothing) == pytest.approx(first.flops / 1e9)
    assert second.step_flops < second.flops
    assert phase_seconds(second, setup, moves_nothing) == pytest.approx(second.flops / 1e9)
    kept = step_activations(first.phase, setup.spec, 320, predicted_share(first.phase, setup), setup)
    a_step = ACTIVATION_PASSES * kept + OPTIMIZER_BYTES * first.trainable_parameters
    # The corpus has 100 sequences, so that all steps have ten.
    assert phase_seconds(first, setup, computes_at_once) == pytest.approx(first.steps * a_step / 1e9, rel=0.01)


def test_the_shortest_of_a_few_batches_counts(monkeypatch):
    """Others may use the machine meanwhile; work that takes long is done twice and no more."""
    took = iter([9, 0.002, *(0.012 * batch for batch in (3, 1, 2, 5))])
    clock = [0.0]
    counted = []

    def perf_counter():
        return clock[0]

    def work():
        counted.append(True)
        if len(counted) == 1 or len(counted) == 2 or (len(counted) - 2) % 6 == 1:
            clock[0] += next(took)

    monkeypatch.setattr(time, "perf_counter", perf_counter)
    assert module._seconds(work, torch.device("cpu")) == pytest.approx(0.012 / 6)
    assert len(counted) == 2 + 4 * 6
    counted.clear()
    took = iter([9, 8])
    assert module._seconds(work, torch.device("cpu")) == 8
    assert len(counted) == 2


@pytest.mark.parametrize(("active", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_those_of_the_run(tmp_path, monkeypatch, active, dtype):
    """In the format that it computes in, of a block's shape up to a size, and once for each; no generator moves."""
    asked = []
    monkeypatch.setattr(module, "_operations", lambda *key: asked.append(key) or 1e9)
    wide = {"rack.d_ff": 1 << 20, "precision": {"active": active}, "training.batch_size": 8}
    setup, state = set_up(*tiny_config(tmp_path, wide)), torch.get_rng_state()
    measured = measure_speed(setup, computes_in(setup.implementations.formats.active, setup.device))
    most = LARGEST[setup.device.type]
    assert asked == [(setup.device, dtype, (256, 32, most), torch.get_num_threads())]
    assert measured.operations == 1e9
    assert measured.copied > 1e8
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_measured_once(tmp_path):
    """A second plan has the same numbers."""
    setup = set_up(*tiny_config(tmp_path))
    assert measure_speed(setup, torch.float32) == measure_speed(setup, torch.float32)
    assert measure_speed(setup, torch.float32).operations > 1e7
