"""The arguments that commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

_SELECTED = f"{__name__}.selected"
"""The key of click's notes under which the values of ``-p`` before the command are."""


def selected_plugins(context: click.Context) -> tuple[str, ...]:
    """Return the values of ``-p`` that stand before the command."""
    selected: tuple[str, ...] = context.meta.get(_SELECTED, ())
    return selected


def _note_selected(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    context.meta[_SELECTED] = value


def _with_selected(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return (*selected_plugins(context), *value)


_PLUGIN_HELP = (
    "no:NAME leaves a plugin or distribution out, FILE.py loads a local plugin, "
    "NAME loads one in spite of STACKWISE_PLUGIN_AUTOLOAD=0. May be repeated."
)
plugin_option = click.option(
    "-p", "plugins", multiple=True, metavar="PLUGIN", callback=_with_selected, help=_PLUGIN_HELP
)
"""``-p``, as ``plugins``: those before the command are among them."""

early_plugin_option = click.option(
    "-p",
    "plugins",
    multiple=True,
    metavar="PLUGIN",
    callback=_note_selected,
    is_eager=True,  # a --help behind it lists the plugin's commands
    expose_value=False,
    help=f"{_PLUGIN_HELP} A plugin's own command needs it here, before the command.",
)
"""``-p`` before the command."""

beyond_machine_option = click.option(
    "--beyond-machine",
    is_flag=True,
    help="Don't refuse a plan that needs several times the memory that there is, or weights that the disk doesn't "
    "hold.",
)


class Run(click.ParamType):
    """A run by its path, or by its name in the directory of runs."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the run's directory."""
        from stackwise_core.config.run_names import run_named

        return value if isinstance(value, Path) else run_named(value)


class ConfigurationOrRun(click.ParamType):
    """A TOML file; or a run, whose directory has its configuration."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path of the file, or of the run's directory."""
        from stackwise_core.config.run_names import configuration_or_run_named

        return configuration_or_run_named(value)


run_argument = click.argument("directory", metavar="RUN", type=Run())


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``FILE``, ``--set`` and ``-p``, as ``file``, ``overrides`` and ``plugins`` for ``config.load``."""
    override = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one key, as in --set training.batch_size=8. It wins over the file. May be repeated.",
    )
    return click.argument("file", default="stackwise.toml", type=ConfigurationOrRun())(override(plugin_option(command)))


def refuse_other_than_utf8(arguments: Sequence[str]) -> None:
    """Refuse arguments that aren't UTF-8, as the files are in which names are kept.

    Raises:
        UsageError: one isn't.
    """
    from stackwise_core.errors import UsageError

    for before, argument in zip(["", *arguments], arguments, strict=False):
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            option = f"{before}: " if before.startswith("-") else ""
            raise UsageError(f"{option}expected UTF-8, found {argument!r}. Rename it, or write it anew.") from None


def refuse_other_than_run(directory: Path) -> None:
    """Refuse a directory that no run, finished or not, wrote.

    Raises:
        UsageError: none did; it has the run that was probably meant.
    """
    from stackwise_core.config.source_run import nearest_run
    from stackwise_core.errors import UsageError
    from stackwise_core.run_files.names import MANIFEST

    if not (directory / MANIFEST).is_file():
        near = nearest_run(directory)
        guess = f" Did you mean {near}?" if near else ""
        raise UsageError(f"expected the directory of a run, and there is no {MANIFEST} in {directory}.{guess}")
