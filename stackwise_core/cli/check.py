"""``stackwise check``: a configuration's faults, or a summary of it where it has none; without torch."""

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stackwise_core.cli.arguments import config_options
from stackwise_core.cli.output import json_option, print_json
from stackwise_core.cli.tables import print_aligned
from stackwise_core.config.choices import chosen
from stackwise_core.config.errors import ProblemsError
from stackwise_core.config.load import load
from stackwise_core.engine.text.sources import text_problems


@click.command(short_help="Find all mistakes in a configuration.")
@config_options
@json_option("Print JSON, the problems too.")
def check(file: str, overrides: Sequence[str], plugins: Sequence[str], as_json: bool) -> None:
    """Check FILE, and show the implementation of each of its hooks. Nothing is run."""
    try:
        config, registry = load(file, overrides=overrides, plugins=plugins, more_checks=text_problems)
    except ProblemsError as error:
        if not as_json:
            raise
        print_json(error.as_json())
        raise SystemExit(error.exit_code) from error
    rows = [
        (key, declared.name, declared.package)
        for key, hook, choice in chosen(config)
        for declared in [registry.resolve(hook, choice.use)]
    ]
    if as_json:
        uses = {key: {"use": name, "package": package} for key, name, package in rows}
        print_json({"ok": True, "file": file, "uses": uses})
        return
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Text.assemble((file, "bold"), " is ", ("fine", "green"), "."))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for key, name, package in rows:
            table.add_row(Text(f"  {key}"), Text(name, style="bold cyan"), Text(package, style="dim"))
        console.print(table)
        return
    click.echo(f"{file} is fine.")
    print_aligned(rows, indent="  ")
