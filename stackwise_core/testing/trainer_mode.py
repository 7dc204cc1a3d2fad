"""Contract that every trainer mode must hold."""

from __future__ import annotations

import attrs
import pytest
from torch import Tensor

from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.phases.plan_checks import check_phases, resolve_routes
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.testing.fresh import heavy_imports
from stackwise_core.testing.small import small_rack

RACKS = [small_rack(1), small_rack(2, 2), small_rack(1, 1, 1, 1), small_rack(3, 1, 2)]


def plan(mode: TrainerMode, rack: RackSpec, budget: Budget) -> tuple[RackSpec, list[Phase]]:
    """Return the rack as the mode cuts it, and the phases."""
    partitioned = mode.partition(rack)
    return partitioned, mode.plan(partitioned, budget)


class _Identity(MaskSchedule):
    """Schedule f(s) = s."""

    def fraction(self, progress: Tensor) -> Tensor:
        return progress


class TrainerModeContract:
    """Contract of a trainer mode: subclass it and provide the fixture ``mode``; ``budget`` may be overridden."""

    @pytest.fixture
    def mode(self) -> TrainerMode:
        """Return the trainer mode to test."""
        raise NotImplementedError("the subclass provides the fixture `mode`")

    @pytest.fixture
    def budget(self) -> Budget:
        """Return the budget to plan with."""
        return Budget()

    @pytest.fixture(params=RACKS, ids=lambda rack: "blocks " + "-".join(map(str, rack.blocks)))
    def rack(self, request: pytest.FixtureRequest) -> RackSpec:
        """Return a rack as configured, before the mode cuts it into stacks of its own."""
        return request.param

    def test_partition_loses_no_block(self, mode: TrainerMode, rack: RackSpec) -> None:
        """Blocks are regrouped or added, stacks share their ends or not, and nothing else about the rack changes."""
        cut = mode.partition(rack)
        assert sum(cut.blocks) >= sum(rack.blocks)
        assert min(cut.blocks) >= 1
        assert attrs.evolve(cut, blocks=rack.blocks, ends=rack.ends) == rack

    def test_routes_divide_the_schedule(self, mode: TrainerMode, rack: RackSpec) -> None:
        """Every mask fraction is served by one route, through stacks that the rack has."""
        cut = mode.partition(rack)
        resolve_routes(mode.routes(cut), cut, Noise(_Identity(None)), type(mode).__name__)

    def test_the_engine_can_execute_the_plan(self, mode: TrainerMode, rack: RackSpec, budget: Budget) -> None:
        """The phases pass the engine's own check."""
        partitioned, phases = plan(mode, rack, budget)
        check_phases(phases, partitioned, type(mode).__name__)

    def test_every_part_is_trained(self, mode: TrainerMode, rack: RackSpec, budget: Budget) -> None:
        """No stack, no embedding and no head is left as it was initialised."""
        partitioned, phases = plan(mode, rack, budget)
        trained = frozenset[int]().union(*(phase.trains | phase.adapts for phase in phases))
        assert trained == set(range(partitioned.stacks))
        assert any(phase.embedding for phase in phases)
        assert any(phase.head for phase in phases)

    def test_a_frozen_prefix_is_trained_before(self, mode: TrainerMode, rack: RackSpec, budget: Budget) -> None:
        """No phase builds on a boundary of random weights: all stacks below it were trained before."""
        _, phases = plan(mode, rack, budget)
        trained: set[int] = set()
        for place, phase in enumerate(phases):
            assert set(phase.frozen_prefix) <= trained, f"{phase.name} stands on untrained stacks"
            assert not phase.frozen_prefix or any(before.embedding for before in phases[:place])
            trained |= phase.trains | phase.adapts

    def test_names_tell_phases_apart(self, mode: TrainerMode, rack: RackSpec, budget: Budget) -> None:
        """No two phases have the same name, and none is empty."""
        _, phases = plan(mode, rack, budget)
        names = [phase.name for phase in phases]
        assert (len(set(names)), all(names)) == (len(names), True)

    def test_equal_questions_have_equal_answers(self, mode: TrainerMode, rack: RackSpec, budget: Budget) -> None:
        """A plan depends on the rack and on the budget alone, or a resumed run would follow another."""
        assert plan(mode, rack, budget) == plan(mode, rack, budget)

    def test_the_budget_is_heard(self, mode: TrainerMode, budget: Budget) -> None:
        """A ``steps_per_stack`` or ``epochs_per_stack`` changes the plan."""
        longer = [attrs.evolve(budget, steps_per_stack=17), attrs.evolve(budget, epochs_per_stack=23)]
        plans = [plan(mode, small_rack(1, 1), each)[1] for each in (budget, *longer)]
        assert plans[0] not in plans[1:]

    def test_planning_needs_no_torch(self, mode: TrainerMode, budget: Budget) -> None:
        """``plan`` runs without torch, in a process of its own."""
        classes = {type(mode), type(mode.options), RackSpec, Budget}
        lines = [f"from {each.__module__} import {each.__qualname__}" for each in classes]
        lines += [
            f"mode = {type(mode).__qualname__}({_expression(mode.options)})",
            f"mode.plan(mode.partition({_expression(small_rack(1, 1))}), {_expression(budget)})",
        ]
        assert heavy_imports("\n".join(lines), ("torch", "transformers")) == []


def _expression(instance: attrs.AttrsInstance) -> str:
    """Return Python that makes an attrs instance of plain values again."""
    return f"{type(instance).__qualname__}(**{attrs.asdict(instance)!r})"
