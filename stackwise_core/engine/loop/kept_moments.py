"""Moments that outlive their phase, where ``training.course = "run"``: an optimizer's state by the names of parameters.

What goes on training in a later phase goes on with them, and a stack that begins as a copy has a copy of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from stackwise_core.engine.loop.optimizer import unit_of
from stackwise_core.engine.loop.optimizer_state import Number, optimizer_state
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.names import MOMENTS, ends_moments_file, moments_file

Moments = dict[str, Tensor | Number]
"""State by ``PARAMETER/KEY``."""


def moments_by_name(optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, nn.Parameter]]) -> Moments:
    """Return an optimizer's state by the names of its parameters."""
    tensors, numbers = optimizer_state(optimizer)
    names, moments = _names_by_place(optimizer, named), Moments()
    for each, value in {**tensors, **numbers}.items():
        place, _, key = each.partition(".")
        moments[f"{names[int(place)]}/{key}"] = value
    return moments


def moments_by_place(
    moments: Mapping[str, Tensor | Number], optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, nn.Parameter]]
) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """Return tensors and numbers as ``optimizer_state`` has them; of other parameters nothing."""
    places = {name: place for place, name in enumerate(_names_by_place(optimizer, named))}
    tensors, numbers = dict[str, Tensor](), dict[str, Number]()
    for each, value in moments.items():
        name, _, key = each.rpartition("/")
        if name in places:
            if isinstance(value, Tensor):
                tensors[f"{places[name]}.{key}"] = value
            else:
                numbers[f"{places[name]}.{key}"] = value
    return tensors, numbers


def _names_by_place(optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, nn.Parameter]]) -> list[str]:
    names = {id(parameter): name for name, parameter in named}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def by_stack(moments: Moments) -> Iterator[tuple[str, Tensor | Number]]:
    """Yield moments by name, those of embedding and head first, then one stack's after the other."""

    def place(name: str) -> int:
        stack = unit_of(name)
        return -1 if stack is None else stack

    for name in sorted(moments, key=place):
        yield name, moments[name]


class KeptMoments:
    """The moments that a run's directory keeps from phase to phase.

    Args:
        spec: says whose embedding and head are.
        phase: that begins, or ends.
    """

    def __init__(self, directory: RunDirectory, spec: RackSpec, phase: Phase) -> None:
        self._directory, self._phase = directory, phase
        self._owner = phase.path[0] if spec.ends == "per_stack" else None

    def of(self, stack: int | None) -> Moments:
        """Return those of a stack, or of embedding and head, with which the phase begins; none where there are none.

        Raises:
            StackwiseError: a file isn't what was written.
        """
        if stack is None or self._directory.has_stack(stack) or self._phase.start != "copy":
            return {name: value for name, value in self._read(stack).items() if not self._was_merged(name)}
        copied = self._phase.copied(stack)
        assert copied is not None  # check_phases refuses it
        return {
            f"stacks.{stack}.{name.split('.', 2)[2]}": value
            for name, value in self._read(copied).items()
            if name.startswith("stacks.")
        }

    def _was_merged(self, name: str) -> bool:
        """Return whether a parameter is an adapter's that began afresh when it was folded into the masters."""
        return any(
            name.startswith(f"adapters.{stack}.") and f".{adapter}." in name for stack, adapter in self._phase.merges
        )

    def _file(self, stack: int | None) -> str:
        return ends_moments_file(self._owner) if stack is None else moments_file(stack)

    def _read(self, stack: int | None) -> Moments:
        name = self._file(stack)
        if not self._directory.has(name):
            return {}
        return {**self._directory.read_tensors(name), **self._directory.manifest.about(name).get("numbers", {})}

    def write(self, moments: Iterable[tuple[str, Tensor | Number]]) -> None:
        """Keep moments by name, one stack's after the other; those of parameters that aren't among them stay."""
        for stack, members in groupby(moments, key=lambda each: unit_of(each[0])):
            new = dict(members)
            parameters = {name.rpartition("/")[0] for name in new}
            before = {name: v for name, v in self._read(stack).items() if name.rpartition("/")[0] not in parameters}
            every = {**before, **new}
            tensors = {name: value for name, value in every.items() if isinstance(value, Tensor)}
            numbers = {name: value for name, value in every.items() if not isinstance(value, Tensor)}
            self._directory.write_tensors(self._file(stack), tensors, numbers=numbers)

    def drop(self) -> None:
        """Delete all: the run trains no more."""
        with self._directory.together():
            for name in self._directory.manifest:
                if name.startswith(f"{MOMENTS}/"):
                    self._directory.manifest.drop(name)
