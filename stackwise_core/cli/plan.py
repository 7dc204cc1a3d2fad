"""``stackwise plan``: what a run would do and cost, before it does anything."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import config_options
from stackwise_core.cli.output import json_option, print_json


@click.command(short_help="Show what a run would do and cost.")
@config_options
@json_option()
def plan(file: str, overrides: Sequence[str], plugins: Sequence[str], as_json: bool) -> None:
    """Show the phases of FILE with their parameters, masks, steps, memory, disk and FLOPs. Nothing is trained."""
    from stackwise_core import load_config
    from stackwise_core import plan as planned

    configuration = load_config(file, overrides=overrides, plugins=plugins)

    # torch comes in here, after the configuration was found to be right.
    from stackwise_core.cli.plan_table import print_plan, print_prices
    from stackwise_core.cli.progress import tokenising
    from stackwise_core.training.plan import (
        check_disk,
        check_memory,
        check_stores_directory,
        stores_directory,
    )

    config = configuration.config
    with tokenising(Console(stderr=True), "planning") as tokenised:
        made = planned(configuration, tokenised=tokenised)
    if as_json:
        print_json(made.to_json())
    else:
        print_plan(Console(), made)
        print_prices(Console(), made)
    check_memory(made, config.training.memory_budget)
    check_stores_directory(stores_directory(config))
    check_disk(made, stores_directory(config) or Path(config.run.directory))
