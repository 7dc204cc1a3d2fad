"""The hook ``adapter``: small trainable weights beside a frozen stack's own."""

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from stackwise_core.interfaces.component import Component

if TYPE_CHECKING:
    from torch import nn


class Adapter(Component):
    """Attaches named adapters to stacks; several may be active on one stack, each with its own rank."""

    @abstractmethod
    def attach(self, stack: "nn.Module", name: str, index: int, count: int) -> None:
        """Put a fresh adapter on a stack, in place; its output is unchanged by that.

        Args:
            stack: at any precision, its own weights frozen.
            name: the adapter's name on this stack.
            index: the stack's place, 0 at the tokens.
            count: how many stacks the rack has, for ranks that depend on depth.
        """

    @abstractmethod
    def trainable(self, stack: "nn.Module", names: Collection[str]) -> "list[nn.Parameter]":
        """Make just these adapters trainable and all others frozen, all of them staying active; give the parameters."""

    @abstractmethod
    def save(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Write an adapter as peft's own files: adapter_config.json and adapter_model.safetensors."""

    @abstractmethod
    def load(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Attach an adapter from the files that ``save`` wrote."""

    @abstractmethod
    def merge(self, stack: "nn.Module", name: str) -> None:
        """Fold an adapter into the stack's weights and take it off; other adapters stay active."""
