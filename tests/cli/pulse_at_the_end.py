"""A pulse for tests of commands that are over too soon for a real one."""

import click

from stackwise_core.cli.pulse import Pulse


class AtTheEnd(Pulse):
    """A pulse that says its line once, when the work is done."""

    def __init__(self, text, *, stderr) -> None:
        self.text, self.stderr = text, stderr

    def postpone(self) -> None:
        pass

    def stop(self) -> None:
        click.echo(self.text(), err=self.stderr)
