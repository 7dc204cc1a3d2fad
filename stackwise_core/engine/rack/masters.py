"""Interface of the place that keeps stacks which aren't in memory, and their own embeddings and heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Masters(Protocol):
    """Keeper of stacks' full-precision tensors and adapters, by the stack's index."""

    def has_stack(self, index: int) -> bool:
        """Return whether a stack was written."""

    def read_stack(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of a stack that was written, read anew: the caller may change them."""

    def write_stack(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a stack's tensors."""

    def read_ends_of(self, owner: int | None) -> dict[str, Tensor] | None:
        """Return a stack's own embedding and head, or those that all share; None where none were written."""

    def read_prepared(self, index: int, precision: object) -> dict[str, Tensor] | None:
        """Return a frozen stack as a precision (a JSON value) holds it, if that was kept and the stack is unchanged."""

    def write_prepared(self, index: int, precision: object, tensors: Mapping[str, Tensor]) -> None:
        """Keep a frozen stack as a precision holds it."""

    def adapters(self, index: int) -> Collection[str]:
        """Return the names of the adapters that a stack has."""

    def adapter(self, index: int, name: str) -> Path:
        """Return the directory of an adapter's files."""

    def checksums(self, index: int) -> object:
        """Return checksums of a stack's masters and adapters, as a JSON value."""
