"""``stackwise plan``: show a run's phases and their cost, without running it."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import beyond_machine_option, config_options
from stackwise_core.cli.output import json_option, print_json


@click.command(short_help="Show what a run would do and cost.")
@config_options
@beyond_machine_option
@json_option()
def plan(file: str, overrides: Sequence[str], plugins: Sequence[str], beyond_machine: bool, as_json: bool) -> None:
    """Show the phases of FILE with their parameters, masks, steps, memory, disk, FLOPs and time. Nothing is trained."""
    from stackwise_core import load_config
    from stackwise_core.api import prepare

    configuration = load_config(file, overrides=overrides, plugins=plugins)

    # torch comes in here, after the configuration was found to be right.
    from stackwise_core.cli.plan_table import print_plan, print_prices
    from stackwise_core.cli.run_display import tokenising
    from stackwise_core.engine.plan.plan_limits import (
        check_disk,
        check_memory,
        check_possible,
        check_stores_directory,
        stores_directory,
    )
    from stackwise_core.engine.process.memory import device_memory

    config = configuration.config
    with tokenising(Console(stderr=True), "planning") as tokenised:
        prepared = prepare(configuration, tokenised)
    made = prepared.plan
    if as_json:
        print_json(made.to_json())
    else:
        print_plan(Console(), made)
        print_prices(Console(), made)
    check_memory(made, config.training.memory_budget)
    if not beyond_machine:
        check_possible(made, device_memory(prepared.setup.device), Path(config.run.directory))
    check_stores_directory(stores_directory(config))
    check_disk(made, stores_directory(config) or Path(config.run.directory))
