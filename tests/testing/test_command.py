"""Each check of CommandContract refuses a command that is wrong in just that."""

import click
import pytest

from stackwise_core.cli.public import run_argument
from stackwise_core.interfaces.command import Command, NextStep
from stackwise_core.testing.command import CommandContract


def size(*decorators, name="size"):
    """A command with parameters, and a text."""

    def size(**_):
        """Say what a run takes."""

    for decorator in decorators:
        size = decorator(size)
    return click.command(name)(size)


class Right(Command):
    """A group, whose parts count as well."""

    def make(self):
        group = click.Group("sizes", help="Say what runs take.")
        group.add_command(size(run_argument, click.option("--most", help="Files that are named.")))
        return group


class TestRight(CommandContract):
    @pytest.fixture
    def command(self):
        return Right(None)


class Alone(Command):
    """A command by itself, with the next step that a subclass says."""

    step = NextStep("see its size", ("RUN",))

    def make(self):
        return size(run_argument)

    def next_step(self, run):
        return self.step and NextStep(self.step.purpose, (run.path, *self.step.arguments[1:]))


class TestAlone(CommandContract):
    @pytest.fixture
    def command(self):
        return Alone(None)


def with_parameters(*decorators):
    return type("Wrong", (Command,), {"make": lambda self: size(*decorators)})(None)


class NoCommand(Command):
    def make(self):
        return lambda: None


class OnlyOnce(Command):
    made = None

    def make(self):
        before, self.made = self.made, "made"
        return before or size()


class NoHelp(Command):
    def make(self):
        return click.Command("size")


ANY = {"ignore_unknown_options": True, "allow_extra_args": True}


class AnyUse(Command):
    def make(self):
        return click.Command("size", help="Say it.", context_settings=ANY)


class Heavy(Command):
    def make(self):
        import numpy

        return size() if numpy else None


WRONG = {
    "no command": ("test_it_makes_a_click_command", NoCommand(None)),
    "only once": ("test_it_makes_a_click_command", OnlyOnce(None)),
    "no help": ("test_help_explains_it", NoHelp(None)),
    "an option without help": ("test_help_explains_it", with_parameters(click.option("--most"))),
    "any use": ("test_a_wrong_use_is_exit_code_2", AnyUse(None)),
    "the group's option": ("test_its_options_reach_it", with_parameters(click.option("--debug", help="More."))),
    "any path": ("test_runs_are_named_as_elsewhere", with_parameters(click.argument("run", metavar="RUN"))),
    "slow": ("test_help_comes_at_once", Heavy(None)),
    "no step": (
        "test_its_next_step_is_one_that_it_takes",
        type("Words", (Alone,), {"next_step": lambda self, run: ("see it", [run.path])})(None),
    ),
    "no purpose": (
        "test_its_next_step_is_one_that_it_takes",
        type("Silent", (Alone,), {"step": NextStep("", ("RUN",))})(None),
    ),
    "arguments of another": (
        "test_its_next_step_is_one_that_it_takes",
        type("Other", (Alone,), {"step": NextStep("see it", ("RUN", "--all"))})(None),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_commands_are_refused(what, refuses, tmp_path):
    """Each wrong command fails the check that is about it."""
    check, command = WRONG[what]
    fixtures = {"tmp_path": tmp_path} if check == "test_its_next_step_is_one_that_it_takes" else {}
    refuses(CommandContract(), check, click.UsageError, command=command, **fixtures)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(CommandContract, {check for check, _ in WRONG.values()})
