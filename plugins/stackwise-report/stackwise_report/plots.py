"""The page's plots. Each takes all runs, and gives each its colour; one run alone shows its phases and depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from attrs import frozen
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from stackwise_core.options import ByteSize, in_thousands
from stackwise_core.run_files.run import MEMORY, Phase, Run
from stackwise_report.svg import COLOURS, STYLE, series, to_svg

INK, MUTED, LINE, CARD, WARN = (COLOURS[name] for name in ("ink", "muted", "line", "card", "warn"))
PANEL, WIDE, NARROW = (420, 220), (1040, 330), (400, 280)
"""Width and height in pixels as they are drawn; the page scales them."""
MEMORY_COLOURS = dict(zip(MEMORY, (6, 0, 3, 1, 2, 4), strict=True))
"""Places among the series' colours; the process, which is no part of the model, is grey."""
MOST_ROWS = 24
"""Phases that have a row each."""
LONGEST_NAME = 20
"""Characters of a phase's name beside its row."""
OF_A_CHARACTER = 6.4
"""Width in pixels."""


@frozen
class Plot:
    """A drawn plot."""

    svg: str
    said: str = ""
    """Remark below the plot."""
    legend: Sequence[tuple[int, str]] = ()
    """Places of colours, and what has them."""


@contextmanager
def _axes(size: tuple[int, int], left: int = 46, top: int = 20) -> Iterator[tuple[Figure, Axes]]:
    """Make axes with the same margins in every plot: ``left`` for numbers, ``top`` for the phases' names."""
    width, height = size
    right, bottom = 8, 36
    with rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72))
        inner = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        yield figure, figure.add_axes(inner)


def loss(runs: Sequence[Run], name: str, size: tuple[int, int]) -> Plot | None:
    """Plot each step's loss (faint), its running mean, and held-out losses, bad steps and spikes as marks."""
    curves = [(place, phase) for place, run in enumerate(runs) for phase in run.phases if phase.curves["loss"]]
    if not curves:
        return None
    values = np.concatenate([np.asarray(phase.curves["loss"].values) for _, phase in curves])
    held_out = [value for _, phase in curves for value in phase.curves["validation"].values]
    low, high = _limits(values, held_out)
    with _axes(size) as (figure, axes):
        for place, phase in curves:
            colour, curve = series(place), phase.curves["loss"].moved(phase.begins)
            raw, mean = curve.thinned(size[0] * 2), curve.smoothed().thinned(size[0])
            if len(runs) < 3:
                axes.plot(raw.steps, raw.values, color=colour, alpha=0.3, linewidth=0.7)
            axes.plot(mean.steps, mean.values, color=colour, linewidth=1.7)
            of_text = phase.curves["validation"].moved(phase.begins).thinned(200)
            face: dict[str, Any] = {"markerfacecolor": CARD, "markeredgecolor": colour, "markeredgewidth": 1.3}
            axes.plot(of_text.steps, of_text.values, "o", markersize=4.6, zorder=4, **face)
            spikes = phase.curves["loss_spike"].moved(phase.begins).thinned(200)
            height = np.minimum(np.asarray(spikes.values), high - 0.02 * (high - low))
            axes.plot(spikes.steps, height, "^", color=WARN, markersize=5, zorder=5)
            bad = [step + phase.begins for step in phase.curves["bad"].steps[:1000]]
            axes.plot(bad, [0.03] * len(bad), "x", color=WARN, markersize=5, transform=axes.get_xaxis_transform())
        axes.set_ylim(low, high)
        _steps(axes, runs, size[0])
        return Plot(to_svg(figure, name, "Loss by step"), _said_of_losses([phase for _, phase in curves], runs, high))


def _said_of_losses(phases: Sequence[Phase], runs: Sequence[Run], high: float) -> str:
    """Explain the marks in the plot, and name what isn't drawn."""
    values = [value for phase in phases for value in phase.curves["loss"].values]
    above = sum(value > high for value in values)
    said = ["Faint: each step that was logged."] if len(runs) < 3 else []
    said += ["Strong: the running mean of a phase's steps."]
    marks = {
        "validation": "Circles: on held-out text.",
        "loss_spike": "Triangles: spikes.",
        "bad": "Crosses: left out.",
    }
    said += [words for key, words in marks.items() if any(phase.curves[key] for phase in phases)]
    said += [f"{above} of {len(values)} steps lie above {high:.3g}, where the plot ends."] if above else []
    if any(phase.band is not None and (phase.weighting, phase.band) != ("nelbo", (0.0, 1.0)) for phase in phases):
        said += [
            "A phase's loss is over its own mask fractions, in its own weighting: it compares with others where these "
            "are the same, and isn't the bound below."
        ]
    return " ".join(said)


def by_step(runs: Sequence[Run], name: str, *, key: str, log: bool = False, smooth: bool = False) -> Plot | None:
    """Plot a value by step, the phases side by side."""
    curves = [(place, phase) for place, run in enumerate(runs) for phase in run.phases if phase.curves[key]]
    if log:
        curves = [(place, phase) for place, phase in curves if max(phase.curves[key].values) > 0]
    if not curves:
        return None
    with _axes(PANEL) as (figure, axes):
        for place, phase in curves:
            curve = phase.curves[key].moved(phase.begins)
            if smooth and len(runs) < 3:
                raw = curve.thinned(PANEL[0] * 2)
                axes.plot(raw.steps, raw.values, color=series(place), alpha=0.3, linewidth=0.7)
            drawn = (curve.smoothed() if smooth else curve).thinned(PANEL[0] * 2)
            axes.plot(drawn.steps, drawn.values, color=series(place), linewidth=1.6)
        if log:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())  # whose labels would be TeX
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(_few())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        _steps(axes, runs, PANEL[0])
        return Plot(to_svg(figure, name, f"{key.replace('_', ' ')} by step"))


def learning_rate(runs: Sequence[Run], name: str) -> Plot | None:
    """Plot the learning rate by step, measured, and as it was planned for all phases."""
    planned = [
        (place, begins, phase)
        for place, run in enumerate(runs)
        for begins, phase in zip(_planned_begins(run), run.phases, strict=True)
        if phase.planned_rates
    ]
    measured = [
        (place, phase) for place, run in enumerate(runs) for phase in run.phases if phase.curves["learning_rate"]
    ]
    if not planned and not measured:
        return None
    with _axes(PANEL) as (figure, axes):
        for place, begins, phase in planned:
            points = phase.planned_rates.moved(begins)
            axes.plot(points.steps, points.values, color=series(place), linewidth=1.2, linestyle=(0, (4, 3)))
        for place, phase in measured:
            curve = phase.curves["learning_rate"].moved(phase.begins).thinned(PANEL[0] * 2)
            axes.plot(curve.steps, curve.values, color=series(place), linewidth=1.6)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(_few())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        _steps(axes, runs, PANEL[0], planned=bool(planned))
        return Plot(to_svg(figure, name, "learning rate by step"), "Dashed: planned." if planned else "")


def _planned_begins(run: Run) -> list[int]:
    """Return where phases begin: those that took steps where they did, and the others after as many as are planned."""
    begins, place = [], 0
    for phase in run.phases:
        begins.append(place)
        place += phase.steps if phase.done else max(phase.steps, phase.planned_steps or 0)
    return begins


def masked(runs: Sequence[Run], name: str) -> Plot | None:
    """Plot each phase's band of mask fractions, and the share of tokens that steps masked."""
    phases = [(place, phase) for place, run in enumerate(runs) for phase in run.phases if phase.band is not None]
    if not phases:
        return None
    with _axes(PANEL) as (figure, axes):
        for place, phase in phases:
            assert phase.band is not None
            (low, high), colour = sorted(phase.band), series(place)
            end = phase.begins + max(phase.steps, 0)
            if len(runs) == 1:
                axes.fill_between([phase.begins, end], low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot([phase.begins, end], [low, low], color=colour, linewidth=1.2)
            axes.plot([phase.begins, end], [high, high], color=colour, linewidth=1.2)
            shares = phase.curves["masked"].moved(phase.begins).thinned(400)
            axes.plot(shares.steps, shares.values, "o", color=colour, alpha=0.8, markersize=3, markeredgewidth=0)
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _steps(axes, runs, PANEL[0])
        return Plot(to_svg(figure, name, "Mask fractions by step"))


def depth(runs: Sequence[Run], name: str) -> Plot | None:
    """Plot the bound of the rack cut off after each number of stacks."""
    measured = [(place, run) for place, run in enumerate(runs) if run.likelihoods]
    if not measured:
        return None
    with _axes(PANEL, top=6) as (figure, axes):
        for place, run in measured:
            shift = 0.05 * (place - (len(runs) - 1) / 2)
            axes.errorbar(
                [each.depth + shift for each in run.likelihoods],
                [each.nats_per_token for each in run.likelihoods],
                [each.standard_error or 0 for each in run.likelihoods],
                **_marks(place),
            )
        axes.xaxis.set_major_locator(_few(integer=True))
        depths = [each.depth for _, run in measured for each in run.likelihoods]
        axes.set_xlim(min(depths) - 0.5, max(depths) + 0.5)
        axes.set_xlabel("stacks", loc="right", fontsize=10)
        return Plot(to_svg(figure, name, "Bound by depth"))


def bands(runs: Sequence[Run], name: str) -> Plot | None:
    """Plot the share of each interval of mask fractions in the whole rack's bound; for one run, at every depth."""
    whole = [(place, run.whole, 1.0) for place, run in enumerate(runs) if run.whole is not None and run.whole.bands]
    if not whole:
        return None
    if len(runs) == 1:
        depths = runs[0].likelihoods
        whole = [(0, each, (place + 1) / len(depths)) for place, each in enumerate(depths) if each.bands]
    with _axes(PANEL, top=6) as (figure, axes):
        for place, likelihood, share in whole:
            for band in likelihood.bands:
                ends, parts = [band.low, band.high], 2 * [band.nats_per_token]
                axes.plot(ends, parts, color=series(place), linewidth=2.2, alpha=0.25 + 0.75 * share)
            axes.errorbar(
                [(band.low + band.high) / 2 for band in likelihood.bands],
                [band.nats_per_token for band in likelihood.bands],
                [band.standard_error or 0 for band in likelihood.bands],
                **_marks(place) | {"linestyle": "", "alpha": 0.25 + 0.75 * share, "markersize": 0},
            )
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("masked", loc="right", fontsize=10)
        said = "The darker, the deeper." if len(whole) > 1 and len(runs) == 1 else ""
        return Plot(to_svg(figure, name, "Bound by band of mask fractions"), said)


def memory(runs: Sequence[Run], name: str) -> Plot | None:
    """Plot each phase's peak memory, planned and measured."""
    phases = [phase for run in runs for phase in run.phases if phase.planned_peak or phase.peak_bytes]
    if not phases:
        return None
    if len(runs) == 1 and len(runs[0].phases) <= MOST_ROWS:
        return _memory_by_part(runs[0], name)
    with _axes(PANEL, top=6) as (figure, axes):
        for place, run in enumerate(runs):
            shift = 0.6 * ((place + 0.5) / len(runs) - 0.5) if len(runs) > 1 else 0
            look: dict[str, Any] = {"markeredgecolor": series(place), "markersize": 5}
            for key, face in (("planned_peak", CARD), ("peak_bytes", series(place))):
                points = [(number + 1 + shift, getattr(phase, key)) for number, phase in enumerate(run.phases)]
                points = [(x, y) for x, y in points if y]
                axes.plot([x for x, _ in points], [y for _, y in points], "o", markerfacecolor=face, **look)
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(_few(integer=True))
        axes.yaxis.set_major_locator(_few())
        axes.yaxis.set_major_formatter(_bytes())
        axes.set_xlabel("phase", loc="right", fontsize=10)
        return Plot(to_svg(figure, name, "Peak memory by phase"), "Filled: measured. Hollow: planned.")


def _memory_by_part(run: Run, name: str) -> Plot:
    """Plot a bar of planned memory for each phase, with a stroke at the measured peak."""
    names = [_shortened(phase.name, LONGEST_NAME) for phase in run.phases]
    left = round(12 + OF_A_CHARACTER * max(map(len, names)))
    with _axes((PANEL[0], max(PANEL[1], 44 + 34 * len(names))), left=max(left, 46), top=6) as (figure, axes):
        for row, phase in enumerate(run.phases):
            left = 0
            for part, place in MEMORY_COLOURS.items():
                size = phase.planned_memory.get(part, 0)
                axes.barh(row, size, left=left, height=0.5, color=series(place), alpha=0.75, linewidth=0)
                left += size
            if phase.peak_bytes:
                axes.plot(2 * [phase.peak_bytes], [row - 0.36, row + 0.36], color=INK, linewidth=2.2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(False)
        axes.grid(True, axis="x")
        axes.xaxis.set_major_locator(_few())
        axes.xaxis.set_major_formatter(_bytes())
        legend = [(place, part) for part, place in MEMORY_COLOURS.items()]
        return Plot(to_svg(figure, name, "Peak memory by phase, planned and measured"), legend=legend)


def memory_by_step(runs: Sequence[Run], name: str) -> Plot | None:
    """Plot each phase's peak so far, and its planned memory."""
    curves = [(place, phase) for place, run in enumerate(runs) for phase in run.phases if phase.curves["peak_bytes"]]
    if not curves:
        return None
    with _axes(PANEL) as (figure, axes):
        for place, phase in curves:
            curve = phase.curves["peak_bytes"].moved(phase.begins).thinned(PANEL[0])
            axes.plot(curve.steps, curve.values, color=series(place), linewidth=1.7)
            if phase.planned_peak:
                ends = [phase.begins, phase.begins + phase.steps]
                axes.plot(ends, 2 * [phase.planned_peak], color=series(place), linewidth=1.2, linestyle=(0, (4, 3)))
        axes.margins(y=0.12)
        axes.yaxis.set_major_locator(_few())
        axes.yaxis.set_major_formatter(_bytes())
        _steps(axes, runs, PANEL[0])
        return Plot(to_svg(figure, name, "Peak memory by step, planned and measured"), "Dashed: planned.")


def _marks(place: int) -> dict[str, Any]:
    """Return the style of a curve of few points with error bars."""
    return {
        "color": series(place),
        "marker": "o",
        "markersize": 5,
        "linewidth": 1.4,
        "elinewidth": 1.2,
        "capsize": 3,
    }


def _limits(values: np.ndarray, others: Sequence[float]) -> tuple[float, float]:
    """Return the lower and upper end of a plot of losses. The first steps' losses would press all others flat."""
    low, high = float(values.min()), float(np.quantile(values, 0.985))
    low, high = min([low, *others]), max([high, *others])
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _steps(axes: Axes, runs: Sequence[Run], width: int, *, planned: bool = False) -> None:
    """Label the axis of steps, and mark the beginnings of phases.

    Args:
        planned: whether the axis is as long as the whole plan, of runs that aren't finished.
    """
    longest = max(max(run.steps, 1) for run in runs)
    if planned:
        ends = (_planned_begins(run)[-1] + (run.phases[-1].planned_steps or 0) for run in runs if run.phases)
        longest = max(longest, *ends)
    axes.set_xlim(-0.005 * longest, 1.005 * longest)
    axes.xaxis.set_major_locator(_few(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else _short(value)))
    axes.set_xlabel("step", loc="right", fontsize=10)
    look: dict[str, Any] = {"linewidth": 0.9, "zorder": 0.5, "transform": axes.get_xaxis_transform()}
    for place, run in enumerate(runs):
        begins = [phase.begins for phase in run.phases if phase.steps and phase.begins]
        colour, dots = (series(place), (0, (1, 3))) if len(runs) > 1 else (MUTED, (0, (2, 3)))
        axes.vlines(begins, 0, 1, color=colour, linestyle=dots, **look)
    for phase in runs[0].phases if len(runs) == 1 else ():
        if not phase.steps:
            continue
        room = int(0.88 * width * phase.steps / longest / OF_A_CHARACTER) - 1
        if room >= min(len(phase.name), 7):
            axes.annotate(
                _shortened(phase.name, room),
                (phase.begins, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(3, 4),
                textcoords="offset points",
                color=MUTED,
                fontsize=10,
            )


def _few(*, integer: bool = False) -> MaxNLocator:
    """Few ticks, at round numbers."""
    return MaxNLocator(5, integer=integer, min_n_ticks=1, steps=[1, 2, 5, 10])


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: max(most - 1, 1)]}…"


def _short(value: float) -> str:
    """Return ``1.5k``, ``0.002``."""
    return in_thousands(value, ("", *"kMGTPEZY"))


def _bytes() -> FuncFormatter:
    return FuncFormatter(lambda value, _: str(ByteSize(max(value, 0))) if value else "0")
