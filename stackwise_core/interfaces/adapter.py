"""The hook ``adapter``: small trainable weights beside a frozen stack's own."""

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from stackwise_core.interfaces.component import Component
from stackwise_core.interfaces.rack_spec import RackSpec

if TYPE_CHECKING:
    from torch import nn


class Adapter(Component):
    """Kind of adapters, attached to stacks by name; several may be active on one stack, each with its own rank."""

    float_only: str = ""
    """Reason why it can't stand on quantised weights; empty where it can."""
    rewrites_base: bool = False
    """Whether ``attach`` changes a stack's own weights in memory, which then can't train beside it."""

    def clashes_with(self, other: "Adapter") -> str:
        """Return why the two can't stand on one stack; empty where they can."""
        return ""

    @abstractmethod
    def size(self, rack: RackSpec, index: int) -> int:
        """Return how many trainable weights it has on a stack; the plan counts with it.

        Args:
            rack: as the mode's ``partition`` gave it.
            index: the stack's place.
        """

    @abstractmethod
    def attach(self, stack: "nn.Module", name: str, index: int, count: int) -> None:
        """Put a fresh adapter on a stack, in place; its output is unchanged by that.

        What is random comes from torch's own generator, which the caller has seeded.

        Args:
            stack: at any precision, unless ``float_only`` says why not.
            name: the adapter's name on this stack.
            index: the stack's place, 0 at the tokens.
            count: how many stacks the rack has, for ranks that depend on depth.
        """

    @abstractmethod
    def trainable(self, stack: "nn.Module", names: Collection[str]) -> "list[nn.Parameter]":
        """Make just these adapters trainable and all others frozen, and return the parameters. All of them stay active.

        The stack's own weights are left frozen or trainable, as they are.
        """

    @abstractmethod
    def save(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Write an adapter as peft's own files, adapter_config.json and adapter_model.safetensors, into a directory.

        Loaded onto the stack's weights as they were before ``attach``, they give the same output.
        """

    @abstractmethod
    def load(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Attach an adapter from the files that ``save`` wrote; nothing in them is executed.

        Raises:
            StackwiseError: they are damaged, or of an adapter that doesn't fit the stack.
        """

    @abstractmethod
    def merge(self, stack: "nn.Module", name: str) -> None:
        """Fold an adapter into the weights of a stack in fp32, in place, and take it off; other adapters stay active.

        What the others do may depend on the weights: those that a stack has are all attached, and may change with it.
        """
