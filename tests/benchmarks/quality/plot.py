"""The plot: each regime's gap to end-to-end training, with its share of the memory of training in brackets."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

try:
    import matplotlib
except ImportError:
    raise SystemExit("The plot needs matplotlib: pip install 'matplotlib>=3.8'. Nothing was run.") from None

from stackwise_core.system.files import publish
from tests.benchmarks.quality.regimes import BASELINE, REGIMES
from tests.benchmarks.quality.table import Row

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "stackwise", "font.size": 10, "svg.fonttype": "none"}

from matplotlib import pyplot  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

GOAL = {"state": 0.5, "gap": 2.0}
"""The project's goal: half the memory of training, and 2 % of the NELBO."""
COLOURS = {True: "C0", False: "C1"}
"""By whether a regime's memory is within the goal."""


def draw(tables: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write an SVG with a panel a corpus: a point a regime, its gap, and the range over seeds.

    Args:
        tables: rows by the corpus's title.
    """
    shown = {row.regime for rows in tables.values() for row in rows}
    regimes = [name for name in reversed(REGIMES) if name in shown and name != BASELINE]
    size = (5.0 * len(tables) + 4.5, 0.38 * len(regimes) + 1.8)
    figure, panels = pyplot.subplots(1, len(tables), figsize=size, squeeze=False, sharey=True, layout="constrained")
    states: dict[str, float] = {}
    for panel, (title, rows) in zip(panels[0], tables.items(), strict=True):
        panel.axvspan(-100, GOAL["gap"], color="0.93", zorder=0)
        panel.axvline(0, color="0.5", linewidth=0.8)
        gaps = [0.0, GOAL["gap"]]
        for row in rows:
            if row.gap is None or row.regime == BASELINE:
                continue
            states[row.regime] = row.state
            gaps += row.gaps
            panel.errorbar(
                row.gap,
                regimes.index(row.regime),
                xerr=[[row.gap - min(row.gaps)], [max(row.gaps) - row.gap]],
                marker="o",
                color=COLOURS[row.state <= GOAL["state"]],
                capsize=3,
            )
        panel.set_xlim(min(gaps) - 1, max(gaps) + 1)
        panel.xaxis.set_major_formatter("{x:+g} %")
        panel.set_title(title)
        panel.set_xlabel("gap to end to end's NELBO; further left is better")
        panel.grid(alpha=0.3)
    panels[0][0].set_yticks(
        range(len(regimes)), [f"{REGIMES[name].title} ({states.get(name, math.nan):.2f})" for name in regimes]
    )
    figure.legend(handles=legend(), loc="outside lower center", ncols=3)
    publish(path, lambda beside: figure.savefig(beside, format="svg", metadata={"Date": None}))
    pyplot.close(figure)


def legend() -> list[Line2D]:
    """Memory by colour, and the goal."""
    lines = [
        Line2D([], [], marker="o", color=COLOURS[within], linestyle="", label=f"memory {sign} {GOAL['state']:g}")
        for within, sign in ((True, "up to"), (False, "above"))
    ]
    goal = f"goal: gap of {GOAL['gap']:g} % at most"
    return [*lines, Line2D([], [], marker="s", color="0.9", linestyle="", markersize=10, label=goal)]
