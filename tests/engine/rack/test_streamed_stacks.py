"""Stacks that are in memory only while a window passes them."""

import pytest
import torch

from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.rack.forward import Forward
from stackwise_precision.floats import Bf16
from stackwise_precision.fp8 import Fp8
from stackwise_precision.options import Fp8Options
from tests.masters_in_memory import SPEC, Shelf, placement, trained


def batch(size: int, seed: int) -> Draws:
    """Sequences of random ids, each with three tokens to predict."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 39, (size, SPEC.seq_len), generator=generator)
    places = (torch.arange(size)[:, None] * SPEC.seq_len + torch.tensor([1, 4, 9])).flatten()
    return Draws(
        samples=torch.arange(size).numpy(),
        inputs=inputs,
        segments=torch.ones(size, SPEC.seq_len, dtype=torch.int32),
        progress=torch.full((size,), 0.5, dtype=torch.float64),
        fraction=torch.full((size,), 0.5, dtype=torch.float64),
        masked=places,
        targets=inputs.flatten()[places],
        scored=size * SPEC.seq_len,
    )


class Counted(Shelf):
    """Masters that count how often each stack is read."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.update(shelf)
        self.reads: list[int] = []

    def read_stack(self, index):
        self.reads.append(index)
        return super().read_stack(index)


def test_a_streamed_stack_is_there_while_it_is_visited():
    """Alone with those that stay, and no longer than that."""
    held = placement(masters=trained(0, 1, 2))
    held.bring((0, 1, 2), active={2}, streamed=(0, 1))
    assert [index in held for index in range(3)] == [False, False, True]
    kept = held.stack(2)
    for index in (1, 0):
        with held.visiting(index):
            assert [each in held for each in range(3)] == [each in (index, 2) for each in range(3)]
    with held.visiting(2):
        assert held.stack(2) is kept
    assert [index in held for index in range(3)] == [False, False, True]


def test_a_visit_that_fails_leaves_nothing():
    """An exception while a stack is visited doesn't keep it in memory."""
    held = placement(masters=trained(0))
    held.bring((0,), active=(), streamed=(0,))
    with pytest.raises(RuntimeError), held.visiting(0):
        raise RuntimeError
    assert 0 not in held


def test_a_stack_that_begins_to_be_streamed_leaves():
    """What was resident for the path before isn't any more."""
    held = placement(masters=trained(0, 1))
    held.bring((0, 1), active=())
    held.bring((0, 1), active=(), streamed=(0,))
    assert (0 in held, 1 in held) == (False, True)


def test_a_streamed_stack_that_was_never_trained_has_masters_at_once():
    """So that the same one is read at each visit, and the next stack can be a copy of it."""
    shelf = Shelf()
    held = placement(masters=shelf)
    held.bring((0, 1), active={1}, streamed=(0,))
    assert set(shelf) == {0}
    with held.visiting(0):
        assert torch.equal(held.stack(0).layers[0].mlp.up_proj.weight, shelf[0]["layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("trunk", [None, Bf16(None), Fp8(Fp8Options())], ids=["fp32", "bf16", "fp8"])
def test_streamed_stacks_compute_the_same_bits(trunk):
    """With adapters on them, at each precision, whether in memory or not."""
    formats = {} if trunk is None else {"trunk": trunk}
    masters = trained(0, 1, 2)
    batches = [batch(3, seed) for seed in range(4)]
    read = []
    for streamed in ((), (0, 1, 2), (1,)):
        held = placement(masters=masters, **formats)
        held.bring((0, 1, 2), active=(), adapters={1: ["stack"]}, streamed=streamed)
        with torch.no_grad():
            read.append(
                {(at.stack, at.batch): at.losses for at in Forward(held, window=4).sweep(batches, (0, 1, 2), (0, 2))}
            )
    assert read[0].keys() == read[1].keys() == {(stack, number) for stack in (0, 2) for number in range(4)}
    for other in read[1:]:
        assert all(torch.equal(read[0][key], other[key]) for key in read[0])


@pytest.mark.parametrize(
    ("streamed", "reads"), [((), [0, 1, 2]), ((0, 1), [2, 0, 1, 0, 1]), ((0, 1, 2), [0, 1, 2] * 2)]
)
def test_a_window_of_batches_passes_a_stack_at_a_visit(streamed, reads):
    """Windows of 4 sequences: batches of 3, 3 and 1 are two groups, each of which reads every streamed stack once."""
    masters = Counted(trained(0, 1, 2))
    held = placement(masters=masters)
    held.bring((0, 1, 2), active=(), streamed=streamed)
    batches = (batch(size, seed) for seed, size in enumerate((3, 3, 1)))
    with torch.no_grad():
        numbers = [at.batch for at in Forward(held, window=4).sweep(batches, (0, 1, 2), (2,))]
    assert numbers == [0, 1, 2]
    assert masters.reads == reads


def test_the_fingerprint_is_of_masters_adapters_and_precision():
    """It changes with each of them, and needs no stack in memory."""
    masters = trained(0, 1)
    held = placement(masters=masters)
    held.bring((0, 1), active=(), streamed=(0, 1))
    whole = held.fingerprint(0)
    assert whole != held.fingerprint(1)
    assert placement(masters=masters, trunk=Bf16(None)).fingerprint(0) != whole
    masters[0]["norm.weight"] = masters[0]["norm.weight"] + 1
    assert held.fingerprint(0) != whole
    assert 0 not in held
