"""The hook ``objective`` (provisional): which tokens are predicted, and the loss of a training step."""

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import frozen

from stackwise_core.interfaces.component import Component

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Weighting = Literal["nelbo", "mean"]


@frozen
class ObjectiveOptions:
    """Facts about an objective that are needed before it is made. Its options class is a subclass."""

    causal: ClassVar[bool] = False
    """Whether each token is predicted from those before it. Attention is then causal, nothing is masked, and the
    evaluation gives the exact likelihood. If not, masked tokens are predicted from the unmasked ones."""
    weightings: ClassVar[tuple[Weighting, ...]] = ("nelbo", "mean")
    """Values of ``training.weighting`` that it supports. The default is the first one that a phase allows. With
    ``"nelbo"`` the loss is an upper bound on the negative log-likelihood."""


@frozen(eq=False)
class Predicted:
    """The tokens that a forward pass predicts: N of B sequences. All tensors are on the CPU."""

    targets: "Tensor"
    """int64 [N], the ids to predict."""
    sequences: "Tensor"
    """int64 [N], the sequence of each within the batch, from 0."""
    places: "Tensor"
    """int64 [N], the position in its sequence at which each is predicted; the position before it where ``causal``."""
    fractions: "Tensor"
    """float64 [N], the mask fraction of each one's sequence; 0 where ``causal``."""
    weighting: Weighting
    """The weighting of the phase."""
    weights: "Tensor"
    """float64 [N], the weight of each: |f'(s)|/f(s) for ``nelbo``, 1 for ``mean``."""
    scored: int
    """Tokens of the batch that could have been predicted, N or more."""


class Objective(Component):
    """Loss of a training step: the sum of ``weights`` times ``losses``, divided by the sum of ``count``.

    Both sums run over all forward passes of the optimizer step. By default each token's loss is its cross entropy,
    under the phase's weighting. Worker threads call ``weights``, ``count`` and ``corrupt``, also while the main thread
    validates: keep nothing between calls.
    """

    options: ObjectiveOptions

    def losses(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Return the loss of each predicted token [N], differentiable and independent of the others.

        With a large vocabulary it is called for pieces of a pass's tokens, a piece at a time.

        Args:
            logits: fp32 or fp64 [N, V], on the device that computes. The mask token's is -inf.
            targets: int64 [N], on the same device.
        """
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, reduction="none")

    def weights(self, predicted: Predicted) -> "Tensor":
        """Return the weight of each predicted token's loss, [N]."""
        return predicted.weights

    def count(self, predicted: Predicted) -> float:
        """Return a forward pass's part of the divisor of the step's sum.

        By default the predicted tokens for ``mean``, and all that could have been predicted for ``nelbo``.
        """
        return len(predicted.targets) if predicted.weighting == "mean" else predicted.scored

    def corrupt(
        self,
        inputs: "np.ndarray",
        tokens: "np.ndarray",
        mask: "np.ndarray",
        *,
        mask_id: int,
        vocab_size: int,
        rng: "np.random.Generator",
    ) -> None:
        """Change the network's input at masked positions of a sequence, in place; by default nothing changes.

        It isn't called where the options are ``causal``.

        Args:
            inputs: int64 [tokens], ``mask_id`` where ``mask`` is True, else the sequence's own ids.
            tokens: int32 [tokens], the sequence's own ids.
            mask: bool [tokens], True where a token is to be predicted.
            mask_id: the mask token.
            vocab_size: the number of ids; the largest is one less.
            rng: the draw's own generator. Take randomness from nowhere else.
        """
