"""In which number formats a rack's stacks are, and which adapters they may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.precision import Precision

Role = Literal["active", "trunk"]


@frozen
class Formats:
    """The precisions of a rack's stacks, and the adapters that they may have."""

    active: Precision
    trunk: Precision
    stacks: Mapping[int, Precision] = {}
    """Of single stacks when they are frozen."""
    adapters: Mapping[str, Adapter] = {}
    """By name: what makes a stack's adapters of that name."""

    def precision(self, index: int, role: Role) -> Precision:
        """The precision of a stack in a role."""
        return self.active if role == "active" else self.stacks.get(index, self.trunk)
