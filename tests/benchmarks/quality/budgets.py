"""Steps a stack at which a regime's planned FLOPs equal the baseline's."""

from bisect import bisect_left
from collections.abc import Callable
from functools import cache

from attrs import evolve

from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.plan import Plan, make_plan

LEAST_STEPS = 8
"""Fewer a stack would leave phases of a mode with cycles without a step."""


def nearest(quantity: Callable[[int], float], target: float, least: int = 1) -> int:
    """The number from ``least`` up whose quantity is nearest to the target, which never falls as the number rises."""
    quantity = cache(quantity)
    high = least
    while quantity(high) < target:
        high *= 2
    reached = bisect_left(range(high + 1), target, lo=least, key=quantity)
    return min((max(least, reached - 1), reached), key=lambda number: (abs(quantity(number) - target), number))


def plan_with(setup: Setup, steps_per_stack: int) -> Plan:
    """The plan with another budget."""
    training = evolve(setup.config.training, steps_per_stack=steps_per_stack)
    return make_plan(evolve(setup, config=evolve(setup.config, training=training)))


def flops_of(plan: Plan) -> float:
    """Return the floating-point operations of all phases, with those that a streamed step does twice."""
    return sum(phase.flops for phase in plan.phases)


def matching_steps(setup: Setup, target: float) -> int:
    """Steps a stack with which the regime's FLOPs are nearest to the target."""
    return nearest(lambda steps: flops_of(plan_with(setup, steps)), target, LEAST_STEPS)
