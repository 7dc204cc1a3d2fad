"""``stackwise restore``: a rack at another precision, from a run's full-precision masters."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from stackwise_core.cli.arguments import plugin_option, run_argument
from stackwise_core.cli.output import json_option, print_json


def _stacks(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is not None and not re.fullmatch(r"\d{1,6}(,\d{1,6})*", value):
        raise click.BadParameter("expected stacks such as 0,2")
    return None if value is None else tuple(map(int, value.split(",")))


@click.command(short_help="Rebuild a run's rack at another precision.")
@run_argument
@click.option(
    "--precision",
    required=True,
    metavar="P",
    help="""Such as nf4, or with options '{ use = "nf4", double_quant = false }'.""",
)
@click.option("--stacks", metavar="LIST", callback=_stacks, help="Of these stacks only, such as 0,2. [default: all]")
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="[default: RUN-P]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute. [default: the run's]")
@plugin_option
@json_option()
def restore(
    directory: Path,
    precision: str,
    stacks: tuple[int, ...] | None,
    target: Path | None,
    device: Literal["auto", "cpu", "cuda"] | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Copy the finished run RUN, with its stacks at the precision P.

    The stacks are made from the full-precision masters, one at a time, and the copy keeps both. You can evaluate the
    copy, or start another run from it.
    """
    from attrs import evolve

    from stackwise_core.config.choices import RACK_HOOKS
    from stackwise_core.config.load import load_run_at_precision, load_run_to_copy
    from stackwise_core.config.source_run import finished_run
    from stackwise_core.errors import UsageError

    source = finished_run(directory)
    config, _ = load_run_to_copy(directory, plugins=plugins)
    asked, registry = load_run_at_precision(
        directory, precision, asked_by="--precision", plugins=plugins, hooks=RACK_HOOKS
    )
    choice = asked.precision.trunk
    assert choice is not None
    beyond = [stack for stack in stacks or () if stack >= len(source.blocks)]
    if beyond:
        raise UsageError(f"--stacks: stack {beyond[0]} isn't there; {directory} has 0 to {len(source.blocks) - 1}.")
    if stacks is None:
        held = evolve(config.precision, trunk=choice, stacks={})
    else:
        held = evolve(config.precision, stacks={**config.precision.stacks, **dict.fromkeys(stacks, choice)})
    config = evolve(config, precision=held)

    from stackwise_core.cli.pulse import working
    from stackwise_core.cli.tables import print_table
    from stackwise_core.engine.phases.setup import set_up_rack
    from stackwise_core.engine.runs.directory import RunDirectory
    from stackwise_core.engine.weights.copy import beside, copy_run
    from stackwise_core.engine.weights.ending import check_rack, read_ending
    from stackwise_core.engine.weights.planned_rack import PlannedRack
    from stackwise_core.options import ByteSize

    # What can't be had is found before anything is copied.
    run = RunDirectory(directory)
    here = config if device is None else evolve(config, run=evolve(config.run, device=device))
    parts = set_up_rack(here, registry, PlannedRack.of(run, source))
    check_rack(run, parts.spec, parts.formats.adapters)
    active = [] if stacks is None else sorted({*read_ending(run).active} - {*stacks})
    rows: list[tuple[int, str, int, int]] = []

    def rebuild(copy: RunDirectory) -> None:
        placement = parts.forward(copy).placement
        for stack in range(parts.spec.stacks):
            tell(f"stack {stack} of {parts.spec.stacks}")
            placement.bring((stack,), active=active)
            # Adapters are what they were.
            size = sum(tensor.numel() * tensor.element_size() for tensor in placement.tensors(stack).values())
            use = held.active if stack in active else held.stacks.get(stack, held.trunk or held.active)
            rows.append((stack, use.use, copy.stack_bytes(stack), size))

    with working(Console(stderr=True), "restoring") as tell:
        copy = copy_run(run, target or beside(directory, choice.use), config, rebuild, active=active)
    if as_json:
        keys = ("stack", "precision", "bytes_in_full", "bytes")
        listed = [dict(zip(keys, row, strict=True)) for row in rows]
        print_json({"run": str(copy.path), "stacks": listed})
        return
    print_table(
        Console(),
        ("stack", "precision", "in full", "restored"),
        [(str(stack), use, str(ByteSize(full)), str(ByteSize(size))) for stack, use, full, size in rows],
        left=2,
    )
    click.echo(f'\n{copy.path} holds the rack. "stackwise evaluate {shlex.quote(str(copy.path))}" measures it.')
