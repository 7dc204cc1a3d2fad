"""Texts that a finished run writes; the only part of a page that needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from stackwise_core.inference.finished import FinishedRun
from stackwise_core.inference.loaded_rack import LoadedRack
from stackwise_core.report.run import Run


def sampled(run: Run, count: int, plugins: Sequence[str] = ()) -> list[str]:
    """So many texts, the same each time.

    Raises:
        UsageError: the run isn't finished, or kept no weights.
        UnavailableError: a plugin, a package or the device isn't there.
    """
    return LoadedRack(FinishedRun.open(run.path, plugins=plugins)).sample(num=count)
