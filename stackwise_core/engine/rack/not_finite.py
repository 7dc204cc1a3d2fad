"""Diagnosis of a loss that is no finite number: the place in the rack where numbers stop being finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.number_range import FINITE, OutOfRange
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.errors import StackwiseError

WIDER = " It computes in fp16, whose numbers end at 65504: take precision bf16 or fp32."


def refuse_not_finite(values: Tensor, forward: Forward, path: Sequence[int], draws: Draws, what: str) -> None:
    """Refuse a batch's losses where they aren't all finite.

    Args:
        values: the losses.
        path: the stacks that the batch passed.
        what: there can't be, for the message: ``"no likelihood can be had"``.

    Raises:
        StackwiseError: they aren't, with the stack and the tensor at which that begins.
    """
    if not FINITE.holds(values):
        raise StackwiseError(f"{what}: {first_not_finite(forward, path, draws) or 'the losses are not finite.'}")


def refuse_weights(forward: Forward, path: Sequence[int], what: str) -> NoReturn:
    """Refuse weights that aren't finite, of a path that predicted what is no number.

    Raises:
        StackwiseError: in any case, with the first of them where there is one.
    """
    for index in path:
        with forward.placement.visiting(index):
            if found := _first(_weights(forward.placement, index, path)):
                raise StackwiseError(f"{what}: {found}")
    hint = "".join(sorted({_of_fp16(forward, index) for index in path}))
    raise StackwiseError(f"{what}, though all weights are.{hint}")


@torch.no_grad()
def first_not_finite(forward: Forward, path: Sequence[int], draws: Draws) -> str:
    """Return which weight, or which stack's result, is the first on a path that isn't finite; empty where all are.

    The batch passes the path once more for it, from the tokens on.
    """
    hidden = forward.embed(path[0], draws.inputs, draws.fraction)
    for index in path:
        with forward.placement.visiting(index):
            if found := _first(_weights(forward.placement, index, path)):
                return found
            with forward.eagerly():
                hidden = forward.through(index, hidden, forward.context(draws.segments))
            leaving = f"what leaves stack {index}, whose weights are all finite,"
            if found := _first([(leaving, hidden)]):
                return found + _of_fp16(forward, index)
            if index == path[-1]:
                predicted = hidden.flatten(0, 1).index_select(0, draws.masked.to(hidden.device))
                losses = forward.cross_entropy(index, predicted, draws.targets.to(hidden.device))
                return _first([(f"what the head makes of the exit of stack {index}", losses)])
    return ""


def _weights(placement: Placement, index: int, path: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a stack and of its adapters, and those of the ends at the first and the last stack."""
    if index == path[0]:
        yield from ((name, each) for name, each in placement.ends(index).named_parameters() if "embed_" in name)
    yield from ((f"stack {index}, {name}", each) for name, each in placement.tensors(index).items())
    yield from ((f"stack {index}, {name}", each) for name, each in placement.stack(index).named_parameters())
    if index == path[-1]:
        yield from ((name, each) for name, each in placement.ends(index).named_parameters() if "embed_" not in name)


def _of_fp16(forward: Forward, index: int) -> str:
    """Return what helps a stack that computes in fp16; empty where it computes in another format."""
    kind = forward.device.type
    with forward.placement.precision(index).autocast(forward.device):
        computes_in_fp16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return WIDER if computes_in_fp16 else ""


def _first(tensors: Iterator[tuple[str, Tensor]] | list[tuple[str, Tensor]]) -> str:
    """Describe the first tensor that isn't finite; empty where all are."""
    for name, tensor in tensors:
        if tensor.is_floating_point():
            try:
                FINITE.check(tensor, name)
            except OutOfRange as error:
                return str(error)
    return ""
