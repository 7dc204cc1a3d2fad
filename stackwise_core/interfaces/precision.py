"""The hook ``precision``: the number formats in which a stack is stored and computed."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from stackwise_core.interfaces.component import Component
from stackwise_core.interfaces.rack_spec import RackSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Precision(Component):
    """Number format of a stack, for training (``precision.active``) or in the trunk (``precision.trunk``)."""

    trainable: bool = True
    """Whether a stack's full weights can train at this precision."""
    quantises: bool = False
    """Whether a frozen stack's weights are codes with scales rather than plain floats."""

    compiles: bool = False
    """Whether ``torch.compile`` captures a prepared block as one graph; otherwise its blocks are never compiled."""

    @property
    @abstractmethod
    def bytes_per_weight(self) -> float:
        """Resident bytes of one frozen weight, scales included."""

    def check(self, device: "torch.device") -> None:
        """Refuse a device that can't compute in it.

        Raises:
            UnavailableError: with what is missing, such as a GPU's generation.
        """

    def refuses(self, rack: RackSpec) -> str:
        """Return why it can't hold a rack's frozen stacks; empty where it can.

        Asked of ``precision.trunk`` and ``precision.stacks``, for the rack as the mode's ``partition`` gave it.
        """
        return ""

    @abstractmethod
    def prepare(self, stack: "nn.Module", *, trainable: bool) -> None:
        """Bring a stack to this precision, in place.

        Args:
            stack: a stack with fp32 masters on its device, and without adapters.
            trainable: True for a stack whose full weights will train: then keep fp32 masters, and leave lower
                precision to ``autocast``. False for a frozen stack.

        Raises:
            OutOfRange (of ``stackwise_core.engine.rack.number_range``): a weight isn't finite, or the format can't
                hold it.
        """

    @abstractmethod
    def autocast(self, device: "torch.device") -> AbstractContextManager[object]:
        """Return the context in which a prepared stack's forward pass and the head run.

        The residual stream [batch, tokens, d_model] is fp32 before and after a stack.
        """

    def loss_scaler(self, device: "torch.device") -> "torch.amp.GradScaler | None":
        """Return a gradient scaler if this precision's gradients would underflow without one."""
        return None

    def to_tensors(self, stack: "nn.Module") -> "dict[str, Tensor]":
        """Return a frozen prepared stack as named tensors for safetensors.

        ``from_tensors`` reads them back bit for bit.
        """
        return {name: tensor.detach() for name, tensor in stack.state_dict().items()}

    def from_tensors(self, stack: "nn.Module", tensors: "dict[str, Tensor]") -> None:
        """Load the tensors of ``to_tensors`` into a fresh fp32 stack with arbitrary weights, and freeze it.

        Their checksums were verified, so they are exactly what was written.
        """
        for parameter in stack.parameters():
            parameter.data.zero_()  # what was never written may be anything, and need not be a number
        self.prepare(stack, trainable=False)
        stack.load_state_dict(tensors)
