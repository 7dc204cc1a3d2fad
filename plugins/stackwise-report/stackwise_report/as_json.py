"""A run's numbers as JSON values."""

from __future__ import annotations

import math
from typing import Any

from attrs import asdict

from stackwise_core.run_files.run import Run
from stackwise_report.wording import flat


def as_plain(run: Run) -> dict[str, Any]:
    """Return the page's data. Curves are thinned as on the page; a point is a step of its phase and a value."""
    phases = []
    for phase in run.phases:
        plain = asdict(phase, filter=lambda attribute, _: attribute.name not in ("curves", "planned_rates"))
        curves = {
            name: sorted(set(curve.steps)) if name == "bad" else [list(point) for point in curve.thinned().points()]
            for name, curve in sorted(phase.curves.items())
            if len(curve)
        }
        planned = [list(point) for point in phase.planned_rates.points()]
        phases.append({**plain, "tokens": phase.tokens, "planned_rates": planned, "curves": curves})
    return {
        "run": str(run.path),
        "name": run.name,
        "state": run.state,
        "finished": run.finished,
        "steps": run.steps,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "peak_bytes": run.peak_bytes,
        "corpus": run.corpus,
        "measure": run.measure,
        "likelihoods": [
            {**asdict(each), "perplexity": each.perplexity if math.isfinite(each.perplexity) else None}
            for each in run.likelihoods
        ],
        "phases": phases,
        "rack": run.rack,
        "config": flat(run.config),
        "environment": run.environment,
        "notes": run.notes,
        "gaps": run.gaps,
    }
