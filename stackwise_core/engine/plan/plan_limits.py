"""Checks that a plan fits into the memory and onto the disk of the machine; refused before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from attrs import asdict

from stackwise_core.config.model import Config
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.errors import UsageError
from stackwise_core.options import ByteSize
from stackwise_core.system.machine import Room, memory
from stackwise_core.system.writable import check_writable

FAR = 3
"""Largest need of a plan, as a multiple of the memory that the machine has. The estimate can be off, and swap can be as
large as memory; beyond that no machine holds it."""
ALL_THE_SAME = "With --beyond-machine (in Python beyond_machine=True) it is begun all the same."
HELPS = {
    "process": "A larger budget helps.",
    "weights": "A smaller rack, or a precision.trunk such as nf4, needs less.",
    "gradients": "A smaller stack (rack.blocks_per_stack) needs less.",
    "optimizer": 'A smaller stack (rack.blocks_per_stack), or optimizer = "adamw_8bit", needs less.',
    "activations": "A smaller training.batch_size, with more training.gradient_accumulation, needs less.",
    "boundaries": 'A smaller training.window needs less, and so does a cache that isn\'t in memory (use = "disk").',
}
"""Advice that lessens each part of the memory."""


def stores_directory(config: Config) -> Path | None:
    """Return where the configuration has boundaries; None: in the run's own directory."""
    directory = None if config.cache_backend is None else config.cache_backend.options.directory
    return None if directory is None else Path(directory)


def check_stores_directory(directory: Path | None) -> None:
    """Refuse a ``cache_backend.directory`` that boundaries can't be written to."""
    if directory is not None:
        check_writable(directory, "cache_backend.directory")


def check_disk(plan: Plan, directory: Path) -> None:
    """Refuse a plan whose boundaries don't fit on the disk.

    Args:
        directory: where they will be, or the nearest folder above that exists.
    """
    directory = _that_exists(directory)
    needed, free = max(planned.disk for planned in plan.phases), shutil.disk_usage(directory).free
    if needed > free:
        raise UsageError(
            f"The boundaries need {ByteSize(needed)} on disk, and {directory} has {ByteSize(free)} free. "
            "Take another cache_backend.directory, a smaller cache_backend.capacity, fewer training.masks_per_sample, "
            "or a shorter data.seq_len."
        )


def check_offload(plan: Plan, directory: Path) -> None:
    """Refuse a plan whose training state waits in memory, or on a disk, that is too full for it.

    Args:
        directory: where the run's directory is made, or the nearest folder above that exists.
    """
    in_memory = max(plan.phases, key=_waits_in_memory)
    if (waits := _waits_in_memory(in_memory)) > (host := memory()).free:
        raise UsageError(
            f'Phase "{in_memory.phase.name}" is streamed, and needs {ByteSize(waits)} of host memory for '
            f"weights, gradients, moments and boundaries; {ByteSize(host.free)} are free. Use training.offload = "
            '"disk", or optimizer = "adamw_8bit".'
        )
    most = max(plan.phases, key=lambda planned: planned.state_on_disk)
    directory = _that_exists(directory)
    free = shutil.disk_usage(directory).free
    if most.state_on_disk > free:
        raise UsageError(
            f'Phase "{most.phase.name}" is streamed, and needs {ByteSize(most.state_on_disk)} on disk for weights, '
            f"gradients, moments and boundaries; {directory} has {ByteSize(free)} free. Another run.directory or a "
            'smaller rack is needed, or training.offload = "memory".'
        )


def check_memory(plan: Plan, budget: ByteSize | None) -> None:
    """Refuse a plan that needs more memory than the run may take.

    Args:
        budget: ``training.memory_budget``; None: nothing is refused.
    """
    most = _largest(plan)
    if budget is not None and most.memory.total > budget:
        raise UsageError(f"{_what_it_needs(most)}, and training.memory_budget is {budget}. {_what_helps(most, budget)}")


def check_possible(plan: Plan, room: Room, directory: Path | None) -> None:
    """Refuse a plan that is clearly impossible: it needs several times the memory that there is, or a larger disk.

    Args:
        room: memory of the device that trains.
        directory: where the weights will be, or the nearest folder above that exists; None: they are there already.
    """
    most = _largest(plan)
    if most.memory.total > FAR * room.total:
        there = f"{room.limit} leaves" if room.limit else "this machine has"
        helps = _what_helps(most, room.total)
        raise UsageError(f"{_what_it_needs(most)}, and {there} {ByteSize(room.total)}. {helps} {ALL_THE_SAME}")
    if directory is None:
        return
    directory = _that_exists(directory)
    weights, free = 4 * plan.spec.parameters, shutil.disk_usage(directory).free
    if weights > free:
        raise UsageError(
            f"The weights of this rack are {ByteSize(weights)} in full precision, and {directory} has {ByteSize(free)} "
            f"free. A smaller rack or another run.directory is needed. {ALL_THE_SAME}"
        )


def _waits_in_memory(planned: PhasePlan) -> int:
    """Return the bytes of host memory in which training state waits."""
    if planned.offload != "memory":
        return 0
    return planned.offloaded if planned.host is None else planned.host.offloaded


def _largest(plan: Plan) -> PhasePlan:
    return max(plan.phases, key=lambda planned: planned.memory.total)


def _largest_part(planned: PhasePlan) -> tuple[str, int]:
    return max(asdict(planned.memory).items(), key=lambda part: part[1])


def _what_it_needs(planned: PhasePlan) -> str:
    part, taken = _largest_part(planned)
    taker = "Python and torch" if part == "process" else part
    total = ByteSize(planned.memory.total)
    return f'Phase "{planned.phase.name}" needs {total} of memory, {ByteSize(taken)} of it for {taker}'


def _what_helps(planned: PhasePlan, budget: int) -> str:
    (part, _), streamed = _largest_part(planned), planned.least
    if streamed < planned.memory.total and (part != "process" or streamed <= budget):
        if planned.offload == "memory":
            return 'training.offload = "disk" needs less.'
        return 'training.residency = "stream" needs less.'
    return HELPS[part]


def _that_exists(directory: Path) -> Path:
    """Return the directory, or the nearest one above it that exists."""
    while not directory.exists():
        directory = directory.parent
    return directory
