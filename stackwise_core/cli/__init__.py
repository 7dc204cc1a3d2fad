"""The command line: the group ``stackwise``, whose commands are imported when they are used.

The commands of plugins are listed after the core's own.
"""

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from stackwise_core import __version__
from stackwise_core.cli import plugin_commands
from stackwise_core.cli.arguments import early_plugin_option, refuse_other_than_utf8
from stackwise_core.cli.failures import report as report_failure
from stackwise_core.cli.interrupts import interrupted_by_signals
from stackwise_core.cli.output import replace_what_cannot_be_encoded
from stackwise_core.cli.shown_paths import note_working_directory
from stackwise_core.interfaces.command import CORE_COMMANDS
from stackwise_core.registry.nearest import nearest

COMMANDS = CORE_COMMANDS
"""Names of the core's commands; each is in the module of its own name."""


class CommandLine(click.Group):
    """Command group that imports its commands lazily, and turns every exception into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order in which a newcomer meets them."""
        return [*COMMANDS, *super().list_commands(ctx), *plugin_commands.names(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command of the core, or describe a plugin's; ``resolve_command`` imports that."""
        if cmd_name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
            return command
        return super().get_command(ctx, cmd_name) or plugin_commands.described(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names; click guesses only among those that aren't lazy."""
        try:
            name, command, rest = super().resolve_command(ctx, args)
        except click.UsageError as error:
            plugin_commands.refuse_unavailable(ctx, args[0])
            close = nearest(args[0], self.list_commands(ctx))
            if close is None:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{close}'?", ctx) from None
        if isinstance(command, plugin_commands.Described):
            command = command.made()
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. ``report_failure`` reports an interrupt, since click fails when the terminal is gone."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; with ``standalone_mode=False`` exceptions are left to the caller."""
        note_working_directory()
        arguments = list(sys.argv[1:] if args is None else args)
        # Taken out here, so that it may stand before and after the command.
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
        replace_what_cannot_be_encoded()
        try:
            with interrupted_by_signals():
                refuse_other_than_utf8(arguments)
                result = super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        except Exception as error:
            if not standalone_mode:
                raise
            result = 1
            with suppress(OSError):  # nobody is there to read it
                result = report_failure(error, debug)
        if not standalone_mode:
            return result
        sys.exit(result)


@click.group(
    cls=CommandLine,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='RUN is the directory of a run, or its name: first is runs/first. "stackwise runs" lists them.',
)
@click.version_option(__version__, prog_name="stackwise", message="%(prog)s %(version)s")
@early_plugin_option
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error, the plugin's own too.")
def main() -> None:
    """Train transformers stack by stack with a masked-diffusion objective."""
