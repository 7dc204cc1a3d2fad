"""A plan as a table, for ``stackwise plan`` and at the start of ``stackwise run``."""

from rich.console import Console

from stackwise_core.cli.quantities import count, percent
from stackwise_core.cli.tables import print_table
from stackwise_core.options import ByteSize
from stackwise_core.training.plan import PhasePlan, Plan


def print_plan(console: Console, plan: Plan) -> None:
    """Print the rack's size, a row a phase, and the notes."""
    spec = plan.spec
    console.print(
        f"rack: {spec.stacks} stacks, {sum(spec.blocks)} blocks, d_model {spec.d_model}, "
        f"{count(spec.parameters)} parameters, vocabulary {spec.vocab_size}, {spec.seq_len} tokens a sequence",
        highlight=False,
        soft_wrap=True,
    )
    print_table(
        console,
        ("phase", "starts at", "trains", "params", "frozen", "masked", "masks", "steps", "memory", "disk", "FLOPs"),
        [_row(planned) for planned in plan.phases],
        left=3,
    )
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _row(planned: PhasePlan) -> tuple[str, ...]:
    phase, (low, high) = planned.phase, planned.band
    return (
        phase.name,
        phase.entry,
        what_trains(planned),
        count(planned.trainable_parameters),
        count(planned.frozen_parameters) if planned.frozen_parameters else "-",
        percent(low) if low == high else f"{100 * low:.3g}-{percent(high)}",
        "fresh" if phase.masks == "resampled" else f"{phase.masks_per_sample} fixed",
        str(planned.steps),
        str(ByteSize(planned.memory.total)),
        str(ByteSize(planned.disk)) if planned.disk else "-",
        count(planned.flops),
    )


def what_trains(planned: PhasePlan) -> str:
    """``embedding, stack 0, head``."""
    phase = planned.phase
    parts = ["embedding"] if phase.embedding else []
    for members, noun in ((phase.trains, "stack"), (phase.adapts, "adapters of")):
        ordered = sorted(members)
        if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
            parts.append(f"{noun}{'s' if noun == 'stack' else ''} {ordered[0]}-{ordered[-1]}")
        elif ordered:
            parts.append(f"{noun} {', '.join(map(str, ordered))}")
    return ", ".join(parts + (["head"] if phase.head else []))
