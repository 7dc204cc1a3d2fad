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
    """Directory of its files, which were compared with their checksums"""
    first_block: int
    """Place of the stack's first block in the whole model"""
    blocks: int
    """Number of the stack's blocks"""


class Adapter(Component):
    """Kind of adapters, attached to stacks by name; several may be active on one stack, each with its own rank.

    A class that has no ``merge`` of its own says why in ``unmergeable``, one without ``export`` in ``unexportable``.
    """

    float_only: str = ""
    """Reason why it can't stand on quantised weights; empty where it can."""
    unmergeable: str = ""
    """Reason why it can't be folded into a stack's weights; empty where it can."""
    unexportable: str = ""
    """Reason why no other library can load it; empty where one can."""
    rewrites_base: bool = False
    """Whether ``attach`` changes a stack's own weights in memory, which then can't train beside it."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        for method, reason in (("merge", "unmergeable"), ("export", "unexportable")):
            if getattr(type(self), method) is getattr(Adapter, method) and not getattr(self, reason):
                raise TypeError(f"{type(self).__name__} has neither {method}() nor the reason why not in `{reason}`")

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
        """Write an adapter into an empty directory, in files of any names; they are kept with their checksums.

        Loaded onto the stack's weights as they were before ``attach``, they give the same output.
        """

    @abstractmethod
    def load(self, stack: "nn.Module", name: str, directory: Path) -> None:
        """Attach an adapter from the files that ``save`` wrote; nothing in them is executed.

        Raises:
            StackwiseError: they are damaged, or of an adapter that doesn't fit the stack.
        """

    def merge(self, stack: "nn.Module", name: str) -> None:
        """Fold an adapter into the weights of a stack in fp32, in place, and take it off; other adapters stay active.

        What the others do may depend on the weights: those that a stack has are all attached, and may change with it.
        Required unless ``unmergeable`` says why not.
        """
        raise NotImplementedError

    def export(self, stacks: Sequence[SavedAdapter], blocks: int, directory: Path) -> None:
        """Write the adapters of a rack's stacks as one of the whole model, in files that another library loads.

        Its weights are those of ``model.layers.N``, as transformers calls the blocks of the exported model. Required
        unless ``unexportable`` says why not.

        Args:
            stacks: what each stack has of it, the lowest first; a stack may have none.
            blocks: how many the whole model has.
            directory: empty.

        Raises:
            StackwiseError: a file is damaged, or the stacks' adapters can't be one.
        """
        raise NotImplementedError

    def loading(self, names: Sequence[str], model: str) -> str:
        """Return how exported adapters are loaded, as Markdown for the model's README; by default nothing is said.

        Args:
            names: of all that were exported by adapters with this same method; their files are in ``adapters/NAME``.
            model: the name of the exported model's directory.
        """
        return ""
