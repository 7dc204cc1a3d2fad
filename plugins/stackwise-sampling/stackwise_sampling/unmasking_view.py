"""Texts as they are unmasked, on a terminal; and what is written, made safe to print.

What a model writes may hold anything: control characters are shown as signs, so that none reaches a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from stackwise_core.cli.pulse import working
from stackwise_sampling.gapped_text import GappedText, Kind, Stretch
from stackwise_sampling.sampling import Step

SECONDS_BETWEEN_FRAMES = 0.08
MASKED = "░"
STYLES = {Kind.GIVEN: "bold", Kind.MASKED: "dim", Kind.FILLED: "", Kind.NEW: "black on green"}
_KEPT = "\n\t"
_BIDIRECTIONAL = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: "\u2421",
    **dict.fromkeys([*range(0x80, 0xA0), *_BIDIRECTIONAL], "\ufffd"),
}


def visible(text: str) -> str:
    """Replace a text's control characters, except new lines and tabs, by visible signs."""
    return text.translate(_SIGNS)


def piped(text: GappedText, ids: np.ndarray) -> str:
    """Return a text for a file or pipe: given parts unchanged, with a new line at the end."""
    parts = (each.text if each.kind is Kind.GIVEN else visible(each.text) for each in text.stretches(ids))
    whole = "".join(parts)
    return whole if whole.endswith("\n") else f"{whole}\n"


def print_texts(console: Console, text: GappedText, rows: np.ndarray) -> None:
    """Print finished texts [num, L] on a terminal."""
    for number, ids in enumerate(rows, start=1):
        if len(rows) > 1:
            console.print(_heading(number, len(rows)))
        console.print(_styled(text.stretches(ids)))


@contextmanager
def watching(
    console: Console, text: GappedText, *, shown: bool, aside: Console | None = None
) -> Iterator[Callable[[Step], None]]:
    """Yield what shows each step on a terminal, and vanishes at the end.

    Args:
        shown: whether the texts are; in a pipe they never are.
        aside: where it is said how far they are, if they aren't shown. [default: stderr]
    """
    if not (shown and console.is_terminal):
        with working(aside or Console(stderr=True), "sampling") as tell:
            yield lambda step: tell(f"step {step.number} of {step.steps}")
        return
    began = drawn = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(step: Step) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= SECONDS_BETWEEN_FRAMES:
                drawn = now
                live.update(_frame(console, text, step, now - began), refresh=True)

        yield show


def _frame(console: Console, text: GappedText, step: Step, seconds: float) -> Group:
    """Return the current texts, no higher than the terminal. If they don't fit, the end of them is shown."""
    lines: list[Text] = []
    last = 0
    ids, places = step.ids.numpy(), step.places.numpy()
    for row in range(len(ids)):
        if len(ids) > 1:
            lines.append(_heading(row + 1, len(ids)))
        of_row = text.stretches(ids[row], places[step.rows.numpy() == row])
        for line in _styled(of_row).wrap(console, console.width):
            lines.append(line)
            if line.plain.strip(MASKED):
                last = len(lines)
    room = max(1, console.size.height - 2)
    end = max(last, room)
    status = f"step {step.number}/{step.steps}  {step.passes} forward passes  {seconds:.1f} s"
    return Group(*lines[max(0, end - room) : end], Text(status, style="dim"))


def _styled(stretches: Iterator[Stretch]) -> Text:
    pieces = (
        (MASKED * each.tokens if each.kind is Kind.MASKED else visible(each.text), STYLES[each.kind])
        for each in stretches
    )
    return Text.assemble(*pieces)


def _heading(number: int, of: int) -> Text:
    return Text(f"--- {number} of {of} ---", style="dim")
