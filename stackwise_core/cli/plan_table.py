"""A plan as a table, for ``stackwise plan`` and at the start of ``stackwise run``."""

from collections.abc import Collection

from rich.console import Console

from stackwise_core.cli.quantities import count, rough_duration
from stackwise_core.cli.schedule_line import schedule_line
from stackwise_core.cli.tables import abridged, print_table
from stackwise_core.engine.plan.notes import band_text
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.options import ByteSize

ALL_COLUMNS = 125
"""Columns of a terminal that the whole table fits into."""
LEFT_OUT_WHEN_NARROW = ("frozen", "masks", "FLOPs", "time")


def print_plan(console: Console, plan: Plan) -> None:
    """Print the rack's size, a row a phase, the learning rate over all of them, and the notes."""
    spec = plan.spec
    console.print(
        f"rack: {spec.stacks} stacks, {sum(spec.blocks)} blocks, d_model {spec.d_model}, "
        f"{count(spec.parameters)} parameters, vocabulary {spec.vocab_size}, {spec.seq_len} tokens a sequence",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    rows = [_row(planned) for planned in plan.phases]
    if console.is_terminal and console.width < ALL_COLUMNS:
        rows = [{name: cell for name, cell in row.items() if name not in LEFT_OUT_WHEN_NARROW} for row in rows]
    print_table(console, list(rows[0]), abridged([list(row.values()) for row in rows]), left=3)
    if console.encoding.lower().startswith("utf"):
        line = schedule_line(plan.phases)
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    console.print(time_text(plan), highlight=False, soft_wrap=not console.is_terminal)
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=not console.is_terminal)


def print_prices(console: Console, plan: Plan) -> None:
    """Print where each phase's trunk and boundary are, and what both ways of having them cost."""
    timed = any(each.boundary is not None and each.boundary.cached_seconds is not None for each in plan.phases)
    rows = [
        (
            planned.phase.name,
            "streamed" if planned.streams else "in memory",
            "made anew" if made_anew(plan, planned) else str(plan.cache),
            str(ByteSize(prices.streamed)),
            str(ByteSize(prices.resident)),
            str(ByteSize(prices.bytes)),
            count(prices.cached),
            count(prices.recomputed),
            *([_time(prices.cached_seconds), _time(prices.recomputed_seconds)] if timed else []),
        )
        for planned in plan.phases
        if (prices := planned.boundary) is not None
    ]
    if not rows:
        return
    window = f"windows of {plan.window} sequences"
    console.print(
        f"\n{window}; trunk streamed or in memory, boundary cached or made anew:",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    costs = ["streamed", "in memory", "cached", "FLOPs cached", "FLOPs anew"]
    if timed:
        costs += ["time cached", "time anew"]
    print_table(console, ("phase", "trunk", "boundary", *costs), abridged(rows), left=3)


def made_anew(plan: Plan, planned: PhasePlan) -> bool:
    """Return whether a phase's boundary is computed for each window, and not kept."""
    return plan.cache is None or planned.phase.boundaries == "window" or planned.recomputed


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else rough_duration(seconds)


def _row(planned: PhasePlan) -> dict[str, str]:
    phase = planned.phase
    return {
        "phase": phase.name,
        "starts at": phase.entry,
        "trains": what_trains(planned),
        "params": count(planned.trainable_parameters),
        "frozen": count(planned.frozen_parameters) if planned.frozen_parameters else "-",
        "masked": "-" if planned.band is None else band_text(planned.band),
        "masks": masks_text(planned),
        "steps": str(planned.steps),
        **_memory_cells(planned),
        "disk": str(ByteSize(planned.on_disk)),
        "FLOPs": count(planned.flops),
        "time": rough_duration(planned.seconds),
    }


def _memory_cells(planned: PhasePlan) -> dict[str, str]:
    """Return the cells of memory: one where device and host have the same, else one for each."""
    if planned.host is None:
        return {"memory": str(ByteSize(planned.memory.total))}
    return {"device": str(ByteSize(planned.memory.total)), "host": str(ByteSize(planned.host.total))}


def time_text(plan: Plan) -> str:
    """Return the estimated time of all phases, and the basis of the estimate."""
    products, copied = count(plan.speed.operations), ByteSize(plan.speed.copied)
    return (
        f"time: about {rough_duration(plan.seconds)} in all on this machine, if nothing else uses it; estimated from a "
        f"short measurement ({products} FLOP/s in matrix products, {copied}/s copied), and half or double is possible"
    )


def masks_text(planned: PhasePlan) -> str:
    """Return ``fresh``, ``4 fixed``, or a dash where nothing is masked."""
    if planned.band is None:
        return "-"
    return "fresh" if planned.phase.masks == "resampled" else f"{planned.phase.masks_per_sample} fixed"


def what_trains(planned: PhasePlan) -> str:
    """List what trains: ``embedding, stack 0, head``."""
    phase = planned.phase
    parts = ["embedding"] if phase.embedding else []
    if phase.trains:
        parts.append(f"stack{'s' if len(phase.trains) > 1 else ''} {_range(phase.trains)}")
    for name in dict.fromkeys(name for _, name in phase.adapters):
        parts.append(f"{name} adapter of {_range({stack for stack, of in phase.adapters if of == name})}")
    return ", ".join(parts + (["head"] if phase.head else []))


def _range(stacks: Collection[int]) -> str:
    """Return ``0``, ``0-3`` or ``0, 2``."""
    ordered = sorted(stacks)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return ", ".join(map(str, ordered))
