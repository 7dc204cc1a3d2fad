"""Number formats of a rack's stacks, and the adapters that they may have."""

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
    """Precisions of single stacks when they are frozen."""
    adapters: Mapping[str, Adapter] = {}
    """Makers of stacks' adapters, by the adapters' names."""

    def precision(self, index: int, role: Role) -> Precision:
        """Return the precision of a stack in a role."""
        return self.active if role == "active" else self.stacks.get(index, self.trunk)
