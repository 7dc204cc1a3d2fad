"""The driver of all targets: it feeds them cases under watch, a few in a test and many in a campaign."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, frozen
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from tests.survival.fuzz.watch import ALLOWANCE, watched


@frozen
class Target:
    """A reader: hostile cases for it, and a check of what it does with one."""

    name: str
    cases: Callable[[], st.SearchStrategy[Any]]
    check: Callable[[Any, Path], object]
    """Feeds a case in a directory of its own, beside which there is a ``secret``; whether the case was accepted."""
    share: float = 1.0
    """Of the cases that were asked for; dear ones have fewer."""
    sound: Callable[[], Any] | None = None
    """A case that must be accepted, so that the others are refused for what was changed."""
    allowance: int = ALLOWANCE
    """Bytes of address space that a case may take."""
    may_read_anything: Callable[[Any], bool] = lambda case: False
    """Whether a case may name any file to be read, the secret one too."""


def accepts(target: Target, case: Any) -> bool:
    """Feed a case to a target; whether it was accepted.

    Raises:
        Exception: anything that must not come.
    """
    with tempfile.TemporaryDirectory(prefix="stackwise-case-") as here:
        inside, secret = Path(here) / "inside", Path(here) / "secret"
        inside.mkdir()
        secret.mkdir()
        (secret / "file.json").write_text("{}")
        hidden = inside / "nothing" if target.may_read_anything(case) else secret
        with watched(inside, hidden, target.allowance):
            accepted = target.check(case, inside)
        assert os.listdir(secret) == ["file.json"]
        return bool(accepted)


def warm_up(target: Target) -> None:
    """Feed it what is sound, unwatched at first, since that imports and caches what it needs."""
    if target.sound is not None:
        case = target.sound()
        with tempfile.TemporaryDirectory() as here:
            (Path(here) / "secret").mkdir()
            (Path(here) / "inside").mkdir()
            target.check(case, Path(here) / "inside")
        assert accepts(target, case), f"{target.name}: what is sound was refused"


@define
class Tried:
    """The outcome of a target."""

    cases: int = 0
    accepted: int = 0
    seconds: float = 0.0
    failure: str = ""


def campaign(target: Target, examples: int, number: int) -> Tried:
    """Feed a target so many cases; a failure ends it, with the smallest case that was found for it."""
    tried = Tried()
    began = time.monotonic()
    warm_up(target)

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(target.cases())
    def feed(case: Any) -> None:
        tried.cases += 1
        try:
            tried.accepted += accepts(target, case)
        except BaseException as error:
            tried.failure = f"{case!r:.1500}\n{''.join(traceback.format_exception(error)[-4:])}"
            raise

    try:
        feed()
    except BaseException as error:  # a panic of a library in Rust isn't an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        tried.failure = tried.failure or repr(error)
    tried.seconds = time.monotonic() - began
    return tried
