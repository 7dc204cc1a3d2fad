"""Rank and alpha of each stack."""

from stackwise_core.errors import UsageError
from stackwise_peft.options import LoraOptions, Pattern


def _factor(options: LoraOptions, pattern: Pattern, index: int, count: int) -> float:
    """Return a stack's rank or alpha as a factor of the first stack's."""
    if pattern == "constant":
        return 1
    if options.pattern_growth == "doubling":
        base, steps = 2.0, float(index)
    else:
        base, steps = options.span, index / (count - 1) if count > 1 else 0.0
    return base**steps if pattern == "increasing" else base**-steps


def rank_of(options: LoraOptions, index: int, count: int) -> int:
    """Return the rank of stack ``index`` of ``count``, before a projection's smaller side caps it.

    Raises:
        UsageError: ``ranks`` doesn't fit the number of stacks.
    """
    if options.ranks is not None:
        if isinstance(options.ranks, dict):
            if max(options.ranks) >= count:
                raise UsageError(f"ranks of an adapter: stack {max(options.ranks)} isn't among the {count} of the rack")
            return options.ranks.get(index, options.rank)
        if len(options.ranks) != count:
            raise UsageError(f"ranks of an adapter: expected {count}, one a stack, found {len(options.ranks)}")
        return options.ranks[index]
    rank = options.rank * _factor(options, options.rank_pattern, index, count)
    return max(1, int(rank) if options.pattern_growth == "doubling" else round(rank))


def alpha_of(options: LoraOptions, index: int, count: int) -> float:
    """Return the alpha of stack ``index`` of ``count``."""
    return options.alpha * _factor(options, options.alpha_pattern, index, count)
