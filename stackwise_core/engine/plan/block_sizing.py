"""Division of a rack's blocks into stacks, where ``rack.blocks_per_stack = "auto"`` leaves it to the plan."""

from __future__ import annotations

from attrs import evolve

from stackwise_core.config.model import Config
from stackwise_core.config.source_checkpoint import read_source
from stackwise_core.engine.phases.setup import Progress, Setup, recut, set_up
from stackwise_core.engine.plan.plan import Plan, make_plan
from stackwise_core.errors import UsageError
from stackwise_core.registry import Registry

AS_FAST = 0.97
"""Share of the highest speed from which on a division counts as as fast: speed is an estimate."""


def set_up_divided(config: Config, registry: Registry, progress: Progress | None = None) -> tuple[Setup, Plan]:
    """Build the setup and the plan of the best division: of all that the memory budget holds, the fastest.

    Stacks are as equal as they can be. Where several are as fast, the largest are taken; where the budget holds none,
    those that need the least memory. Speed is in blocks that train a second, since a budget is each stack's.

    Args:
        progress: as for ``tokenise``.

    Raises:
        UnavailableError: as for ``set_up``.
        UsageError: as for ``set_up`` and ``make_plan``, if no division can be planned.
    """
    count = config.rack.blocks or sum(read_source(str(config.rack.init_from), registry).blocks)
    whole = set_up(evolve(config, rack=config.rack.divided((1,) * count)), registry, progress)
    found: dict[tuple[int, ...], tuple[Setup, Plan]] = {}
    refused: dict[tuple[int, ...], UsageError] = {}
    for blocks in divisions(count):
        try:
            setup = recut(whole, blocks, registry)
            if setup.spec.blocks not in found:  # a mode may divide them its own way
                found[setup.spec.blocks] = setup, make_plan(setup)
        except UsageError as error:
            refused[blocks] = error
    if not found:
        blocks, reason = next(iter(refused.items()))
        raise UsageError(
            f'rack.blocks_per_stack = "auto": there are {len(refused)} ways to divide the {count} blocks, and none can '
            f"be planned. As {_shown(blocks)}: {reason}"
        ) from reason
    held = [each for each in found.values() if needed(each[1]) <= whole.memory_budget]
    if held:
        fastest = max(speed(*each) for each in held)
        setup, plan = next(each for each in held if speed(*each) >= AS_FAST * fastest)
        why = f"the fastest of {len(held)} divisions that the memory budget holds"
    else:
        setup, plan = min(found.values(), key=lambda each: needed(each[1]))
        why = "the division that needs least memory; the memory budget holds none"
    said = f'rack.blocks_per_stack = "auto": {_shown(setup.spec.blocks)}, {why}.'
    return setup, evolve(plan, notes=(*plan.notes, said))


def divisions(count: int) -> list[tuple[int, ...]]:
    """List the ways to divide blocks into stacks of at most so many and as equal as may be, the largest first."""
    found: dict[int, tuple[int, ...]] = {}
    for most in range(count, 0, -1):
        stacks = -(-count // most)
        fewer, larger = divmod(count, stacks)
        found.setdefault(stacks, (fewer + 1,) * larger + (fewer,) * (stacks - larger))
    return list(found.values())


def needed(plan: Plan) -> int:
    """Return the bytes of memory that a plan needs at most."""
    return max(planned.memory.total for planned in plan.phases)


def speed(setup: Setup, plan: Plan) -> float:
    """Return the blocks that a plan trains in a second, each counted in every step."""
    trained = sum(
        planned.steps * sum(setup.spec.blocks[stack] for stack in planned.phase.trains | planned.phase.adapts)
        for planned in plan.phases
    )
    return trained / max(plan.seconds, 1e-9)


def _shown(blocks: tuple[int, ...]) -> str:
    """Return ``stacks of 3, 3, 2 blocks``, or ``2 stacks of 4 blocks``."""
    if len(set(blocks)) == 1:
        stacks, size = len(blocks), blocks[0]
        return f"{stacks} {'stack' if stacks == 1 else 'stacks'} of {size} {'block' if size == 1 else 'blocks'}"
    return f"stacks of {', '.join(map(str, blocks))} blocks"
