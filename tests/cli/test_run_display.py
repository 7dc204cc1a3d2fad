"""The tables at the end of a run."""

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from stackwise_core.cli.bars import Bars, TimesColumn
from stackwise_core.cli.run_display import print_result
from stackwise_core.engine.events.events import PhaseResult, RunResult


def printed(capsys, **boundaries: int) -> str:
    """Return the output about a run of one phase."""
    counts = {"boundaries_computed": 0, "boundaries_read": 0, "boundaries_evicted": 0, "boundaries_damaged": 0}
    phase = PhaseResult("stack 1", 10, 1.0, 3.0, 2.0, 100.0, 10**9, False, **{**counts, **boundaries})
    text = StringIO()
    print_result(Console(file=text, width=200), RunResult(Path("run"), (phase,), (), ()))
    return capsys.readouterr().out + text.getvalue()


def test_hits_and_equal_boundaries_are_shares_of_those_asked_for(capsys):
    """A phase without boundaries has dashes."""
    told = printed(capsys, boundaries_wanted=200, boundaries_found=150, boundaries_repeated=3, boundaries_computed=50)
    heading, row = (line for line in told.splitlines() if line.startswith(("phase", "stack")))
    assert heading.split()[-3:] == ["computed", "hits", "equal"]
    assert row.split()[-5:] == ["50", "75.0", "%", "1.5", "%"]
    (row,) = (line for line in printed(capsys).splitlines() if line.startswith("stack"))
    assert row.split()[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize(("count", "words"), [("evicted", "3 boundaries were evicted"), ("damaged", "found damaged")])
def test_what_the_cache_lost_is_said(capsys, count, words):
    """Below the table, and only where there is something to say."""
    assert words in printed(capsys, **{f"boundaries_{count}": 3})
    assert words not in printed(capsys)


def test_a_bar_says_the_time_left_until_it_is_done():
    """Then the time that it took."""
    clock = [0.0]
    progress = Progress(TimesColumn(), get_time=lambda: clock[0])
    task = progress.add_task("", total=100)
    for clock[0] in (30.0, 60.0):
        progress.advance(task, 20)
    assert TimesColumn().render(progress.tasks[0]).plain == "1:00, 1:30 left"
    progress.advance(task, 60)
    assert TimesColumn().render(progress.tasks[0]).plain == "1:00"


@pytest.mark.parametrize("width", [44, 56, 70, 80, 96, 120])
def test_a_bar_shows_its_numbers_whole(width):
    """On a narrow terminal it is shorter, then gone; then speed and held-out loss are; counts and the loss stay."""
    text = StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    with Bars(console) as progress:
        task = progress.add_task("cycle 10, stack 11", total=123456, measured="")
        progress.add_task("  [dim]boundary[/]", total=1200, measured="[dim]passes[/]")
        measured = "loss 6.722 (5.123 held out)  10.8k tokens/s"
        progress.update(task, completed=23456, measured=measured, brief="loss 6.722")
    line, boundary = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.getvalue()).split("\r")[-1].splitlines()[:2]
    assert len(line.rstrip()) <= width
    assert "…" not in line + boundary
    assert all(part in line for part in ("cycle 10, stack 11", "23456/123456", "loss 6.722"))
    assert "0/1200" in boundary
    assert (measured in line) == (width >= 96)
    assert ("━" in line) == (width >= 96)
