"""Texts that a finished run writes, where stackwise-sampling is there; the only part of a page that needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from stackwise_core.errors import UnavailableError
from stackwise_core.run_files.run import Run


def check_sampler() -> None:
    """See that texts can be written.

    Raises:
        UnavailableError: stackwise-sampling isn't installed.
    """
    if find_spec("stackwise_sampling") is None:
        raise UnavailableError(
            "--samples needs the package stackwise-sampling, which is not installed: pip install stackwise-sampling"
        )


def sampled(run: Run, count: int, plugins: Sequence[str] = ()) -> list[str]:
    """So many texts, the same each time.

    Raises:
        UsageError: the run isn't finished, or kept no weights.
        UnavailableError: a plugin, a package or the device isn't there.
    """
    from stackwise_core import load_rack
    from stackwise_sampling import sample

    return sample(load_rack(run.path, plugins=plugins), num=count)
