"""Exit codes and messages: every exception becomes one message on stderr."""

import errno
import os
import traceback
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from stackwise_core.cli.shown_paths import shown
from stackwise_core.errors import StackwiseError, is_out_of_memory
from stackwise_core.printable import printable
from stackwise_core.registry.culprit import culprit
from stackwise_core.system.files import limit_of_open_files

INTERRUPTED = 130


def report(error: Exception, debug: bool) -> int:
    """Print what went wrong, after its traceback where ``debug`` asks for that; return the exit code."""
    if isinstance(error, click.Abort):  # what click makes of KeyboardInterrupt
        with suppress(OSError):  # a terminal that hung up
            click.echo("\ninterrupted", err=True)  # behind the terminal's own ^C
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, StackwiseError):
        _say(str(error))
        return error.exit_code
    if is_out_of_memory(error):
        _say(
            "out of memory. In training a smaller training.batch_size (with more training.gradient_accumulation), "
            "training.window, data.seq_len or rack.d_model needs less, and so does training.residency = "
            '"stream". "stackwise plan" says how much each phase takes.'
        )
        return 1
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        where = f": {shown(Path(os.fsdecode(error.filename)))}" if error.filename else ""
        _say(f"{reason}{where}{_advice(error)}")
        return 1
    plugin = culprit(error)
    owner = f"in the plugin {plugin}" if plugin else "in Stackwise"
    hint = "" if debug else " --debug shows the traceback."
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
    _say(f"this is a defect {owner}: {text}.{hint}")
    return 1


def _advice(error: OSError) -> str:
    """Return what to do about an error of the system that doesn't say so itself."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f". This process may open {limit_of_open_files()} files at a time; ulimit -n raises that."
    if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.ENOLCK):
        return (
            ". Its file system lacks a call that this needs: name a directory on another one (run.directory, "
            "data.tokens_directory, cache_backend.directory)."
        )
    return ""


def _say(message: str) -> None:
    message = printable(message, keep="\n\t")
    console = Console(stderr=True, highlight=False)
    prefix = Text("error: ", style="bold red") if console.is_terminal else Text()
    # Lines with carets under them are left as they are, and so is all that goes to a file.
    as_it_is = "\n" in message or not console.is_terminal
    console.print(prefix + Text(message), soft_wrap=as_it_is)
