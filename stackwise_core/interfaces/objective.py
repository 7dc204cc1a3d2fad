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
    """Facts about an objective that are needed before it is made; its options subclass this."""

    causal: ClassVar[bool] = False
    """Whether each token is predicted from those before it. Attention is then causal and nothing is masked, so that the
    evaluation gives the likelihood itself. If not, masked tokens are predicted from what is left."""
    weightings: ClassVar[tuple[Weighting, ...]] = ("nelbo", "mean")
    """Values of ``training.weighting`` that it has. Where that is left out, the first that a phase allows is taken.
    ``"nelbo"`` says that the loss is a bound on the negative log-likelihood, or above it."""


@frozen(eq=False)
class Predicted:
    """The tokens that a forward pass predicts: N of B sequences. All tensors are on the CPU."""

    targets: "Tensor"
    """int64 [N], the ids to predict."""
    sequences: "Tensor"
    """int64 [N], the sequence of each within the batch, from 0."""
    places: "Tensor"
    """int64 [N], the position within its sequence at which each is predicted; the one before it where ``causal``."""
    fractions: "Tensor"
    """float64 [N], the mask fraction of each one's sequence; 0 where ``causal``."""
    weighting: Weighting
    """The weighting of the phase."""
    weights: "Tensor"
    """float64 [N], the weight of each under that: |f'(s)|/f(s) for ``nelbo``, 1 for ``mean``."""
    scored: int
    """Tokens of the batch that could have been predicted, N or more."""


class Objective(Component):
    """Gives a training step its loss: the sum of ``weights`` times ``losses``, divided by the sum of ``count``.

    Both sums go over all forward passes of the optimizer step. By default each token's loss is its cross entropy, under
    the phase's weighting.
    """

    options: ObjectiveOptions

    def losses(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Return the loss of each predicted token [N], differentiable and independent of the others.

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
        """Return the number that a forward pass adds to what the step's sum is divided by.

        By default the predicted tokens for ``mean``, and all that could have been for ``nelbo``.
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
        """Change masked positions of what the network sees of a sequence, in place; by default they stay as they are.

        It isn't called where the options are ``causal``.

        Args:
            inputs: int64 [tokens], ``mask_id`` where ``mask`` is True, else the sequence's own ids.
            tokens: int32 [tokens], the sequence's own ids.
            mask: bool [tokens], True where a token is to be predicted.
            mask_id: the mask token.
            vocab_size: ids go from 0 to one less.
            rng: the draw's own generator. Take randomness from nowhere else.
        """
