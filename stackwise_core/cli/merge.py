"""``stackwise merge``: a run's adapters, folded into its full-precision weights."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import plugin_option, run_argument
from stackwise_core.cli.output import json_option, print_json


@click.command(short_help="Fold a run's adapters into its weights.")
@run_argument
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="[default: RUN-merged]")
@plugin_option
@json_option()
def merge(directory: Path, target: Path | None, plugins: Sequence[str], as_json: bool) -> None:
    """Copy the finished run RUN, with its adapters merged into the full-precision masters.

    RUN doesn't change. You can evaluate the copy, or start another run from it.
    """
    from stackwise_core.config.source_run import finished_run
    from stackwise_core.errors import UsageError

    source = finished_run(directory)
    if not source.has_adapters:
        raise UsageError(f"{directory} has no adapters to merge.")

    from attrs import evolve

    from stackwise_core.cli.pulse import working
    from stackwise_core.config.load import load_run_to_copy
    from stackwise_core.config.model import AdapterConfig, Choice, TrainingConfig
    from stackwise_core.engine.phases.setup import set_up_rack
    from stackwise_core.engine.runs.directory import RunDirectory
    from stackwise_core.engine.weights.copy import beside, copy_run
    from stackwise_core.engine.weights.ending import check_rack, read_ending
    from stackwise_core.engine.weights.merge import merge_adapter, refuse_unmergeable
    from stackwise_core.engine.weights.planned_rack import PlannedRack

    run = RunDirectory(directory)
    config, registry = load_run_to_copy(directory, plugins=plugins)
    planned = PlannedRack.of(run, source)
    parts = set_up_rack(config, registry, planned)

    def own_name(choice: Choice) -> Choice:
        """Return the choice by the name that isn't an alias: "qlora" is nf4 with adapters, and the copy has none."""
        declared = registry.resolve("precision", choice.use)
        return evolve(choice, use=declared.full_name if ":" in choice.use else declared.name)

    held = config.precision
    precision = evolve(
        held,
        active=own_name(held.active),
        trunk=None if held.trunk is None else own_name(held.trunk),
        stacks={stack: own_name(choice) for stack, choice in held.stacks.items()},
    )
    without = evolve(
        config,
        adapter=AdapterConfig(),
        training=evolve(config.training, adapter_lr=TrainingConfig().adapter_lr),
        precision=precision,
    )
    check_rack(run, parts.spec, parts.formats.adapters)
    refuse_unmergeable(run, parts.spec, parts.formats.adapters)
    active = read_ending(run).active
    merged: list[tuple[int, str]] = []

    def fold(copy: RunDirectory) -> None:
        placement = set_up_rack(without, registry, planned).forward(copy).placement
        for stack in range(parts.spec.stacks):
            tell(f"stack {stack} of {parts.spec.stacks}")
            for name in copy.adapters(stack):
                merge_adapter(copy, parts.spec, parts.formats.adapters, stack, name)
                merged.append((stack, name))
            placement.bring((stack,), active=active)  # quantised anew where it is

    with working(Console(stderr=True), "merging") as tell:
        copy = copy_run(run, target or beside(directory, "merged"), without, fold)
    if as_json:
        listed = [{"stack": stack, "adapter": name} for stack, name in merged]
        print_json({"run": str(copy.path), "merged": listed})
        return
    plural = "s" if len(merged) > 1 else ""
    click.echo(f"{copy.path}: {len(merged)} adapter{plural} folded into the weights of {parts.spec.stacks} stacks.")
