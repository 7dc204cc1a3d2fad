"""The planned learning rate of all phases, as a line of bars."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from stackwise_core.engine.plan.phase_plan import PhasePlan

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 60
MOST_MARKED = 16
"""Number of phases up to which a stroke is drawn between them."""


def schedule_line(phases: Sequence[PhasePlan]) -> str:
    """Return bars for the learning rate over the steps of all phases, whose highest is a full one, and its value."""
    lengths = [planned.steps for planned in phases]
    begins = list(accumulate(lengths[:-1], initial=0))
    steps = [begin + step for begin, planned in zip(begins, phases, strict=True) for step, _ in planned.rates]
    rates = [rate for planned in phases for _, rate in planned.rates]
    highest = max(rates)
    if not highest > 0:
        return "learning rate: 0"
    total, marked = sum(lengths), len(phases) <= MOST_MARKED
    parts = []
    for begin, length in zip(begins, lengths, strict=True) if marked else [(0, total)]:
        columns = max(1, round(COLUMNS * length / total))
        centres = begin + (np.arange(columns) + 0.5) * length / columns - 0.5
        # A phase's last step and the next one's first are a step apart, so that one line serves all.
        heights = np.interp(centres, steps, rates) / highest
        parts.append("".join(BARS[min(len(BARS) - 1, int(height * len(BARS)))] for height in heights))
    return f"learning rate: {'│'.join(parts)} (at most {highest:.3g})"
