import pytest
import torch
from attrs import evolve

from stackwise_core.engine.estimates.memory_estimate import CUBLAS, largest_moment, pass_of, phase_memory
from stackwise_core.engine.estimates.parameter_count import trainable_parameters
from stackwise_core.engine.phases.phase_steps import largest_batch, largest_predicted_share
from stackwise_core.engine.phases.plan_checks import resolve_objective
from stackwise_core.engine.phases.setup import set_up
from tests.tiny import tiny_config

MID = {"rack": {"stacks": 4, "blocks_per_stack": 4, "d_model": 1024, "n_heads": 16, "d_ff": 2816}}
MID |= {"data.seq_len": 1024, "training.batch_size": 16, "trainer_mode": {"use": "end_to_end"}}
LARGE_RACK = {
    "vocab_size": 129_282,
    "stacks": 2,
    "blocks_per_stack": 1,
    "d_model": 8192,
    "n_heads": 64,
    "n_kv_heads": 8,
    "d_ff": 28672,
}
LARGE = {"rack": LARGE_RACK, "data.seq_len": 2048, "training.batch_size": 4}
BF16 = {"precision": {"active": "bf16", "trunk": "nf4"}}
MEASURED = {
    # Peaks of torch.cuda.max_memory_allocated on an H200 with torch 2.11. All of a pass's logits were in memory, and in
    # the last two attention was under a mask: with grouped queries torch then holds weights for each head and pair.
    "end to end, eager, one document a row": (MID, 0, {}, 14.6e9),
    "end to end, each block compiled": (MID, 0, {"compiled": True}, 12.5e9),
    "70B shape, the first stack with both ends": (LARGE, 0, None, 49.2e9),
    "70B shape, the second stack over an nf4 trunk": (LARGE, 1, None, 36.7e9),
}


def under_a_mask(spec, one):
    """Bytes that attention kept then beyond today's: its weights, and q, and k and v for each head, in fp32."""
    keys = spec.n_kv_heads * spec.head_dim
    then = 4 * spec.n_heads * spec.seq_len + 3 * 4 * spec.d_model + 2 * spec.d_model
    return one.tokens * (then - 2 * (2 * spec.d_model + 2 * keys) - 4 * spec.n_heads)


def on_cuda(tmp_path, changes):
    """A setup as it is on a CUDA device, with a text that fills its batches, and its phases."""
    text = tmp_path / "text.txt"
    text.write_text("In the beginning was the word. " * 3000)
    setup = set_up(*tiny_config(tmp_path, changes | {"data.corpus": str(text)}))
    setup = evolve(setup, device=torch.device("cuda"))
    training, implementations = setup.config.training, setup.implementations
    phases = implementations.mode.plan(setup.spec, training.budget)
    return setup, [resolve_objective(each, setup.noise, training, implementations.objective) for each in phases]


def memory_of(setup, phase, streams=False, **changes):
    return phase_memory(phase, {}, trainable_parameters(phase, setup), 0, setup, streams=streams, **changes)


@pytest.mark.parametrize("case", MEASURED)
def test_the_estimate_for_a_cuda_device_is_what_one_measured(tmp_path, case):
    """Within a tenth, by what the compiler kept, and attention then."""
    changes, place, how, measured = MEASURED[case]
    setup, phases = on_cuda(tmp_path, changes | BF16)
    phase, tokens = phases[place], largest_batch(setup) * setup.spec.seq_len
    one = evolve(pass_of(phase, tokens, largest_predicted_share(phase, setup), setup), rows=None, **(how or {}))
    moment = largest_moment(phase, setup.spec, one, setup, trainable=trainable_parameters(phase, setup))
    memory = memory_of(setup, phase)
    planned = memory.weights + memory.optimizer + CUBLAS + moment.total
    planned += under_a_mask(setup.spec, one) if how is None else 0
    assert planned == pytest.approx(measured, rel=0.1)
    if how == {}:
        assert memory.total == planned


def test_a_device_of_its_own_holds_no_process_and_no_boundaries(tmp_path):
    """Host memory does; on a CPU both are in the one memory that there is."""
    setup, phases = on_cuda(tmp_path, {"training.window": 64})
    on_cpu = evolve(setup, device=torch.device("cpu"))
    there, here = (phase_memory(phases[1], {}, 1, 1000, each, streams=False) for each in (setup, on_cpu))
    assert (there.process, there.boundaries) == (CUBLAS, 0)
    assert here.process > 50e6
    assert here.boundaries >= 1000
    assert there.weights == here.weights


@pytest.mark.parametrize("passes", [1, 4])
def test_gradients_wait_for_the_activations_to_go(tmp_path, passes):
    """In a step of one pass they come into being as activations go; those of an earlier pass are there all along."""
    sizes = {"rack.d_model": 64, "rack.blocks_per_stack": 2, "training.batch_size": 64}
    setup, (first, *_) = on_cuda(tmp_path, sizes | {"training.gradient_accumulation": passes})
    trainable = trainable_parameters(first, setup)
    tied = 4 * setup.spec.vocab_size * setup.spec.d_model  # has a second gradient, or is the only one so far
    memory = memory_of(setup, first)
    assert memory.activations > 4 * trainable
    assert memory.gradients in ({0, tied} if passes == 1 else {4 * trainable + tied})


def test_checkpointed_activations_are_those_of_one_stack(tmp_path):
    """And between stacks the residual stream."""
    wide = {"rack.d_model": 64, "rack.stacks": 8, "trainer_mode": {"use": "end_to_end"}}
    kept = []
    for more in ({}, {"training.activation_checkpointing": True}):
        setup, (phase,) = on_cuda(tmp_path, wide | more)
        kept.append(memory_of(setup, phase).activations)
    assert kept[1] < 0.5 * kept[0]
