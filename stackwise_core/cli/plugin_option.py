"""The option ``-p`` of every command that loads plugins."""

import click

plugin_option = click.option(
    "-p",
    "plugins",
    multiple=True,
    metavar="PLUGIN",
    help="no:NAME leaves a plugin or distribution out, FILE.py loads a local plugin, "
    "NAME loads one in spite of STACKWISE_PLUGIN_AUTOLOAD=0. May be repeated.",
)
