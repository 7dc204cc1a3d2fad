"""Tables of measured training steps, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

HAND, ENGINE, TRAINER = "by hand", "engine", "Trainer"
TENSORS, RECOMPUTED, DOCUMENTS = "engine, on tensors", "by hand, trunk recomputed", "engine, several documents a row"
"""Names of ways in the results."""
TARGETS = {HAND: 0.98, f"{HAND}, compiled": 0.98, TRAINER: 1.3, RECOMPUTED: 1.0}
"""How many times as fast the engine is to be as each, at least."""
CACHED = 0.95
"""The same for a step that reads its input, against one whose input is there."""
MANY_DOCUMENTS = 0.95
"""The same for rows of several documents, against rows of one."""


@frozen
class CaseTable:
    """A measured case, as JSON has it."""

    found: Mapping[str, Any]
    peak: float
    """Floating-point operations a second of a large product in bf16."""

    def ratios(self, way: str, to: str) -> list[float]:
        """Return how many times as fast a way is as another, in each round."""
        seconds = self.found["seconds"]
        return [other / one for one, other in zip(seconds[way], seconds[to], strict=True)]

    def speed(self, way: str) -> float:
        """Return the median tokens a second of a way."""
        return float(self.found["tokens"] / statistics.median(self.found["seconds"][way]))

    def rows(self, case: str) -> Iterator[str]:
        """Yield a row for each way."""
        seconds = self.found["seconds"]
        for way in sorted(seconds, key=lambda each: each != HAND):
            share = self.speed(way) * self.found["flops"] / self.peak
            cells = [case, way, f"{self.speed(way):,.0f}", "" if way == HAND else ranged(self.ratios(way, HAND))]
            cells += [ranged(self.ratios(way, TRAINER)) if TRAINER in seconds and way.startswith(ENGINE) else ""]
            yield f"| {' | '.join(cells)} | {share:.2f} |"

    def profile_rows(self, case: str) -> Iterator[str]:
        """Yield a row of shares for each way that was profiled."""
        for way, each in self.found["profiles"].items():
            waited = "" if way == HAND else f"{self.found['waited']:.1%}"
            yield f"| {case} | {way} | {each['products']:.1%} | {each['others']:.1%} | {each['idle']:.1%} | {waited} |"

    def largest(self, case: str) -> Iterator[str]:
        """Yield a line of the largest operators of each way that was profiled."""
        for way, each in self.found["profiles"].items():
            listed = ", ".join(f"`{name[:60]}` {share:.1%} ({calls:g})" for name, share, calls in each["largest"])
            yield f"- {case}, {way}: {listed}"

    def targets(self, shape: str, case: str) -> Iterator[str]:
        """Yield a row for each way of the engine's that has a target here."""
        for way in self.found["seconds"]:
            if not way.startswith(ENGINE) or way == TENSORS:
                continue
            for other, target in self._compared(way):
                ratios = self.ratios(way, other)
                holds = "yes" if statistics.median(ratios) >= target else "**no**"
                yield f"| {shape} | {case} | {way} | {other} | {ranged(ratios)} | {target} | {holds} |"

    def _compared(self, way: str) -> Iterator[tuple[str, float]]:
        """Yield the ways that one is to be as fast as, and how many times."""
        seconds = self.found["seconds"]
        if way == DOCUMENTS:
            yield ENGINE, MANY_DOCUMENTS
            return
        hand = f"{HAND}, compiled" if "compiled" in way and f"{HAND}, compiled" in seconds else HAND
        yield hand, CACHED if TENSORS in seconds else TARGETS[hand]
        if TENSORS in seconds:
            yield TENSORS, CACHED
        for other in (TRAINER, RECOMPUTED):
            if other in seconds:
                yield other, TARGETS[other]


def ranged(ratios: Sequence[float]) -> str:
    """Return the median of ratios and their range."""
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def described(shape: Mapping[str, Any]) -> str:
    """Return a shape in words."""
    more = [] if shape["vocab"] is None else [f"{shape['vocab']:,} ids"]
    more += [] if shape["trunk"] is None else [f"{shape['trunk']} trunk"]
    heads = f"{shape['heads']} heads" + ("" if shape["kv_heads"] is None else f" on {shape['kv_heads']}")
    return ", ".join(
        [
            f"d_model {shape['d_model']}",
            heads,
            f"d_ff {shape['d_ff']}",
            f"{shape['stacks']} stacks of {shape['blocks']}",
            f"{shape['seq_len']} tokens",
            f"batches of {shape['batch']}",
            *more,
        ]
    )


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of all tables."""
    peaks = found["peaks"]
    said = [
        f"Large products reach {peaks['bf16'] / 1e12:.3g} TFLOP/s in bf16 and {peaks['fp32'] / 1e12:.3g} in fp32 "
        f"there, a copy {peaks['copied'] / 1e9:.3g} GB/s.",
        "",
        "## Targets",
        "",
        "| shape | phase | way | against | times as fast | at least | holds |",
        "| --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    shapes = {
        name: {case: CaseTable(each, peaks["bf16"]) for case, each in shape["cases"].items() if "seconds" in each}
        for name, shape in found["shapes"].items()
    }
    said += [row for name, cases in shapes.items() for case, each in cases.items() for row in each.targets(name, case)]
    for name, cases in shapes.items():
        shape = found["shapes"][name]
        failed = [f"- {case}: {each['failed']}" for case, each in shape["cases"].items() if "failed" in each]
        said += [
            "",
            f"## Shape `{name}`",
            "",
            f"{described(shape['shape'])}. The share of the peak counts the plan's operations.",
            "",
            "| phase | way | tokens/s | against by hand | against Trainer | share of the bf16 peak |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *(row for case, each in cases.items() for row in each.rows(case)),
            *(["", "Not measured:", "", *failed] if failed else []),
            "",
            "Under the profiler, shares of a step's time. Waiting: the engine's, for draws and boundaries, without it.",
            "",
            "| phase | way | products and attention | other operators | idle or Python | waiting |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *(row for case, each in cases.items() for row in each.profile_rows(case)),
            "",
            "The largest by their own time, with calls a step:",
            "",
            *(line for case, each in cases.items() for line in each.largest(case)),
        ]
    return said
