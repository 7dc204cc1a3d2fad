"""Tokens from logits, on the device that tests compute on, as they are chosen while a rack works."""

import numpy as np
import pytest
import torch

from stackwise_core.system.process_state import own_state
from stackwise_sampling.token_choice import chosen


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_token_is_where_the_sums_pass_its_number(device, top_p):
    """Under deterministic algorithms, as everywhere in a rack's own state; by a loop over the likeliest tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 17, generator=generator)
    uniforms = torch.randint(2**53, (40,), generator=generator).double() / 2**53
    with own_state(device):
        found = chosen(logits.to(device), uniforms.to(device), 1.0, top_p).tolist()
    for row, uniform, token in zip(logits.double().softmax(-1).numpy(), uniforms.tolist(), found, strict=True):
        kept, reached = np.zeros_like(row), 0.0
        for likely in np.argsort(-row):
            if reached < top_p:
                kept[likely] = row[likely]
            reached += row[likely]
        sums = np.cumsum(kept) / kept.sum()
        assert (sums[token - 1] if token else 0.0) - 1e-6 <= uniform <= sums[token] + 1e-6
