"""Likelihoods as tables, at the end of a run and for ``stackwise evaluate``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from stackwise_core.cli.tables import abridged, print_table
from stackwise_core.engine.evaluation.evaluate import Likelihood
from stackwise_core.engine.plan.notes import band_text
from stackwise_core.interfaces.routing import BandRoute

BEYOND = "> 1.8e308"
"""A perplexity that a float can't hold."""


def print_likelihoods(
    console: Console, likelihoods: Sequence[Likelihood], routes: Sequence[BandRoute], text: str = "validation"
) -> None:
    """Print a row a depth, and then a row for each band of the whole rack; ``text`` says what was measured on."""
    bound = f"{text} {'NELBO' if likelihoods[-1].bands else 'NLL'}"
    rows, before = [], None
    for likelihood in likelihoods:
        gain = "" if before is None else f"{likelihood.nats_per_token - before:+.4f}"
        before = likelihood.nats_per_token
        rows.append(
            (
                f"{likelihood.depth} stack{'s' if likelihood.depth > 1 else ''}",
                f"{likelihood.nats_per_token:.4f}",
                error_text(likelihood.standard_error),
                gain,
                f"{likelihood.perplexity:.4g}" if math.isfinite(likelihood.perplexity) else BEYOND,
                f"{likelihood.bits_per_byte:.4f}",
            )
        )
    print_table(
        console, (f"{bound} at", "nats/token", "std. error", "change", "perplexity", "bits/byte"), abridged(rows)
    )
    whole = likelihoods[-1]
    if not whole.bands:
        return
    console.print()
    banded = len(routes) > 1
    headings = ["masked", *(["stack"] if banded else []), "nats/token", "std. error", "share"]
    parts = [
        [
            band_text(band.band),
            *([", ".join(map(str, routes[place].path))] if banded else []),
            f"{band.nats_per_token:.4f}",
            error_text(band.standard_error),
            f"{band.nats_per_token / whole.nats_per_token:.1%}" if whole.nats_per_token else "-",
        ]
        for place, band in enumerate(whole.bands)
    ]
    print_table(console, headings, abridged(parts))


def error_text(standard_error: float | None) -> str:
    """Return ``± 0.0123``, or a dash where one sequence has none."""
    return "-" if standard_error is None else f"± {standard_error:.4f}"
