import numpy as np
import torch

from stackwise_core.data.draws import corrupt
from tests.tiny import run_tiny


def test_unmasked_positions_have_no_part_in_the_loss(tmp_path):
    """Other true ids at unmasked positions leave the loss as it is, and the gradient there is nil."""
    ran = run_tiny(tmp_path, {"training.epochs_per_stack": 1})
    residency, split = ran.engine._residency, ran.setup.corpus.train
    samples = np.arange(4)
    rows = split.rows(samples)
    mask = np.random.default_rng(0).random(rows.tokens.shape) < 0.4
    progress = torch.full((4,), 0.4, dtype=torch.float64)
    draws = corrupt(rows, samples, mask, 256, progress, progress)

    hidden = residency.embed(0, draws.inputs, draws.fraction).detach().requires_grad_()
    losses = residency.cross_entropy(2, hidden.flatten(0, 1).index_select(0, draws.masked), draws.targets)
    losses.sum().backward()
    gradient = hidden.grad.abs().sum(-1).numpy()
    assert (gradient[mask] > 0).all()
    assert (gradient[~mask] == 0).all()

    tokens = np.where(mask, rows.tokens, (rows.tokens + 7) % 256).astype(rows.tokens.dtype)
    other = corrupt(type(rows)(tokens, rows.segments), samples, mask, 256, progress, progress)
    assert torch.equal(other.targets, draws.targets)
    assert torch.equal(other.masked, draws.masked)
    assert not torch.equal(other.inputs, draws.inputs)
