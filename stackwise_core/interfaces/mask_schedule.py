"""The hook ``mask_schedule``: the fraction of a sequence that is masked, and the masked places."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from stackwise_core.interfaces.component import Component

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class MaskSchedule(Component):
    """Map from progress to a mask fraction.

    What progress means is ``training.over``: the time of a draw, or the place of the stack that trains.
    """

    @abstractmethod
    def fraction(self, progress: "Tensor") -> "Tensor":
        """Compute the mask fraction at each progress.

        Args:
            progress: float tensor of any shape, values in [0, 1].

        Returns:
            A tensor of that shape and dtype, values in [0, 1], computed elementwise and monotone in ``progress``.
            It must be differentiable by autograd: the loss weight |f'(s)| / f(s) is taken from it (MDLM,
            arXiv:2406.07524, eq. 10).
        """

    def place(
        self, tokens: "np.ndarray", scorable: "np.ndarray", fraction: float, rng: "np.random.Generator"
    ) -> "np.ndarray":
        """Choose the masked positions of one sequence; by default each on its own with probability ``fraction``.

        The likelihood bound (``weighting = "nelbo"``) holds for independent positions only, so a schedule that
        places them in another way (spans, whole words) trains with ``weighting = "mean"``.

        Args:
            tokens: int32 [tokens], the sequence's ids.
            scorable: bool [tokens], False at padding and special tokens, which the core never masks.
            fraction: the result of ``fraction()``.
            rng: this draw's own generator. Take randomness from nowhere else.

        Returns:
            bool [tokens], True where the model's input will hold the mask token.
        """
        return rng.random(len(tokens)) < fraction
