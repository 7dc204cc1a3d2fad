"""Each check of PluginContract refuses a plugin that is wrong in just that."""

import itertools

import pluggy
import pytest

from stackwise_core.testing.plugin import PluginContract

HOOKS = """
from stackwise_core.hookspecs import Implementation, hookimpl

@hookimpl
def mask_schedule():
    return [Implementation("half", "Half of it", "{module}_half:Half", "{module}_options:Options")]
"""

HALF = """
from stackwise_core.interfaces.mask_schedule import MaskSchedule

class Half(MaskSchedule):
    def fraction(self, progress):
        return 0.5 * progress
"""

OPTIONS = """
from attrs import frozen
from stackwise_core.options import at_least, option

@frozen
class Options:
    power: int = option(1, "Of the progress.", check=at_least(1))
"""

SERIAL = itertools.count()


@pytest.fixture
def contract(tmp_path, monkeypatch):
    """Make a plugin in which one text stands in place of another, and the contract for it."""
    monkeypatch.syspath_prepend(tmp_path)

    def contract(old="", new=""):
        module = f"made_up_plugin_{next(SERIAL)}"
        for suffix, source in (("", HOOKS), ("_half", HALF), ("_options", OPTIONS)):
            text = source.replace(old, new) if old else source
            (tmp_path / f"{module}{suffix}.py").write_text(text.replace("{module}", module))
        return type("TestMadeUp", (PluginContract,), {"hooks": module})()

    return contract


CHECKS = [name for name in vars(PluginContract) if name.startswith("test_")]

WRONG = {
    "nothing": ("test_it_registers_something", "return [", "return [] and ["),
    "a misspelt hook": ("test_it_registers_something", "def mask_schedule", "def mask_schedules"),
    "another API": ("test_it_registers_something", ':Options")', ':Options", api=2)'),
    "no summary": ("test_summaries_are_one_line", '"Half of it"', '" "'),
    "a long summary": ("test_summaries_are_one_line", '"Half of it"', r'"Half\nof it"'),
    "no name": ("test_summaries_are_one_line", '"half"', '""'),
    "hooks with torch": ("test_listing_is_light", "@hookimpl", "import torch\n@hookimpl"),
    "options with numpy": ("test_options_are_light", "@frozen", "import numpy\n@frozen"),
    "another interface": ("test_factories_implement_their_hook", "(MaskSchedule)", "(dict)"),
    "left abstract": ("test_factories_implement_their_hook", "def fraction", "def fractions"),
    "no attrs class": ("test_options_explain_themselves", "@frozen", ""),
    "no help": ("test_options_explain_themselves", '"Of the progress."', '""'),
    "a default that is refused": ("test_defaults_pass_their_checks", "option(1", "option(0"),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_plugin_passes(contract, check):
    """The plugin that the wrong ones are made from is right."""
    getattr(contract(), check)()


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_wrong_plugins_are_refused(what, contract, refuses):
    """Each wrong plugin fails the check that is about it."""
    check, old, new = WRONG[what]
    refuses(contract(old, new), check, ValueError, pluggy.PluginValidationError)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(PluginContract, {check for check, _, _ in WRONG.values()})
