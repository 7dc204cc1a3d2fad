import pytest
import torch
from attrs import evolve

from stackwise_core.engine.plan.device_room import cache_room, device_room, where_the_cache_is, window_bytes
from stackwise_core.options import ByteSize
from tests.tiny import TinyRun


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyRun:
    return TinyRun.of(tmp_path_factory.mktemp("tiny"), {"training.memory_budget": 0})


def with_room(tiny: TinyRun, extra: int, device: str = "cuda", **options):
    """The setup on a device whose memory budget leaves ``extra`` bytes to boundaries."""
    taken = max(planned.memory.total - planned.memory.boundaries for planned in tiny.plan.phases)
    config = tiny.setup.config
    config = evolve(config, training=evolve(config.training, memory_budget=ByteSize(taken + extra)))
    cache = tiny.setup.implementations.cache
    cache = type(cache)(evolve(cache.options, **options))
    cache.device = torch.device(device)
    implementations = evolve(tiny.setup.implementations, cache=cache)
    return evolve(tiny.setup, config=config, implementations=implementations, device=torch.device(device))


def test_a_window_has_its_room_before_the_cache(tiny):
    """The budget's rest after weights and activations is room, a window's first; a CPU's memory is one."""
    window = window_bytes(tiny.plan.phases, tiny.setup)
    assert window == len(tiny.setup.corpus.train) * 32 * 32 * 4
    for extra, room in ((window + 1000, 1000), (window - 1, 0), (-5, 0)):
        setup = with_room(tiny, extra)
        assert (device_room(tiny.plan.phases, setup), cache_room(tiny.plan.phases, setup)) == (max(extra, 0), room)
    assert device_room(tiny.plan.phases, with_room(tiny, 1000, "cpu")) == 0


def test_the_plan_says_where_the_cache_is(tiny):
    """How much of it is on the device, and how much in page-locked memory; nothing is said on a CPU."""
    phases, window = tiny.plan.phases, window_bytes(tiny.plan.phases, tiny.setup)
    most = max(planned.boundary.bytes for planned in phases if planned.boundary is not None)
    (all_of_it,) = where_the_cache_is(phases, with_room(tiny, window + most))
    assert all_of_it == f"Of the cache, {ByteSize(most)} are in the device's memory."
    for setup, there in ((with_room(tiny, window + 5000), 5000), (with_room(tiny, 0, device_memory=ByteSize(70)), 70)):
        (parted,) = where_the_cache_is(phases, setup)
        said = f"Of the cache, {ByteSize(there)} are in the device's memory, {ByteSize(most - there)} in page-locked"
        assert parted == f"{said} host memory."
    assert where_the_cache_is(phases, with_room(tiny, 0, "cpu")) == []
