"""Options of the adapters."""

from typing import Any, Literal

from attrs import frozen

from stackwise_core.options import Check, above, at_least, option
from stackwise_peft.projections import PROJECTIONS, Projection

Pattern = Literal["constant", "increasing", "decreasing"]


def _some(instance: Any, attribute: Any, value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError("expected the name of a projection at least")


def _below_one(instance: Any, attribute: Any, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError("expected a number from 0 to below 1")


def _with_its_keys(instance: Any, attribute: Any, value: str) -> None:
    if value == "progressive" and instance.rank_pattern == instance.alpha_pattern == "constant":
        raise ValueError('"progressive" needs rank_pattern or alpha_pattern to be "increasing" or "decreasing"')
    if value == "variable" and instance.ranks is None:
        raise ValueError('"variable" needs ranks')


def _only_with(key: str, needed: str, check: Check | None = None) -> Check:
    """Make a check that refuses a value other than the default unless another key gives it an effect."""

    def check_both(instance: Any, attribute: Any, value: Any) -> None:
        if value != attribute.default and getattr(instance, key) != needed:
            raise ValueError(f'only has an effect with {key} = "{needed}"')
        if check is not None:
            check(instance, attribute, value)

    return check_both


def _ranks(instance: Any, attribute: Any, value: "tuple[int, ...] | dict[int, int] | None") -> None:
    if value is None:
        return
    by_stack = value if isinstance(value, dict) else dict(enumerate(value))
    if not by_stack or min(by_stack) < 0 or min(by_stack.values()) < 1:
        raise ValueError("expected ranks of at least 1, by stack from 0")


@frozen
class LoraOptions:
    rank: int = option(
        16,
        "Columns of B and rows of A. A projection whose smaller side is less than that has that side as its rank.",
        check=at_least(1),
    )
    alpha: float = option(
        32.0, "Numerator of the scale of B A: alpha / rank, or alpha / sqrt(rank) for rslora.", check=above(0)
    )
    dropout: float = option(
        0.0,
        "Share of the adapter's input that is dropped in training. peft's default is 0; QLoRA's paper has 0.05 to 0.1.",
        check=_below_one,
    )
    target_modules: tuple[Projection, ...] = option(PROJECTIONS, "The projections that get an adapter.", check=_some)
    strategy: Literal["simplified", "progressive", "variable"] = option(
        "simplified",
        "simplified: the same rank on every stack; progressive: rank and alpha follow their patterns from the first "
        "stack to the last; variable: ranks says each stack's.",
        check=_with_its_keys,
    )
    rank_pattern: Pattern = option(
        "constant",
        "Course of a progressive rank over the stacks, from rank at the first.",
        check=_only_with("strategy", "progressive"),
    )
    alpha_pattern: Pattern = option(
        "constant",
        "Course of a progressive alpha over the stacks, from alpha at the first.",
        check=_only_with("strategy", "progressive"),
    )
    pattern_growth: Literal["interpolated", "doubling"] = option(
        "interpolated",
        "interpolated: equal ratios from stack to stack, up to span times the first value, or down to its span-th "
        "part. doubling: twice or half of the stack before.",
        check=_only_with("strategy", "progressive"),
    )
    span: float = option(
        4.0,
        "Ratio of the last stack's value and the first's, if interpolated.",
        check=_only_with("strategy", "progressive", _only_with("pattern_growth", "interpolated", above(1))),
    )
    ranks: tuple[int, ...] | dict[int, int] | None = option(
        None,
        "Variable ranks: one a stack, or a table by stack such as { 0 = 4, 3 = 32 }, with rank for the others.",
        check=_only_with("strategy", "variable", _ranks),
    )


@frozen
class PissaOptions(LoraOptions):
    svd_iterations: int | None = option(
        None,
        "Subspace iterations of a randomised SVD, which is faster on wide matrices: 4 to 16. Left out: an exact SVD.",
        check=at_least(1),
    )


@frozen
class Ia3Options:
    target_modules: tuple[Projection, ...] = option(
        ("k_proj", "v_proj", "down_proj"),
        "The projections that it scales: the input of those of the feed-forward layer, and the output of those of "
        "attention.",
        check=_some,
    )
