"""The plot: gap to end-to-end training against the share of its training state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

try:
    import matplotlib
except ImportError:
    raise SystemExit("The plot needs matplotlib: pip install 'matplotlib>=3.8'. Nothing was run.") from None

from stackwise_core.files import publish
from tests.benchmarks.quality.regimes import BASELINE, BUDGETS, REGIMES
from tests.benchmarks.quality.table import Row

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "stackwise", "font.size": 10, "svg.fonttype": "none"}

from matplotlib import pyplot  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

MARKERS = "osD^v<>PX*ph"
GOAL = {"state": 0.5, "gap": 2.0}
"""What the project set out to reach: half the training state, and 2 % of the NELBO."""


def draw(tables: Mapping[str, Mapping[str, Sequence[Row]]], path: Path) -> None:
    """Write an SVG with a panel a corpus.

    Args:
        tables: rows by the corpus's title and the budget.
    """
    figure, panels = pyplot.subplots(
        1, len(tables), figsize=(4.6 * len(tables) + 3.4, 5), squeeze=False, sharey=True, layout="constrained"
    )
    styles = {name: (MARKERS[i % len(MARKERS)], f"C{i % 10}") for i, name in enumerate(REGIMES)}
    shown = set()
    for panel, (title, by_budget) in zip(panels[0], tables.items(), strict=True):
        panel.add_patch(Rectangle((0, -100), GOAL["state"], 100 + GOAL["gap"], color="0.92", zorder=0))
        panel.axhline(0, color="0.6", linewidth=0.8)
        lowest, highest = 0.0, GOAL["gap"]
        for budget, rows in by_budget.items():
            for row in rows:
                if row.gap is None or row.regime == BASELINE:
                    continue
                marker, colour = styles[row.regime]
                shown.add(row.regime)
                lowest, highest = min(lowest, *row.gaps), max(highest, *row.gaps)
                panel.errorbar(
                    row.state,
                    row.gap,
                    yerr=[[row.gap - min(row.gaps)], [max(row.gaps) - row.gap]],
                    marker=marker,
                    color=colour,
                    markerfacecolor=colour if budget == "flops" else "white",
                    markersize=8,
                    capsize=3,
                )
        # The few regimes that are far off shall not press the others together.
        panel.set_yscale("symlog", linthresh=5, linscale=2)
        panel.set_yticks(
            [tick for tick in (-2, 0, 2, 5, 10, 20, 50, 100, 200) if lowest - 2 <= tick <= 2 * highest + 5]
        )
        panel.yaxis.set_major_formatter("{x:g} %")
        panel.minorticks_off()
        panel.set_ylim(lowest - 1, 1.3 * highest + 1)
        panel.set_xlim(0, 1.08)
        panel.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0, symbol=" %"))
        panel.set_title(title)
        panel.set_xlabel("training state, share of end to end's")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("gap to end to end's NELBO")
    figure.legend(handles=legend({name: styles[name] for name in REGIMES if name in shown}), loc="outside right upper")
    publish(path, lambda beside: figure.savefig(beside, format="svg", metadata={"Date": None}))
    pyplot.close(figure)


def legend(styles: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    """A line for each regime, each budget, and the goal."""
    lines = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=REGIMES[name].title)
        for name, (marker, colour) in styles.items()
    ]
    for budget, title in BUDGETS.items():
        face = "0.3" if budget == "flops" else "white"
        lines.append(Line2D([], [], marker="o", color="0.3", markerfacecolor=face, linestyle="", label=title))
    goal = f"goal: {GOAL['gap']:g} % at {100 * GOAL['state']:g} % of the state"
    lines.append(Line2D([], [], marker="s", color="0.92", linestyle="", markersize=10, label=goal))
    return lines
