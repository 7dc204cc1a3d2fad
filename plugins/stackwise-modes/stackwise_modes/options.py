"""Options of the trainer modes."""

import math
from typing import Any, Literal

from attrs import frozen

from stackwise_core.interfaces.planning import Start
from stackwise_core.options import at_least, between, option

Joins = Literal["share", "plateau"]
"""When the next stacks join: after a share of the budget, or at a plateau."""


def _start() -> Start:
    return option(
        "random",
        "Initial weights of a stack that joins others. random. copy: those of its neighbour. zero_output: random, but "
        "zeros for the projections into the residual stream, so that it changes nothing at first.",
    )


def _all_above_zero(instance: Any, attribute: Any, value: tuple[float, ...]) -> None:
    if not all(0 < share < math.inf for share in value) or not math.isfinite(sum(value)):
        raise ValueError("expected numbers above 0, one a stack to build")


def _with_a_finale(instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, float):
        at_least(0)(instance, attribute, value)
    if value != attribute.default and not instance.finale:
        raise ValueError(f"expected {attribute.default!r} without a finale")


def _with_a_stackwise_finale(instance: Any, attribute: Any, value: int) -> None:
    at_least(1)(instance, attribute, value)
    if value != attribute.default and (not instance.finale or instance.finale_scope != "stackwise"):
        raise ValueError('expected 1 without a finale of finale_scope "stackwise"')


def _with_unfrozen_fusion(instance: Any, attribute: Any, value: bool) -> None:
    if value and instance.fusion == "frozen":
        raise ValueError('expected false with fusion = "frozen"')


def _with_a_plateau(instance: Any, attribute: Any, value: float) -> None:
    between(0, 1)(instance, attribute, value)
    if value != attribute.default and instance.joins != "plateau":
        raise ValueError(f'expected {attribute.default!r} without joins = "plateau"')


def _shares(of: str = "stacks") -> tuple[float, ...]:
    return option(
        (),
        f"Shares of the budget for the {of}, in the order of building, such as [3, 2, 2, 1]. Left out: equal shares.",
        check=_all_above_zero,
    )


def _joins() -> Joins:
    return option(
        "share",
        "End of a phase, at which the next stacks join. share: after its share of the budget. plateau: earlier, where "
        "its loss on held-out text stops falling (training.patience); the next phase gets what is left of its budget.",
    )


def _least() -> float:
    return option(
        0.25, 'Share of its own budget that a phase takes in any case with joins = "plateau".', check=_with_a_plateau
    )


def _cycles(default: int, what: str) -> int:
    return option(default, f"Number of times that {what}.", check=at_least(1))


@frozen
class BlockwiseOptions:
    start: Start = _start()
    shares: tuple[float, ...] = _shares()
    joins: Joins = _joins()
    least: float = _least()


@frozen
class ProgressiveOptions:
    building: Literal["append", "prepend", "interleave"] = option(
        "append",
        "append: new stacks join above the existing ones. prepend: below them. interleave: between them, evenly.",
    )
    trunk: Literal["frozen", "adapters", "trains"] = option(
        "frozen",
        "Training of the existing stacks: none; their adapters; or all of them, with embedding and head.",
    )
    growth: Literal["one", "double", "all"] = option(
        "one", "Number of stacks that join at a time. one. double: as many as there are. all: all that are missing."
    )
    begin_with: int = option(
        1, "Number of stacks that train together in the first phase of a rack without a source.", check=at_least(1)
    )
    target_stacks: int | None = option(
        None,
        "Number of stacks to grow to, beyond those of [rack] or of its init_from. Left out: rack.stacks.",
        check=at_least(1),
    )
    start: Start = _start()
    shares: tuple[float, ...] = _shares("phases of growth")
    joins: Joins = _joins()
    least: float = _least()
    finale: float = option(
        0.0,
        "Share of the budget for the finale: a last phase, or several, with the whole rack in the path.",
        check=between(0, 0.9),
    )
    finale_scope: Literal["rackwise", "stackwise"] = option(
        "rackwise",
        "rackwise: the finale trains everything at once. stackwise: one stack at a time, in cycles. With "
        'trunk = "adapters" it trains all adapters, and no weights.',
        check=_with_a_finale,
    )
    finale_lr: float = option(1.0, "Factor of all learning rates in the finale.", check=_with_a_finale)
    cycles: int = option(
        1, "Number of times that a stackwise finale goes through the stacks.", check=_with_a_stackwise_finale
    )


@frozen
class FusedOptions:
    fusion: Literal["frozen", "trainable", "hierarchical"] = option(
        "frozen",
        "frozen: the trunk runs on fresh masks, and its boundaries are in memory for one window. trainable: the stacks "
        "below train, too, with embedding and head. hierarchical: single stacks, then pairs that train jointly over "
        "frozen ones, then fours, and so on; at the end all.",
    )
    restore: bool = option(
        False,
        "For a trunk whose precision can't train (a quantised one). true: the full-precision masters train, and are "
        "quantised again afterwards. false: adapters train over the quantised weights.",
        check=_with_unfrozen_fusion,
    )
    start: Start = _start()
    shares: tuple[float, ...] = option(
        (),
        "Shares of the budget for the stacks, in the order of building, such as [3, 2, 2, 1]; with fusion = "
        '"hierarchical" for its levels. Left out: equal shares.',
        check=_all_above_zero,
    )
    joins: Joins = _joins()
    least: float = _least()


@frozen
class EndToEndOptions:
    scope: Literal["rackwise", "stackwise"] = option(
        "rackwise",
        "rackwise: everything trains at once. stackwise: one stack at a time, with the whole rack in the path.",
    )
    cycles: int = _cycles(4, "the stackwise scope goes through the stacks")


@frozen
class BandedOptions:
    shared: Literal["interleaved", "after_first", "per_stack"] = option(
        "interleaved",
        "Embedding and head. interleaved: all phases train them. after_first: only the first phase does. per_stack: "
        "each stack has its own.",
    )
    cycles: int = _cycles(4, "all stacks have a phase")
    widen: float = option(
        0.0,
        "Widening of each band at both ends in training, as a share of its width. Evaluation never widens it.",
        check=between(0, 1),
    )
