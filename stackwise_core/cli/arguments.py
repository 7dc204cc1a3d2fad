"""The arguments that commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

plugin_option = click.option(
    "-p",
    "plugins",
    multiple=True,
    metavar="PLUGIN",
    help="no:NAME leaves a plugin or distribution out, FILE.py loads a local plugin, "
    "NAME loads one in spite of STACKWISE_PLUGIN_AUTOLOAD=0. May be repeated.",
)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``FILE``, ``--set`` and ``-p``, as ``file``, ``overrides`` and ``plugins`` for ``config.load``."""
    override = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one key, as in --set training.batch_size=8. It wins over the file. May be repeated.",
    )
    return click.argument("file", default="stackwise.toml")(override(plugin_option(command)))


def refuse_other_than_run(directory: Path) -> None:
    """See that a run, finished or not, wrote the directory.

    Raises:
        UsageError: none did; it has the run that was probably meant.
    """
    from stackwise_core.config.source_run import nearest_run
    from stackwise_core.errors import UsageError
    from stackwise_core.runs.manifest import MANIFEST

    if not (directory / MANIFEST).is_file():
        near = nearest_run(directory)
        guess = f" Did you mean {near}?" if near else ""
        raise UsageError(f"expected the directory of a run, and there is no {MANIFEST} in {directory}.{guess}")
