"""The hook ``adapter``: small trainable weights beside a frozen stack's own."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from stackwise_core.interfaces.component import Component
from stackwise_core.interfaces.rack_spec import RackSpec

if TYPE_CHECKING:
    from torch import nn


@frozen
class SavedAdapter:
    """An adapter of one stack, as ``save`` wrote it."""

    directory: Path
    """Directory of its files; their checksums were verified"""
    first_block: int
    """Place of the stack's first block in the whole model"""
    blocks: int
    """Number of the stack's blocks"""


class Adapter(Component):
    """Kind of adapters, attached to stacks by name. Several may be active on one stack, each with its own rank.

    A class without a ``merge`` of its own gives the reason in ``unmergeable``; one without ``export``, in
    ``unexportable``.
    """

    float_only: str = ""
    """Reason why it can't stand on quantised weights; empty where it can."""
    unmergeable: str = ""
    """Reason why it can't be folded into a stack's weights; empty where it can."""
    unexportable: str = ""
    """Reason why no other library can load it; empty where one can."""
    rewrites_base: bool = False
    """Whether ``attach`` changes a stack's own weights in memory. They can't train beside such an adapter."""

    compiles: bool = False
    """Whether ``torch.compile`` captures a block that it is on as one graph; otherwise such blocks are never
    compiled."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        for method, reason in (("merge", "unmergeable"), ("export", "unexportable")):
            if getattr(type(self), method) is getattr(Adapter, method) and not getattr(self, reason):
                raise TypeError(f"{type(self).__name__} has neither {method}() nor the reason why not in `{reason}`")

    def clashes_with(self, other: "Adapter") -> str:
        """Return why the two can't be on one stack; empty where they can."""
        return ""

    @abstractmethod
    def size(self, rack: RackSpec, index: int) -> int:
        """Return the number of its trainable weights on a stack, for the plan.

        Args:
            rack: as the mode's ``partition`` gave it.
            index: the stack's place.
        """

    @abstractmethod
    def attach(self, stack: "nn.Module", name: str, index: int, count: int) -> None:
        """Put a fresh adapter on a stack, in place. The stack's output doesn't change.

        Draw random numbers from torch's own generator, which the caller has seeded.

        Args:
            stack: at any precision, unless ``float_only`` says why not.
            name: the adapter's name on this stack.
            index: the stack's place, 0 at the tokens.
            count: how many stacks the rack has, for ranks that depend on depth.
        """

    @abstractmethod
    def trainable(self, stack: "nn.Module", names: Collection[str]) -> "list[nn.Parameter]":
        """Make these adapters trainable and freeze all others; return the trainable parameters. All stay active.

        Don't change whether the stack's own weights train.
        """

    @abstractmethod
    def save(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Write an adapter into an empty directory, in files of any names. The core keeps their checksums.

        Loaded onto the weights that the stack had before ``attach``, the files give the same output.
        """

    @abstractmethod
    def load(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Attach an adapter from the files that ``save`` wrote. Execute nothing in them.

        Raises:
            StackwiseError: the files are damaged, or the adapter doesn't fit the stack.
        """

    def merge(self, stack: "nn.Module", name: str) -> None:
        """Fold an adapter into the weights of a stack in fp32, in place, and remove it. Other adapters stay active.

        All adapters of the stack are attached, since the effect of one may depend on the weights; merging may change
        the others. Required unless ``unmergeable`` gives a reason.
        """
        raise NotImplementedError

    def export(self, stacks: Sequence[SavedAdapter], blocks: int, directory: Path) -> None:
        """Write the adapters of a rack's stacks as one adapter of the whole model, in files that another library loads.

        Name its weights after ``model.layers.N``, transformers' name for the blocks of the exported model. Required
        unless ``unexportable`` gives a reason.

        Args:
            stacks: the adapter's part of each stack, the lowest first; a stack may have none.
            blocks: the number of the whole model's blocks.
            directory: empty.

        Raises:
            StackwiseError: a file is damaged, or the stacks' adapters can't be joined into one.
        """
        raise NotImplementedError

    def loading(self, names: Sequence[str], model: str) -> str:
        """Return Markdown for the model's README on loading exported adapters; by default nothing.

        Args:
            names: all exported adapters that share this method; their files are in ``adapters/NAME``.
            model: the name of the exported model's directory.
        """
        return ""
