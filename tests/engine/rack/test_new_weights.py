import numpy as np
import pytest
import torch

from stackwise_core.engine.process.threads import computing_threads
from stackwise_core.engine.rack import new_weights
from stackwise_core.engine.rack.new_weights import Normal, fill

SLICE = 1 << 20


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch) -> None:
    monkeypatch.setattr(new_weights, "SLICE", SLICE)


def drawn(*shape: int, seed: int = 5, std: float = 0.5) -> torch.Tensor:
    tensor = torch.full(shape, torch.nan)
    fill([Normal(tensor, std, seed)])
    return tensor


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(threads):
    """Of several tensors, one of which takes several slices and ends within one."""
    shapes, found = [(3, SLICE - 7), (5, 4), (1, 1)], []
    for count in (1, threads):
        tensors = [torch.full(shape, torch.nan) for shape in shapes]
        with computing_threads(count):
            fill([Normal(each, 0.1, seed) for seed, each in enumerate(tensors)])
        found.append(tensors)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_numbers_are_normal():
    """Mean, deviation and tails over several slices, and no correlation between neighbours or slices."""
    tensor = drawn(3, SLICE).double() / 0.5
    assert abs(float(tensor.mean())) < 5 / tensor.numel() ** 0.5
    assert float(tensor.std()) == pytest.approx(1, abs=0.002)
    assert float((tensor.abs() > 2).double().mean()) == pytest.approx(0.0455, abs=0.0005)
    correlations = np.corrcoef(np.stack([*tensor.numpy(), tensor[0].roll(1).numpy()]))
    assert np.abs(correlations - np.eye(4)).max() < 5 / SLICE**0.5


def test_numbers_depend_on_seed_and_place_alone():
    """Neither on the shape, nor on what else is drawn; another seed gives others."""
    assert torch.equal(drawn(6, 4).flatten(), drawn(24))
    first, second = torch.empty(24), torch.empty(24)
    fill([Normal(first, 0.5, 4), Normal(second, 0.25, 5)])
    assert torch.equal(2 * second, drawn(24))
    assert not torch.isclose(first, drawn(24)).any()


def test_nothing_to_draw():
    """No tensor, and one without numbers."""
    fill([])
    assert drawn(0, 3).shape == (0, 3)
