import pytest

from stackwise_cache.disk import Disk
from stackwise_cache.memory import Memory
from stackwise_cache.options import DiskOptions, MemoryOptions
from stackwise_core.engine.plan import store_rates
from stackwise_core.engine.plan.store_rates import measure_store
from stackwise_core.interfaces.cache_backend import Layout

LAYOUT = Layout(tokens=64, d_model=32, dtype="bf16")


@pytest.mark.parametrize("backend", [Memory(MemoryOptions()), Disk(DiskOptions())], ids=["memory", "disk"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "int8", "int4"])
def test_rates_are_of_a_store_that_leaves_nothing(backend, dtype, tmp_path):
    """Bytes a second in each format, in a folder that needn't be there, where nothing is left."""
    rates = measure_store(backend, Layout(tokens=64, d_model=32, dtype=dtype), tmp_path / "runs" / "not yet")
    assert rates.written > 1e3
    assert rates.read > 1e3
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_measured_once(tmp_path, monkeypatch):
    """For the same options, layout and place; others are measured anew."""
    measured = []
    monkeypatch.setattr(store_rates, "_rates", lambda backend, layout, place: measured.append(layout) or object())
    first = measure_store(Disk(DiskOptions()), LAYOUT, tmp_path)
    assert measure_store(Disk(DiskOptions()), LAYOUT, tmp_path) is first
    for other in (Disk(DiskOptions(shard_entries=3)), Memory(MemoryOptions())):
        assert measure_store(other, LAYOUT, tmp_path) is not first
    assert len(measured) == 3


def test_where_no_store_can_be_there_is_no_rate(tmp_path):
    """A backend that can't write here says so when the run begins, not while it is measured."""

    class Full(Disk):
        def open(self, directory, layout, capacity):
            raise OSError(28, "No space left on device")

    assert measure_store(Full(DiskOptions()), LAYOUT, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
