"""The hook ``command`` (provisional): a command of ``stackwise``, beside those of the core."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from attrs import frozen

from stackwise_core.interfaces.component import Component

if TYPE_CHECKING:
    import click

CORE_COMMANDS = (
    "run",
    "runs",
    "evaluate",
    "plan",
    "check",
    "plugins",
    "verify",
    "restore",
    "merge",
    "export",
    "cache",
)
"""The core's own commands, in the order in which a newcomer meets them. Plugins can't use these names."""


@frozen(kw_only=True)
class EndedRun:
    """A run that has just ended."""

    path: str
    """The run's directory, as an argument of a command."""
    keeps_weights: bool
    """Whether the run has its rack's weights (``checkpoint.save_stacks``)."""
    causal: bool
    """Whether it predicts each token from those before it, and masks none."""


@frozen
class NextStep:
    """A command to use on a run, as suggested at the end of the run."""

    purpose: str
    """The purpose in a few words, such as ``write text``."""
    arguments: tuple[str, ...]
    """The arguments after the command's name."""


class Command(Component):
    """A command of ``stackwise``. Its module is imported when it is used, and it has no options in the TOML."""

    @abstractmethod
    def make(self) -> "click.Command":
        """Make the command, a click command or group. The plugin's ``Implementation`` names it."""

    def next_step(self, run: EndedRun) -> NextStep | None:
        """Suggest what the command can do with a run that has just ended; None (the default): nothing."""
        return None
