"""Budget that a phase leaves to the next one, where it ended at a plateau and its mode says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import evolve

from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.phases.phase_steps import first_step, phase_steps
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.interfaces.phase import Phase
from stackwise_core.run_files.progress_file import PhaseResult


def longest(phases: Sequence[Phase], order: Order) -> list[Phase]:
    """Return phases with the most steps that each may have: its own, and what those before it may pass on."""
    found, left = [], 0
    for phase in phases:
        steps = phase_steps(phase, order)
        found.append(evolve(phase, steps=steps + left, begins=first_step(phase, order)) if left else phase)
        left = steps + left - math.ceil(phase.least * steps) if phase.ends == "passing_on" else 0
    return found


def with_passed_on(
    phases: Sequence[PhasePlan], done: Sequence[PhaseResult], order: Order, *, course: str
) -> list[PhasePlan]:
    """Return planned phases, each with the steps that the one before it passed on to it.

    Args:
        done: the measurements of the phases that are done. They alone decide, so that a run resumes with the same.
        course: ``training.course``. In one course of the run the next phase begins where this one ended.
    """
    planned = list(phases)
    for place, result in enumerate(done):
        if result.passed_on:
            planned[place + 1] = _longer(planned[place + 1], planned[place], result.passed_on, order, course)
    return planned


def _longer(planned: PhasePlan, before: PhasePlan, left: int, order: Order, course: str) -> PhasePlan:
    """Return a phase with steps that the one before it left."""
    steps = planned.steps + left
    begins = first_step(planned.phase, order)
    if begins and begins == first_step(before.phase, order) + before.steps:
        begins -= left  # it follows in the stream of samples, which has no gap
    first, total = planned.schedule
    return evolve(
        planned,
        phase=evolve(planned.phase, steps=steps, begins=begins),
        steps=steps,
        tokens=round(planned.tokens * steps / planned.steps),
        schedule=(first - left, total) if course == "run" else (first, steps),
        rates=(),
        step_flops=planned.step_flops * steps / planned.steps,
        flops=planned.flops * steps / planned.steps,
        seconds=planned.seconds * steps / planned.steps,
    )
