import numpy as np
import pytest
import torch

from stackwise_core.builtin.options import MLMOptions
from stackwise_core.engine.draws.draws import Drawer, Stream, generator, shifted
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.draws.sequences import Rows
from stackwise_core.engine.objective.mlm import MLM
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_masking.schedules import Constant, Linear
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return set_up(*tiny_config(tmp_path_factory.mktemp("draws"))).corpus.train


def drawer(split, schedule: MaskSchedule | None = None, **changes) -> Drawer:
    settings = {"seed": 5, "mask_id": 256, "progress": (0.0, 1.0), "at_least_one": False} | changes
    return Drawer(split=split, noise=Noise(schedule or Linear(RangeOptions(0.0, 1.0))), **settings)


def masks(draws) -> np.ndarray:
    flat = np.zeros(draws.inputs.numel(), dtype=bool)
    flat[draws.masked] = True
    return flat.reshape(draws.inputs.shape)


def test_masked_positions_hold_the_mask_token_and_no_other_does(split):
    """The input shows the mask token exactly where a token is to be predicted, and the target nowhere."""
    draws = drawer(split).draw(range(20), 0)
    rows = split.rows(np.arange(20))
    assert len(draws.masked) > 0
    assert np.array_equal(masks(draws), draws.inputs.numpy() == 256)
    assert np.array_equal(draws.targets.numpy(), rows.tokens[masks(draws)])
    assert np.array_equal(draws.inputs.numpy()[~masks(draws)], rows.tokens[~masks(draws)])


def test_a_draw_does_not_depend_on_its_batch(split):
    """A sample is masked alike alone, in any company, and in any order."""
    one = drawer(split)
    together = one.draw([7, 3, 11], 2)
    for place, sample in enumerate([7, 3, 11]):
        alone = one.draw([sample], 2)
        assert torch.equal(alone.inputs[0], together.inputs[place])
        assert alone.progress[0] == together.progress[place]


def test_draws_differ_by_sample_number_and_seed(split):
    """No two of them share a mask: peers keyed masks by the row in the batch."""
    seen = set()
    for seed in (5, 6):
        for number in (0, 1):
            for sample in (0, 1, 2):
                draws = drawer(split, Constant(ConstantOptions(0.5)), seed=seed).draw([sample], number)
                seen.add(masks(draws).tobytes())
    assert len(seen) == 12


def test_streams_share_no_numbers():
    """Training, evaluation and order draw from different stretches of the generator."""
    assert len({generator(1, 2, stream, 3).random() for stream in Stream}) == len(Stream)


def test_progress_is_uniform_and_the_fraction_is_met(split):
    """Over many draws progress covers its stretch evenly, and as many tokens are masked as the fraction says."""
    draws = drawer(split, progress=(0.25, 0.75)).draw(np.arange(100).repeat(10) % len(split), 0)
    many = torch.cat([drawer(split, progress=(0.25, 0.75)).draw(range(100), number).progress for number in range(20)])
    assert float(many.min()) >= 0.25
    assert float(many.max()) <= 0.75
    counts = torch.histc(many.float(), bins=4, min=0.25, max=0.75)
    assert counts.min() > 400
    shares = [masks(draws)[row].mean() for row in range(len(draws.inputs))]
    assert np.mean(shares) == pytest.approx(float(draws.fraction.mean()), abs=0.02)


def test_progress_with_equal_ends_is_fixed(split):
    """A phase over depth has one fraction for all its draws."""
    draws = drawer(split, progress=(0.4, 0.4)).draw(range(10), 0)
    assert set(draws.fraction.tolist()) == {0.4}


def test_an_empty_mask_gets_one_token_only_where_asked(split):
    """Under the mean weighting every sequence is scored; under the bound the empty mask has its own probability."""
    rarely = Constant(ConstantOptions(1e-9))
    assert len(drawer(split, rarely).draw(range(10), 0).masked) == 0
    forced = drawer(split, rarely, at_least_one=True).draw(range(10), 0)
    assert masks(forced).sum(axis=1).tolist() == [1] * 10


def test_padding_is_never_masked(tmp_path):
    """The last row's padding stays as it is, even when everything is masked."""
    split = set_up(*tiny_config(tmp_path, {"data.seq_len": 50})).corpus.train
    last = len(split) - 1
    rows = split.rows(np.array([last]))
    assert not rows.scorable.all()
    draws = drawer(split, Constant(ConstantOptions(1.0))).draw([last], 0)
    assert np.array_equal(masks(draws), rows.scorable)
    assert draws.scored == rows.scorable.sum()


def test_a_schedule_may_place_masks_its_own_way(split):
    """What a plugin's place() chooses is what is masked, but for padding and special tokens."""

    class FirstHalf(Constant):
        def place(self, tokens, scorable, fraction, rng):
            return np.arange(len(tokens)) < fraction * len(tokens)

    draws = drawer(split, FirstHalf(ConstantOptions(0.5))).draw([0], 0)
    assert masks(draws)[0].tolist() == [True] * 16 + [False] * 16


def test_a_token_is_predicted_from_its_own_document_only():
    """Shifted by one within each document, never into the next, nor to or from padding and special tokens."""
    tokens = np.array([[10, 11, 12, 20, 21, 0, 30, 0], [40, 41, 42, 43, 44, 45, 46, 47]], dtype=np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0, 3, 0], [1] * 8], dtype=np.int32)
    draws = shifted(Rows(tokens, segments), np.array([5, 9]))
    pairs = list(zip(draws.inputs.flatten()[draws.masked].tolist(), draws.targets.tolist(), strict=True))
    assert pairs == [(10, 11), (11, 12), (20, 21), *[(token, token + 1) for token in range(40, 47)]]
    assert draws.rows.tolist() == [0] * 3 + [1] * 7
    assert draws.inputs.tolist() == tokens.tolist()
    assert draws.scored == 10


def test_causal_draws_mask_nothing_and_are_one(split):
    """Whatever its number, a causal draw is the text itself."""
    one, other = (drawer(split, causal=True).draw([3, 4], number) for number in (0, 7))
    assert torch.equal(one.inputs, torch.from_numpy(split.rows(np.array([3, 4])).tokens.astype(np.int64)))
    assert torch.equal(one.inputs, other.inputs)
    assert len(one.masked) == 2 * 31


@pytest.mark.slow
def test_masked_positions_of_mlm_are_mixed_as_asked(split):
    """Of many masked positions 20 % hold their own token, 30 % another one drawn evenly, and the rest the mask."""
    mixture = MLM(MLMOptions(random=0.3, keep=0.2)).corrupt
    one = drawer(split, Constant(ConstantOptions(0.5)), corrupt=mixture, vocab_size=258)
    plain = drawer(split, Constant(ConstantOptions(0.5)))
    own = masked = other = 0
    drawn = []
    for number in range(30):
        draws, without = one.draw(range(len(split)), number), plain.draw(range(len(split)), number)
        assert torch.equal(draws.masked, without.masked)
        assert torch.equal(draws.targets, without.targets)
        unmasked = ~masks(draws)
        assert np.array_equal(draws.inputs.numpy()[unmasked], without.inputs.numpy()[unmasked])
        held = draws.inputs.flatten()[draws.masked]
        own += int((held == draws.targets).sum())
        masked += int((held == 256).sum())
        other += len(held)
        drawn.append(held[(held != draws.targets) & (held != 256)])
    spread = 4 * (0.25 / other) ** 0.5
    assert masked / other == pytest.approx(0.5, abs=spread)
    assert own / other == pytest.approx(0.2 + 0.3 / 257, abs=spread)
    counts = torch.bincount(torch.cat(drawn), minlength=258)
    assert counts[256] == 0
    assert int((counts > 0).sum()) == 257
    assert float(counts.max()) < 2 * float(counts.sum()) / 257


def test_validation_has_masks_of_its_own(split):
    """Its stream isn't that of training."""
    one, other = drawer(split), drawer(split, stream=Stream.VALIDATION)
    assert not torch.equal(one.draw([1], 0).inputs, other.draw([1], 0).inputs)


def test_discrete_time_gives_its_steps_fractions_and_no_others(split):
    """Every draw's mask fraction is a step's, and each step's share is even."""
    drawn = Drawer(split, Noise(Linear(RangeOptions(0.0, 1.0)), (0.25, 0.5, 1.0)), 5, 256, (0.0, 1.0), False)
    fractions = torch.cat([drawn.draw(range(100), number).fraction for number in range(12)])
    values, counts = fractions.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 1.0]
    assert counts.min() > 330
