import numpy as np
import pytest
from attrs import evolve

from stackwise_core.engine.draws.order import Order

ORDER = Order(samples=1000, seq_len=256, window=128, batch_size=12, accumulation=2, seed=1, chunk_tokens=4096)


def visited(order: Order, epoch: int) -> list[int]:
    return [int(s) for window in order.epoch(epoch) for step in window.steps for batch in step for s in batch]


@pytest.mark.parametrize("window", [1, 128, 10_000])
def test_an_epoch_visits_every_sample_once(window):
    """Whatever the window, nothing is skipped or repeated."""
    assert sorted(visited(evolve(ORDER, window=window), 0)) == list(range(1000))


def test_epochs_differ_and_repeat_by_seed():
    """Each epoch has an order of its own, which the seed decides."""
    assert visited(ORDER, 0) != visited(ORDER, 1)
    assert visited(ORDER, 0) == visited(ORDER, 0)
    assert visited(ORDER, 0) != visited(evolve(ORDER, seed=2), 0)


def test_a_window_holds_its_own_chunks_and_no_more_than_it_may():
    """Every sample of a window lies in the chunks whose boundaries are made ready for it."""
    for window in ORDER.epoch(0):
        samples = {int(s) for step in window.steps for batch in step for s in batch}
        assert samples == {s for chunk in window.chunks for s in ORDER.chunk(chunk)}
        assert len(samples) <= ORDER.window


def test_a_window_is_never_smaller_than_asked_for():
    """It is rounded up to whole chunks, so that a step of the whole window is as large as it should be."""
    order = evolve(ORDER, window=20, batch_size=20, accumulation=1)
    assert len(order.epoch(0)[0].steps[0][0]) == 20


def test_a_small_window_still_mixes_distant_samples():
    """A window's chunks come from all over the split."""
    first = ORDER.epoch(0)[0].chunks
    assert max(first) - min(first) > ORDER.chunks / 2


def test_steps_are_counted_as_they_come():
    """The plan's number of steps is the number that an epoch has, with short last batches."""
    assert ORDER.steps_per_epoch(3) == sum(len(window.steps) for window in ORDER.epoch(3))
    sizes = [len(batch) for window in ORDER.epoch(0) for step in window.steps for batch in step]
    assert max(sizes) == 12


def test_chunks_depend_on_their_tokens_and_the_sequence_length_alone():
    """A boundary's bits can't change with the batch size."""
    assert ORDER.chunk(0) == evolve(ORDER, batch_size=5, window=7, accumulation=1).chunk(0)
    assert ORDER.chunk_size == 16
    assert evolve(ORDER, seq_len=100_000).chunk_size == 1
    assert evolve(ORDER, chunk_tokens=65_536).chunk(1) == range(256, 512)
    assert np.concatenate([ORDER.chunk(c) for c in range(ORDER.chunks)]).tolist() == list(range(1000))


def test_a_step_s_epoch_and_an_epoch_s_step_are_inverse():
    """Every step lies in the epoch that its count says, also where epochs differ by a step."""
    order = evolve(ORDER, samples=997, window=50, batch_size=7, accumulation=1)
    lengths = [order.steps_per_epoch(number) for number in range(4)]
    assert len(set(lengths)) > 1
    expected = [(epoch, place) for epoch, length in enumerate(lengths) for place in range(length)]
    assert [order.epoch_of(step) for step in range(sum(lengths))] == expected
    for epoch in range(4):
        assert order.step_at(epoch) == sum(lengths[:epoch])
        assert order.epoch_of(order.step_at(epoch)) == (epoch, 0)
        for place in (1, lengths[epoch] // 2, lengths[epoch] - 1):
            assert order.epoch_of(order.step_at(epoch + place / lengths[epoch])) == (epoch, place)


def test_stretches_of_epochs_leave_no_step_out():
    """However finely epochs are divided, one stretch begins at the step at which the one before it ends."""
    for parts in (3, 7, 36):
        ends = [ORDER.step_at(3 * part / parts) for part in range(parts + 1)]
        assert ends == sorted(ends)
        assert ends[0] == 0
        assert ends[-1] == sum(ORDER.steps_per_epoch(number) for number in range(3))
