"""Contract of every command."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stackwise_core.cli.public import Run
from stackwise_core.interfaces.command import Command, EndedRun, NextStep
from stackwise_core.testing.fresh import heavy_imports

OF_THE_GROUP = ("--debug",)
"""Options that ``stackwise`` takes out of a command line before any command sees it."""


def parameters(command: click.Command) -> Iterator[click.Parameter]:
    """Yield every parameter of a command and of those within it."""
    yield from command.params
    for inner in getattr(command, "commands", {}).values():
        yield from parameters(inner)


class CommandContract:
    """Subclass it and provide the fixture ``command``."""

    @pytest.fixture
    def command(self) -> Command:
        """The command to test."""
        raise NotImplementedError("the subclass provides the fixture `command`")

    def test_it_makes_a_click_command(self, command: Command) -> None:
        """Each time that it is asked."""
        assert all(isinstance(command.make(), click.Command) for _ in range(2))

    def test_help_explains_it(self, command: Command) -> None:
        """There is a text, and one for each option."""
        made = command.make()
        assert (made.help or "").strip()
        options = [each for each in parameters(made) if isinstance(each, click.Option) and not each.hidden]
        assert [each.name for each in options if not (each.help or "").strip()] == []
        assert CliRunner().invoke(made, ["--help"]).exit_code == 0

    def test_a_wrong_use_is_exit_code_2(self, command: Command) -> None:
        """Wrong usage exits with 2 and writes nothing to stdout, which others read."""
        result = CliRunner().invoke(command.make(), ["--no-such-option-anywhere"])
        assert (result.exit_code, result.stdout) == (2, "")

    def test_its_options_reach_it(self, command: Command) -> None:
        """None has a name that ``stackwise`` takes for its own."""
        taken = [option for each in parameters(command.make()) for option in each.opts if option in OF_THE_GROUP]
        assert taken == []

    def test_runs_are_named_as_elsewhere(self, command: Command) -> None:
        """An argument that is shown as RUN takes a run's name, too."""
        asking = [each for each in parameters(command.make()) if (each.metavar or "").split()[:1] == ["RUN"]]
        assert all(isinstance(each.type, Run) for each in asking)

    def test_help_comes_at_once(self, command: Command) -> None:
        """Importing and making it imports neither numpy nor torch nor transformers; running it may."""
        module, name = type(command).__module__, type(command).__qualname__
        options = "from stackwise_core.options import NoOptions"
        assert heavy_imports(f"{options}\nimport {module}\n{module}.{name}(NoOptions()).make()") == []

    def test_its_next_step_is_one_that_it_takes(self, command: Command, tmp_path: Path) -> None:
        """The next step that it suggests is a few words, and arguments that it accepts."""
        directory = tmp_path / "runs" / "first"
        directory.mkdir(parents=True)
        for keeps_weights, causal in itertools.product((True, False), repeat=2):
            step = command.next_step(EndedRun(path=str(directory), keeps_weights=keeps_weights, causal=causal))
            if step is None:
                continue
            assert isinstance(step, NextStep)
            assert step.purpose.strip() == step.purpose != ""
            assert len(step.purpose.splitlines()) == 1
            with command.make().make_context("command", list(step.arguments)):
                pass
