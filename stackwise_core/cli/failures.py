"""Every exception's one message on stderr, and its exit code."""

import traceback

import click
from rich.console import Console
from rich.text import Text

from stackwise_core.config.errors import printable
from stackwise_core.errors import StackwiseError
from stackwise_core.registry.culprit import culprit

INTERRUPTED = 130


def report(error: Exception, debug: bool) -> int:
    """Print what went wrong, after its traceback where ``debug`` asks for that; give the exit code."""
    if isinstance(error, click.Abort):  # what click makes of KeyboardInterrupt
        click.echo("interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, StackwiseError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        _say(f"{reason}: {error.filename}" if error.filename else reason)
        return 1
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        _say(
            "out of memory. In training a smaller training.batch_size (with more training.gradient_accumulation), "
            "training.window, data.seq_len or rack.d_model needs less, and so does training.trunk_residency = "
            '"stream". "stackwise plan" says how much each phase takes.'
        )
        return 1
    plugin = culprit(error)
    owner = f"in the plugin {plugin}" if plugin else "in Stackwise"
    hint = "" if debug else " --debug shows the traceback."
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
    _say(f"this is a defect {owner}: {text}.{hint}")
    return 1


def _say(message: str) -> None:
    message = printable(message, keep="\n\t")
    console = Console(stderr=True, highlight=False)
    prefix = Text("error: ", style="bold red") if console.is_terminal else Text()
    # Lines with carets under them are left as they are, and so is all that goes to a file.
    as_it_is = "\n" in message or not console.is_terminal
    console.print(prefix + Text(message), soft_wrap=as_it_is)
