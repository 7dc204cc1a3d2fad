"""``stackwise run``: train what a configuration describes."""

import json
from collections.abc import Sequence

import click
from rich.console import Console

from stackwise_core.cli.arguments import config_options


@click.command(short_help="Train what FILE describes.")
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to stderr.")
def run(file: str, overrides: Sequence[str], plugins: Sequence[str], as_json: bool) -> None:
    """Train the rack that FILE describes, phase by phase, into a directory of its own."""
    from stackwise_core.config.load import load

    config, registry = load(file, overrides=overrides, plugins=plugins)

    # torch comes in here, after the configuration was found to be right.
    from cattrs import unstructure

    from stackwise_core.cli.progress import tokenising, watching
    from stackwise_core.training.engine import Engine
    from stackwise_core.training.plan import make_plan
    from stackwise_core.training.setup import set_up

    console = Console(stderr=as_json)
    with tokenising(console) as progress:
        setup = set_up(config, registry, progress)
        plan = make_plan(setup)
    with watching(console) as listener:
        result = Engine(setup, plan, registry, listener).run()
    if as_json:
        click.echo(json.dumps({**unstructure(result), "directory": str(result.directory)}, indent=2))
