"""The report page: one HTML file with the results of the runs, which needs no other file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from stackwise_core.run_files.files import cleaned
from stackwise_core.run_files.run import Run
from stackwise_report import tables, wording


@frozen
class Figure:
    """A plot with its heading. Where there is a wide plot, the other one is for small screens."""

    title: str
    unit: str
    svg: str
    said: str = ""
    wide: str = ""
    legend: Sequence[tuple[int, str]] = ()
    """Places of colours, and what has them."""


def page(runs: Sequence[Run], samples: dict[str, list[str]], version: str) -> str:
    """Return the page as HTML.

    Args:
        samples: texts by the label of the run that wrote them.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from stackwise_report.svg import MOST_COLOURS, quietly

    quietly()
    environment = Environment(
        loader=PackageLoader("stackwise_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        runs=runs,
        figures=figures(runs),
        tables=tables,
        wording=wording,
        samples=cleaned(samples),
        highlighted={run.label: highlighted(run.config_text) for run in runs},
        colours=MOST_COLOURS,
        version=version,
    )


def figures(runs: Sequence[Run]) -> dict[str, list[Figure]]:
    """Return the plots of each part of the page; plots without data are left out."""
    from stackwise_report import plots

    unit = "nats/token"
    measure = " / ".join(dict.fromkeys(run.measure for run in runs if run.whole))

    def of(title: str, unit: str, draw: Callable[..., plots.Plot | None], name: str, **how: Any) -> list[Figure]:
        plot = draw(runs, name=name, **how)
        return [] if plot is None else [Figure(title, unit, plot.svg, plot.said, legend=plot.legend)]

    wide, narrow = (plots.loss(runs, f"loss-{size[0]}", size) for size in (plots.WIDE, plots.NARROW))
    loss = [] if wide is None or narrow is None else [Figure("Loss by step", unit, narrow.svg, wide.said, wide.svg)]
    return {
        "loss": loss,
        "likelihood": of(f"{measure} by depth", unit, plots.depth, "depth")
        + of("NELBO by mask fraction", unit, plots.bands, "bands"),
        "memory": of("Peak memory", "", plots.memory, "memory")
        + of("Peak memory so far", "by step", plots.memory_by_step, "memory-by-step"),
        "course": of("Masked share", "of a step's tokens", plots.masked, "masked")
        + of("Throughput", "tokens/s, mean of the phase so far", plots.by_step, "speed", key="tokens_per_second")
        + of("Learning rate", "of the stacks", plots.learning_rate, "rate")
        + of("Gradient norm", "before clipping", plots.by_step, "norm", key="grad_norm", log=True, smooth=True),
    }


def highlighted(text: str) -> Any:
    """TOML as HTML, escaped, with a class for each kind of word."""
    from markupsafe import Markup
    from pygments import highlight  # type: ignore[import-untyped]
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
    from pygments.lexers.configs import TOMLLexer  # type: ignore[import-untyped]

    return Markup(highlight(text, TOMLLexer(), HtmlFormatter(nowrap=True)))
