"""Masked language modelling with BERT's mixture (arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

import numpy as np

from stackwise_core.builtin.options import MLMOptions
from stackwise_core.interfaces.objective import Objective


class MLM(Objective):
    """Predicts masked tokens, some of which hold a random token or their own in place of the mask token."""

    options: MLMOptions

    def corrupt(
        self,
        inputs: np.ndarray,
        tokens: np.ndarray,
        mask: np.ndarray,
        *,
        mask_id: int,
        vocab_size: int,
        rng: np.random.Generator,
    ) -> None:
        """Let some masked positions hold their own token, and some one drawn evenly from all but the mask token."""
        chance = rng.random(len(tokens))
        kept = mask & (chance < self.options.keep)
        swapped = mask & ~kept & (chance < self.options.keep + self.options.random)
        drawn = rng.integers(vocab_size - 1, size=len(tokens))
        inputs[kept] = tokens[kept]
        inputs[swapped] = (drawn + (drawn >= mask_id))[swapped]
