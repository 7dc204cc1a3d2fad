import psutil
import pytest

from stackwise_core.engine.estimates.host_estimate import (
    host_memory,
    page_locked_bytes,
    reading_ahead,
    waiting_in_memory,
)
from stackwise_core.engine.estimates.memory_estimate import offloaded_bytes
from stackwise_core.engine.phases.phase_steps import largest_window
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.rack.rack import new_stack
from tests.tiny import tiny_config

STREAMED = {"trainer_mode": {"use": "end_to_end"}, "training.residency": "stream", "training.offload": "memory"}


@pytest.fixture
def streamed(tmp_path):
    """A setup, and its one phase."""
    setup = set_up(*tiny_config(tmp_path, STREAMED | {"rack.d_model": 48, "training.gradient_accumulation": 2}))
    return setup, setup.implementations.mode.plan(setup.spec, setup.config.training.budget)[0]


@pytest.mark.parametrize(("size", "taken"), [(1, 1), (512, 512), (513, 1024), (939_524_096, 1 << 30)])
def test_a_page_locked_tensor_takes_a_power_of_two(size, taken):
    """As torch's allocator for the host rounds it."""
    assert page_locked_bytes(size) == taken


def test_what_waits_is_rounded_tensor_by_tensor(streamed):
    """Weights, gradients and two moments of each, an input a stack and pass, and a gradient a pass."""
    setup, phase = streamed
    sizes = [tensor.numel() for tensor in new_stack(setup.spec, 0, seed=1).parameters()]
    of_a_batch = 4 * setup.spec.d_model * setup.spec.seq_len * setup.config.training.batch_size
    expected = 3 * 4 * sum(page_locked_bytes(4 * size) for size in sizes) + 2 * (3 + 1) * page_locked_bytes(of_a_batch)
    assert waiting_in_memory(phase, {}, setup) == expected
    assert offloaded_bytes(phase, {}, setup) < expected < 2 * offloaded_bytes(phase, {}, setup)


def test_a_host_holds_the_process_what_waits_the_boundaries_and_a_stack(tmp_path):
    """A window and a cache in memory; weights in full precision as long as they are read."""
    setup = set_up(*tiny_config(tmp_path, {"training.window": 32}))
    first, second, _ = setup.implementations.mode.plan(setup.spec, setup.config.training.budget)
    host, without_trunk = (host_memory(each, {}, 1000, setup, waits=70) for each in (second, first))
    assert host.process == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert (host.offloaded, without_trunk.boundaries) == (70, 1000)
    assert host.boundaries == 1000 + page_locked_bytes(largest_window(setup) * 4 * 32 * 32)
    assert host.reading == 4 * max(setup.spec.stack_parameters(1), setup.spec.embedding_parameters)
    assert host.total == host.process + 70 + host.boundaries + host.reading


def test_a_disk_is_read_into_three_buffers(streamed):
    """Each of them takes the largest entry."""
    setup, phase = streamed
    assert reading_ahead(phase, {}, setup) == 3 * page_locked_bytes(4 * setup.spec.stack_parameters(0))
