import math
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import Tensor

from stackwise_cache.disk import DiskStore
from stackwise_core.engine.boundary.activation_statistics import (
    ActivationMeter,
    ActivationStatistics,
    measure_store,
    sample,
)
from stackwise_core.engine.boundary.codec import decode, encode
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.testing.cache_backend import keys_of

LAYOUT = Layout(tokens=8, d_model=32, dtype="fp32")


def some(count: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Correlated activations [count, 8, 32] with a mean, feature 5 far larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 8, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    hidden[..., 5] = hidden[..., 5] * 30 - 100
    return hidden * scale


def statistics(*batches: Tensor, layout: Layout = LAYOUT) -> ActivationStatistics:
    meter = ActivationMeter(layout)
    for batch in batches:
        meter.add(batch)
    result = meter.result()
    assert result is not None
    return result


def test_statistics_are_numpys():
    """Each of them, over three uneven batches of unlike means, as NumPy has it from all rows at once in fp64."""
    batches = [some(3), some(1, scale=4, seed=1) + 7, some(20, scale=0.5, seed=2)]
    found = statistics(*batches)
    rows = torch.cat(batches).flatten(0, 1).double().numpy()
    by_feature = np.sqrt((rows**2).mean(0))
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.T))
    assert found.rms == pytest.approx(np.sqrt((rows**2).mean()))
    assert found.largest == pytest.approx(np.abs(rows).max())
    assert found.outlier == pytest.approx(by_feature.max() / by_feature.mean())
    assert found.outlier_feature == 5
    assert found.dimensions == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-5)


def test_a_large_mean_cancels_nothing():
    """The participation ratio of small differences about a mean 1e4 times as large."""
    hidden = torch.zeros(64, 8, 32)
    hidden[..., 0] = 2.0**14
    for feature in range(1, 9):  # eight directions of equal variance, exact in fp32
        hidden[:, :, feature] = (
            torch.tensor([1.0, -1.0]).repeat_interleave(2 ** (feature - 1)).repeat(256)[:512].view(64, 8)
        )
    assert statistics(*hidden.split(5)).dimensions == pytest.approx(8, rel=1e-6)


def test_errors_are_those_of_the_codec():
    """Relative to the activations, of each smaller format, over all batches."""
    batches = [some(3), some(2, scale=9, seed=1)]
    found, hidden = statistics(*batches), torch.cat(batches)
    assert list(found.errors) == ["int8", "fp8", "int4"]
    for name, error in found.errors.items():
        layout = evolve(LAYOUT, dtype=name)
        gone = decode(encode(hidden, layout), layout) - hidden
        assert error == pytest.approx((gone.norm() / hidden.norm()).item(), rel=1e-5)
    assert 0 < found.errors["int8"] < found.errors["int4"] < 1


@pytest.mark.parametrize(
    ("dtype", "d_model", "smaller"),
    [
        ("bf16", 32, ["int8", "fp8", "int4"]),
        ("int8", 32, ["int4"]),
        ("fp8", 32, ["int4"]),
        ("int4", 32, []),
        ("fp32", 48, ["int8", "fp8"]),  # no whole groups of 32
        ("bf16", 2, []),  # a scale a token takes more than it saves
    ],
)
def test_only_smaller_formats_are_tried(dtype, d_model, smaller):
    """Those in which an entry takes fewer bytes than it does."""
    layout = Layout(8, d_model, dtype)
    assert list(statistics(torch.ones(2, 8, d_model), layout=layout).errors) == smaller


def test_there_is_nothing_to_say_of_nothing():
    """No batch, an empty one, and zeros have no statistics; one constant has a variance of no directions."""
    meter = ActivationMeter(LAYOUT)
    assert meter.result() is None
    meter.add(torch.empty(0, 8, 32))
    assert meter.result() is None
    meter.add(torch.zeros(1, 8, 32))
    assert meter.result() is None
    assert statistics(torch.ones(1, 8, 32)).dimensions == 1


def test_what_is_not_finite_shows():
    """An overflow isn't averaged away."""
    hidden = some(2)
    hidden[0, 0, 0] = math.inf
    assert statistics(hidden).largest == math.inf


def test_a_sample_is_evenly_spaced():
    """From the first on; all of them where more are asked for than there are."""
    keys = keys_of(*range(10))
    assert sample(keys, None) == sample(keys, 10) == sample(keys, 99) == keys
    assert sample(keys, 5) == keys[::2]
    assert sample(keys, 3) == [keys[0], keys[3], keys[6]]


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    """Twelve entries in three shards."""
    store = DiskStore(tmp_path / "store", LAYOUT, None, 4)
    store.put(keys_of(*range(12)), some(12))
    store.flush()
    return store


def test_a_store_is_measured_in_batches(store, monkeypatch):
    """However few are read at once: the same statistics, and all that was read is told."""
    whole = measure_store(store, LAYOUT, keys_of(*range(12)), lambda size: None)
    monkeypatch.setattr("stackwise_core.engine.boundary.activation_statistics.NUMBERS_AT_ONCE", 5 * 8 * 32)
    told: list[int] = []
    found = measure_store(store, LAYOUT, keys_of(*range(12)), told.append)
    assert told == [5, 5, 2]
    assert (found.entries, found.damaged, found.bytes) == (12, 0, 12 * LAYOUT.bytes_per_entry)
    assert found.statistics is not None
    assert whole.statistics == statistics(some(12))
    assert found.statistics.rms == pytest.approx(whole.statistics.rms)
    assert found.statistics.dimensions == pytest.approx(whole.statistics.dimensions, rel=1e-5)


def test_damaged_entries_are_counted_and_left_out(store, tmp_path):
    """The others of their batch are measured."""
    store.close()
    entry = some(12)[5].numpy().tobytes()
    (shard,) = [path for path in (tmp_path / "store").iterdir() if entry in path.read_bytes()]
    shard.write_bytes(shard.read_bytes().replace(entry, entry[:-1] + bytes([entry[-1] ^ 1])))
    again = DiskStore(tmp_path / "store", LAYOUT, None, 4)
    found = measure_store(again, LAYOUT, keys_of(*range(12)), lambda size: None)
    assert (found.entries, found.damaged) == (11, 1)
    assert found.statistics == statistics(torch.cat((some(12)[:5], some(12)[6:])))
