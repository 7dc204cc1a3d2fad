"""The arguments that commands share."""

from collections.abc import Callable
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
