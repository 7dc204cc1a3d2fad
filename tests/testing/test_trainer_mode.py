"""Each check of TrainerModeContract refuses a mode that is wrong in just that."""

import importlib
import itertools

import attrs
import pytest

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.routing import Route
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.testing.small import small_rack
from stackwise_core.testing.trainer_mode import TrainerModeContract

RIGHT = """
from attrs import frozen
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.routing import Route
from stackwise_core.interfaces.trainer_mode import TrainerMode

@frozen
class Options:
    rounds: int = 2

class AllAtOnce(TrainerMode):
    def plan(self, rack, budget):
        {imports}
        everything = range(rack.stacks)
        return [
            Phase(name=f"round {{turn}}", path=everything, trains=everything, embedding=True, head=True,
                  epochs=budget.epochs_per_stack, steps=budget.steps_per_stack)
            for turn in range(self.options.rounds)
        ]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make a module with the mode, which may import something as it plans."""
    monkeypatch.syspath_prepend(tmp_path)
    serial = itertools.count()

    def module(imports="pass"):
        name = f"mode_for_{tmp_path.name}_{next(serial)}"
        (tmp_path / f"{name}.py").write_text(RIGHT.format(imports=imports))
        return importlib.import_module(name)

    return module


class TestRight(TrainerModeContract):
    @pytest.fixture
    def mode(self, module):
        made = module()
        return made.AllAtOnce(made.Options(rounds=3))


class Made(TrainerMode):
    """A stack after the other; `wrong` changes the phases."""

    def __init__(self, wrong, partition=lambda rack: rack, served=(0.0, 1.0)):
        super().__init__(None)
        self._wrong, self._partition, self._served = wrong, partition, served

    def routes(self, rack):
        return [Route(path=range(rack.stacks), progress=self._served)]

    def partition(self, rack):
        return self._partition(rack)

    def plan(self, rack, budget):
        phases = [
            Phase(
                name=f"stack {stack}",
                path=range(stack + 1),
                trains={stack},
                embedding=stack == 0,
                head=stack == 0,
                epochs=budget.epochs_per_stack,
                steps=budget.steps_per_stack,
            )
            for stack in range(rack.stacks)
        ]
        return self._wrong(phases)


def each(**changes):
    return lambda phases: [attrs.evolve(phase, **changes) for phase in phases]


TURNS = itertools.count()

WRONG = {
    "loses a block": ("test_partition_loses_no_block", Made(list, lambda rack: attrs.evolve(rack, blocks=(1,)))),
    "changes the width": ("test_partition_loses_no_block", Made(list, lambda rack: attrs.evolve(rack, d_model=32))),
    "serves half": ("test_routes_divide_the_schedule", Made(list, served=(0.0, 0.5))),
    "no phases": ("test_the_engine_can_execute_the_plan", Made(lambda phases: [])),
    "trains outside of its path": ("test_the_engine_can_execute_the_plan", Made(each(path=[0]))),
    "leaves a stack out": ("test_every_part_is_trained", Made(lambda phases: phases[:-1])),
    "leaves the embedding out": ("test_every_part_is_trained", Made(each(embedding=False))),
    "leaves the head out": ("test_every_part_is_trained", Made(each(head=False))),
    "from the top down": ("test_a_frozen_prefix_is_trained_before", Made(lambda phases: phases[::-1])),
    "one name": ("test_names_tell_phases_apart", Made(each(name="phase"))),
    "no names": ("test_names_tell_phases_apart", Made(each(name=""))),
    "by chance": (
        "test_equal_questions_have_equal_answers",
        Made(lambda phases: each(epochs=next(TURNS) + 1)(phases)),
    ),
    "deaf to epochs": ("test_the_budget_is_heard", Made(each(epochs=1))),
    "deaf to steps": ("test_the_budget_is_heard", Made(each(steps=None))),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_modes_are_refused(what, refuses):
    """Each wrong mode fails the check that is about it."""
    check, mode = WRONG[what]
    rack = {} if "budget" in check else {"rack": small_rack(2, 2)}
    budget = {} if "partition" in check or "routes" in check else {"budget": Budget()}
    refuses(TrainerModeContract(), check, StackwiseError, mode=mode, **rack, **budget)


@pytest.mark.slow
def test_a_mode_that_imports_torch_is_refused(module, refuses):
    """An import inside of ``plan`` is seen as well."""
    made = module("import torch")
    refuses(
        TrainerModeContract(),
        "test_planning_needs_no_torch",
        mode=made.AllAtOnce(made.Options()),
        budget=Budget(),
    )


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(TrainerModeContract, {check for check, _ in WRONG.values()} | {"test_planning_needs_no_torch"})
