"""Values of the page's tables and of the plot, computed from runs."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

from tests.benchmarks.quality.regimes import BASELINE
from tests.benchmarks.quality.trials import Trial


@frozen
class Row:
    """A regime on a corpus, over its seeds."""

    regime: str
    nelbo: tuple[float, ...]
    """Nats a byte, a seed each."""
    gaps: tuple[float, ...]
    """By how much of the baseline's NELBO it is worse, in per cent, each seed against the baseline's own."""
    state: float
    """Bytes in memory at once, as a share of the baseline's."""
    flops: float
    """As a share of the baseline's, as are ``tokens``."""
    tokens: float
    peak_bytes: float
    """Mean over the seeds, as are ``seconds``."""
    seconds: float
    steps_per_stack: int

    @property
    def gap(self) -> float | None:
        """The mean gap; None without a baseline to compare with."""
        return statistics.mean(self.gaps) if self.gaps else None


def rows(trials: Iterable[Trial], results: dict[str, dict[str, Any]], corpus: str) -> list[Row]:
    """The rows of a table, of the runs that have a result, in the order of the trials."""
    found: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        if trial.corpus == corpus and trial.key in results:
            found.setdefault(trial.regime, []).append(results[trial.key])
    baseline = found.get(BASELINE, [])
    return [row(regime, runs, baseline) for regime, runs in found.items()]


def row(regime: str, runs: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> Row:
    """A regime's runs, compared with the baseline's."""
    bounds = {run["seed"]: run["nats_per_byte"] for run in baseline}
    first = baseline[0] if baseline else {}

    def share(name: str) -> float:
        return runs[0][name] / first.get(name, float("nan"))

    return Row(
        regime=regime,
        nelbo=tuple(run["nats_per_byte"] for run in runs),
        gaps=tuple(100 * (run["nats_per_byte"] / bounds[run["seed"]] - 1) for run in runs if run["seed"] in bounds),
        state=share("state_bytes"),
        flops=share("flops"),
        tokens=share("tokens"),
        peak_bytes=statistics.mean(run["peak_bytes"] for run in runs),
        seconds=statistics.mean(run["seconds"] for run in runs),
        steps_per_stack=runs[0]["steps_per_stack"],
    )
