"""Runs that are interrupted by an exception and resumed, each time as by a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stackwise_core.engine.events.events import (
    Listener,
    PhaseDone,
    PhaseResumed,
    PhaseStarted,
    RunResult,
    RunStarted,
    StepDone,
)
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files.manifest import Manifest
from tests.tiny import tiny_config


class Broken(Exception):
    """The end of a run, as by a fault."""


def engine(tmp_path: Path, changes: Mapping[str, Any], listener: Listener, begun: Path | None = None) -> Engine:
    """Build a tiny run's engine as a process of its own would: its random numbers begin elsewhere, too."""
    torch.manual_seed(torch.seed())
    config, registry = tiny_config(tmp_path, changes)
    setup = set_up(config, registry)
    return Engine(setup, make_plan(setup), registry, listener, None if begun is None else RunDirectory(begun))


def break_everywhere(tmp_path: Path, changes: Mapping[str, Any]) -> tuple[Path, list[list[str]], RunResult]:
    """Interrupt a run in each phase's second step and after it, with a checkpoint a step.

    Return its directory, the phases of each life (with the step from which it resumes), and its result.
    """
    directory, lives, result, after_phase = None, [], None, False

    def listen(event) -> None:
        nonlocal directory
        if isinstance(event, RunStarted):
            directory = event.directory
        elif isinstance(event, PhaseStarted):
            lives[-1].append(event.planned.phase.name)
        elif isinstance(event, PhaseResumed):
            lives[-1][-1] += f" + {event.step}"
        elif isinstance(event, PhaseDone if after_phase else StepDone) and (
            after_phase or event.step == min(2, event.planned.steps)
        ):
            raise Broken

    while result is None:
        lives.append([])
        try:
            result = engine(tmp_path, changes, listen, directory).run()
        except Broken:
            assert not any(Manifest(directory).problem(name) for name in Manifest(directory))
            after_phase = not after_phase
    return directory, lives, result
