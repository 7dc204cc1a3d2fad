"""Bars of work that is counted, which show on a narrow terminal less, and nothing in part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from stackwise_core.cli.pulse import working
from stackwise_core.cli.quantities import duration

_ROOMY = 1000
"""Columns that any line fits into."""


class TimesColumn(ProgressColumn):
    """Column of the time taken, and the time left while there is some."""

    def render(self, task: Task) -> Text:
        """Render times such as ``1:02, 3:04 left``."""
        taken = task.finished_time if task.finished else task.elapsed
        said = "" if taken is None else duration(taken)
        if not task.finished and task.time_remaining is not None:
            said += f", {duration(task.time_remaining)} left"
        return Text(said, style="progress.elapsed", no_wrap=True)


class _MeasuredColumn(ProgressColumn):
    """Column with a task's ``measured`` text, or its ``brief`` text on a narrow terminal."""

    def __init__(self, brief: bool) -> None:
        super().__init__()
        self._brief = brief

    def render(self, task: Task) -> Text:
        """Render measurements such as ``loss 3.123  45k tokens/s``, in brief ``loss 3.123``."""
        measured = task.fields["measured"]
        return Text.from_markup(task.fields.get("brief", measured) if self._brief else measured)


class Bars(Progress):
    """Bars with a count, time taken and time left. Where the console is no terminal they aren't shown.

    A line that doesn't fit the terminal gets a shorter bar, then none, then says the most important number alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console  # rich's own isn't there yet when it first asks for a table
        begin = [SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}")]
        count = TextColumn("{task.completed:.0f}/{task.total}", justify="right")
        full, brief, times = _MeasuredColumn(False), _MeasuredColumn(True), TimesColumn()
        self._layouts: list[list[ProgressColumn]] = [
            [*begin, BarColumn(bar_width=24), count, full, times],
            [*begin, BarColumn(bar_width=12), count, full, times],
            [*begin, count, full, times],
            [*begin, count, brief, times],
            [*begin, count, brief],
        ]
        super().__init__(*self._layouts[0], console=console, refresh_per_second=8, disable=not console.is_terminal)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Lay the tasks out in as many columns as there is room for."""
        tasks = list(tasks)
        roomy = self._console.options.update(width=_ROOMY)
        for layout in self._layouts:
            self.columns = tuple(layout)
            table = super().make_tasks_table(tasks)
            if self._console.measure(table, options=roomy).maximum <= self._console.width:
                break
        return table


@contextmanager
def counting(console: Console, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of how many are done: a bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        with working(console, what) as tell:
            yield lambda done, total: tell(f"{done} of {total} {unit}")
        return
    with Bars(console) as progress:
        task = progress.add_task(what, total=None, measured=unit)
        yield lambda done, total: progress.update(task, completed=done, total=total)
