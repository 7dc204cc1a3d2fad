"""Boundaries of a run: opened for a phase, passed on to the next, kept as long as asked, and dropped."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.boundary.namespace import provenance
from stackwise_core.engine.boundary.stores import Stores
from stackwise_core.engine.draws.draws import Drawer
from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.phases.phase_boundaries import boundary_layout, cache_of
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.runs.environment import device_name
from stackwise_core.engine.runs.software import software
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.interfaces.phase import Phase
from stackwise_core.registry import Registry


class RunBoundaries:
    """The boundaries that a run has open, the oldest first.

    Args:
        stores: where they are kept beyond their window; None: nowhere.
        drawer: of the draws that a phase trains on.
        device_room: bytes of the device's own memory that a window may have there.
    """

    def __init__(
        self,
        setup: Setup,
        registry: Registry,
        forward: Forward,
        order: Order,
        stores: Stores | None,
        drawer: Callable[[PhasePlan], Drawer],
        device_room: int = 0,
    ) -> None:
        self._setup, self._registry, self._forward, self._order = setup, registry, forward, order
        self._stores, self._drawer, self._device_room = stores, drawer, device_room
        self._kept: list[Boundary] = []
        self._current: Boundary | None = None

    def find(self, done: list[PhasePlan]) -> None:
        """Open boundaries of phases that are done, where another process left them on disk."""
        cache = self._setup.implementations.cache
        if cache is None or not cache.durable:
            return
        for planned in done:
            if not planned.phase.frozen_prefix or planned.same_boundary or cache_of(planned.phase, self._setup) is None:
                continue
            boundary = self.above(planned.phase, self._drawer(planned))
            for same in [each for each in self._kept if each.provenance == boundary.provenance]:
                self._kept.remove(same)  # of an earlier cycle: one store is open once
                same.close()
            if boundary.is_empty:
                boundary.drop()
            else:
                self._kept.append(boundary)

    def make_room(self, planned: PhasePlan) -> None:
        """Drop boundaries that a phase has no use for; the one below is needed to make its own."""
        if not planned.same_boundary:  # there is one more then
            self._drop_all_but(max(self._keep - 1, int(planned.made_from_below)))

    def open(self, planned: PhasePlan) -> Boundary | None:
        """Return the boundary that a phase starts from, whose stacks are placed; None where it starts at the tokens."""
        self._current = self._opened(planned)
        if self._current is not None and self._current.is_stored:
            self._kept.append(self._current)
        return self._current

    def phase_done(self) -> None:
        """Drop what the next phase needn't have."""
        if self._stores is not None:
            self._stores.settle()
        if self._current is not None and not self._current.is_stored:
            self._current.drop()
        self._current = None
        self._drop_all_but(self._keep)

    def run_done(self) -> None:
        """Drop all, or leave on disk what is kept for good."""
        self._drop_all_but(self._keep if self._keeps_for_good else 0)
        if self._stores is not None and not self._keeps_for_good:
            self._stores.drop_others()
        for boundary in self._kept:
            boundary.close()
        self._kept.clear()

    def close(self) -> None:
        """Leave what is stored where it is: the run was interrupted."""
        for boundary in {id(each): each for each in (*self._kept, self._current) if each is not None}.values():
            boundary.close()

    def above(self, phase: Phase, drawer: Drawer, below: Boundary | None = None) -> Boundary:
        """Return a new boundary above a phase's frozen stacks.

        Args:
            below: the boundary that it can be made from.
        """
        layout, store = boundary_layout(phase, self._setup), None
        made_of = self._provenance(phase.frozen_prefix, layout)
        if cache_of(phase, self._setup) is not None:
            assert self._stores is not None
            store = self._stores.open(phase.name, phase.frozen_prefix, layout, made_of)
        return Boundary(
            phase.frozen_prefix,
            self._forward,
            drawer,
            self._order,
            store,
            layout,
            self._stores,
            below,
            keep_below=self._keeps_for_good and self._keep > 1,
            provenance=made_of,
            device_room=self._device_room,
        )

    @property
    def settings(self) -> dict[str, object]:
        """Settings, other than weights and draws, that change a boundary's bits."""
        setup = self._setup
        return {
            "tokenizer": setup.tokenizer.fingerprint.hex(),
            "device": device_name(setup.device),
            "torch": torch.__version__,
            **software(setup.config, self._registry, hooks=("precision", "adapter")),
        }

    def _opened(self, planned: PhasePlan) -> Boundary | None:
        trunk = planned.phase.frozen_prefix
        if not trunk:
            return None
        drawer = self._drawer(planned)
        last = self._kept[-1] if self._kept and self._is_current(self._kept[-1]) else None
        if planned.same_boundary and last is not None and last.trunk == trunk:
            return self._kept.pop().passed_on(drawer)
        below = None
        if planned.made_from_below and last is not None and trunk[: len(last.trunk)] == last.trunk:
            below = last
        return self.above(planned.phase, drawer, below)

    def _is_current(self, boundary: Boundary) -> bool:
        """Return whether a boundary is made of what its trunk is now; one that an earlier process left may not be."""
        return boundary.provenance == self._provenance(boundary.trunk, boundary.layout)

    def _provenance(self, trunk: tuple[int, ...], layout: Layout) -> dict[str, object]:
        return provenance(self._forward.placement, trunk, layout, self._order.chunk_size, self.settings)

    @property
    def _keep(self) -> float:
        """Number of phases of which boundaries are kept."""
        cache = self._setup.implementations.cache
        return 1 if cache is None else cache.options.phases_kept

    @property
    def _keeps_for_good(self) -> bool:
        """Whether boundaries are left when the run ends."""
        cache = self._setup.implementations.cache
        return cache is not None and cache.options.keep == "rack"

    def _drop_all_but(self, newest: float) -> None:
        while len(self._kept) > newest:
            self._kept.pop(0).drop()
