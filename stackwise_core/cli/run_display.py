"""Display of a run on a terminal (bars) or in a pipe (lines)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn

from stackwise_core.cli.bars import Bars
from stackwise_core.cli.likelihood_tables import print_likelihoods
from stackwise_core.cli.next_steps import print_next_steps
from stackwise_core.cli.plan_table import print_plan
from stackwise_core.cli.pulse import Pulse
from stackwise_core.cli.quantities import count, duration
from stackwise_core.cli.shown_paths import shown
from stackwise_core.cli.tables import abridged, print_table
from stackwise_core.engine.events.events import (
    BadStep,
    BoundaryProgress,
    CheckpointWritten,
    EnvironmentChanged,
    EvaluationProgress,
    Event,
    Listener,
    LossSpike,
    PhaseDone,
    PhaseResumed,
    PhaseStarted,
    RunDone,
    RunResult,
    RunStarted,
    StepDone,
    Validated,
)
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.options import ByteSize
from stackwise_core.registry import Registry

SECONDS_BETWEEN_LINES = 5.0
ALL_RESULT_COLUMNS = 80
"""Columns of a terminal that the whole table of phases fits into."""
WITH_PEAK = 96
"""Columns of a terminal from which on a bar shows the peak of memory, too."""
LOSS_MEMORY = 0.95
"""Share of the shown loss that each step keeps: single steps are noisy, by their draws of the mask fraction."""


@contextmanager
def tokenising(console: Console, what: str) -> Iterator[Callable[[int, float], None]]:
    """Show that work is under way, and while text is tokenised for it how much, how fast, and the time left.

    Args:
        what: such as ``"planning"``; a corpus that was tokenised before is found silently.
    """
    begun: tuple[float, int, float] | None = None
    text, began, doing, far = 0, time.monotonic(), what, ""

    def line() -> str:
        return f"{doing}: {far}" if far else f"{doing}, {duration(time.monotonic() - began)} so far"

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[measured]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task, pulse = progress.add_task(what, total=1.0, measured=""), None
        if not console.is_terminal:
            pulse = Pulse(line, stderr=console.stderr)

        def advance(done: int, share: float) -> None:
            nonlocal begun, text, doing, far
            now, text = time.monotonic(), done
            begun = begun or (now, done, share)  # the first batch may have waited for a library to be imported
            seconds, size, part = now - begun[0], done - begun[1], share - begun[2]
            doing, far = ("tokenising", f"{100 * share:.0f} %  {ByteSize(done)}") if share < 1 else (what, "")
            if far and seconds and part:
                far += f"  {ByteSize(size / seconds)}/s  {duration(seconds * (1 - share) / part)} left"
            progress.update(task, completed=share, description=doing, measured=far)

        try:
            yield advance
        finally:
            if pulse is not None:
                pulse.stop()
    if text:
        console.print(f"tokenised {ByteSize(text)} of text", highlight=False)


@contextmanager
def watching(console: Console, *, advise: Registry | None, exportable: bool = True) -> Iterator[Listener]:
    """Yield a listener that shows a run on a console.

    Args:
        advise: the plugins, for what can be done next, which the end names; None: it names nothing.
        exportable: whether other libraries can load the run's adapters.
    """
    watcher = Terminal(console) if console.is_terminal else Lines(console)
    plan: Plan | None = None

    def listen(event: Event) -> None:
        nonlocal plan
        watcher(event)
        if isinstance(event, RunStarted):
            plan = event.plan
        elif isinstance(event, RunDone) and advise is not None and plan is not None:
            print_next_steps(console, event.result, plan, advise, exportable=exportable)

    try:
        yield listen
    finally:
        with suppress(OSError):  # nobody is there to see it
            watcher.stop()


class SmoothedLoss:
    """The loss as it is shown: an exponential mean, unbiased at its beginning."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, loss: float) -> float:
        """Add a step's loss, and return the mean."""
        self._sum = LOSS_MEMORY * self._sum + (1 - LOSS_MEMORY) * loss
        self._weight = LOSS_MEMORY * self._weight + (1 - LOSS_MEMORY)
        return self._sum / self._weight


class Terminal:
    """Display with a bar for each phase, with loss, speed, and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Bars(console)
        self._task = self._boundary = self._evaluation = TaskID(-1)
        self._loss, self._held_out = SmoothedLoss(), ""

    def __call__(self, event: Event) -> None:
        """Show an event."""
        progress = self._progress
        if isinstance(event, RunStarted):
            print_plan(self._console, event.plan)
            self._console.print(f"\n{where(event)}\n", highlight=False)
            progress.start()
        elif isinstance(event, EnvironmentChanged):
            self._console.print(elsewhere(event), highlight=False, markup=False, style="yellow")
        elif isinstance(event, PhaseStarted):
            self._loss, self._held_out = SmoothedLoss(), ""
            self._task = progress.add_task(event.planned.phase.name, total=event.planned.steps, measured="")
            self._boundary = TaskID(-1)
        elif isinstance(event, PhaseResumed):
            progress.update(self._task, completed=event.step)
            self._console.print(resumed(event), highlight=False, markup=False)
        elif isinstance(event, CheckpointWritten):
            self._console.print(written(event), highlight=False, markup=False)
        elif isinstance(event, BadStep | LossSpike):
            progress.update(self._task, completed=event.step)
            self._console.print(warning(event), highlight=False, markup=False, style="yellow")
        elif isinstance(event, BoundaryProgress):
            if self._boundary == TaskID(-1):
                # A pass: a chunk of the window through a stack of the trunk.
                self._boundary = progress.add_task("  [dim]boundary[/]", total=event.total, measured="[dim]passes[/]")
            unfinished = event.passes < event.total
            progress.update(self._boundary, completed=event.passes, total=event.total, visible=unfinished)
        elif isinstance(event, StepDone):
            loss, speed = self._loss.add(event.loss), count(event.tokens_per_second)
            measured = f"loss {loss:.3f}{self._held_out}  {speed} tokens/s{self._peak(event.peak_bytes)}"
            progress.update(self._task, completed=event.step, measured=measured, brief=f"loss {loss:.3f}")
        elif isinstance(event, Validated):
            self._held_out = f" ({event.loss:.3f} held out)"
        elif isinstance(event, PhaseDone):
            speed, peak = count(event.result.tokens_per_second), self._peak(event.result.peak_bytes)
            early = "  stopped early" if event.result.stopped_early else ""
            measured = f"loss {event.result.last_loss:.3f}{self._held_out}  {speed} tokens/s{peak}{early}"
            brief = f"loss {event.result.last_loss:.3f}"
            progress.update(self._task, total=event.result.steps, measured=measured, brief=brief)
        elif isinstance(event, EvaluationProgress):
            if self._evaluation == TaskID(-1):
                self._evaluation = progress.add_task("validation", total=event.total, measured="sequences")
            progress.update(self._evaluation, completed=event.done)
        elif isinstance(event, RunDone):
            progress.stop()
            print_result(self._console, event.result)

    def _peak(self, peak_bytes: int) -> str:
        """Return the peak of memory; left out where a terminal is narrow, as the table at the end shows it, too."""
        return f"  peak {ByteSize(peak_bytes)}" if self._console.width >= WITH_PEAK else ""

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


class Lines:
    """Display with a line now and then, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console, self._spoke = console, 0.0
        self._loss = SmoothedLoss()
        self._doing, self._since = "beginning", time.monotonic()
        self._pulse = Pulse(self._still, stderr=console.stderr)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
        self._spoke = time.monotonic()

    def _still(self) -> str:
        """Return what takes so long."""
        return f"{self._doing}, {duration(time.monotonic() - self._since)} so far"

    def __call__(self, event: Event) -> None:
        """Print a line about an event, if it is time for one."""
        self._doing, self._since = following(event), time.monotonic()
        self._pulse.postpone()  # it is for what takes long by itself; of many short steps there is a line in time
        quiet = time.monotonic() - self._spoke < SECONDS_BETWEEN_LINES
        if isinstance(event, RunStarted):
            print_plan(self._console, event.plan)
            self._say(where(event))
        elif isinstance(event, EnvironmentChanged):
            self._say(elsewhere(event))
        elif isinstance(event, PhaseStarted):
            self._loss = SmoothedLoss()
            self._say(f"{event.planned.phase.name}: {event.planned.steps} steps from {event.planned.phase.entry}")
        elif isinstance(event, PhaseResumed):
            self._say(resumed(event))
        elif isinstance(event, CheckpointWritten):
            self._say(written(event))
        elif isinstance(event, BadStep | LossSpike):
            self._say(warning(event))
        elif isinstance(event, BoundaryProgress) and not quiet:
            self._say(f"{event.planned.phase.name}: boundary, pass {event.passes} of {event.total}")
        elif isinstance(event, StepDone):
            loss = self._loss.add(event.loss)
            if not quiet:
                planned = event.planned
                left = (planned.steps - event.step) * planned.tokens / planned.steps / event.tokens_per_second
                self._say(
                    f"{planned.phase.name}: step {event.step} of {planned.steps}  loss {loss:.3f}  "
                    f"{count(event.tokens_per_second)} tokens/s  peak {ByteSize(event.peak_bytes)}  "
                    f"{duration(left)} left"
                )
        elif isinstance(event, Validated):
            self._say(f"{event.planned.phase.name}: step {event.step}  loss {event.loss:.3f} on held-out text")
        elif isinstance(event, PhaseDone):
            result = event.result
            ended = "stopped early" if result.stopped_early else "done"
            self._say(
                f"{result.name}: {ended} in {duration(result.seconds)}  loss {result.last_loss:.3f}  "
                f"{count(result.tokens_per_second)} tokens/s  peak {ByteSize(result.peak_bytes)}"
            )
        elif isinstance(event, EvaluationProgress) and not quiet:
            self._say(f"validation: {event.done} of {event.total} sequences")
        elif isinstance(event, RunDone):
            print_result(self._console, event.result)

    def stop(self) -> None:
        """Say nothing more."""
        self._pulse.stop()


def following(event: Event) -> str:
    """Return the activity that follows an event, until the next one."""
    if isinstance(event, EvaluationProgress):
        return f"validation: {event.done} of {event.total} sequences"
    if isinstance(event, BoundaryProgress):
        return f"{event.planned.phase.name}: boundary, pass {event.passes} of {event.total}"
    if isinstance(event, PhaseStarted):
        return f"{event.planned.phase.name}: preparing"
    if isinstance(event, PhaseResumed | StepDone | BadStep | LossSpike | Validated):
        name, steps = event.planned.phase.name, event.planned.steps
        return f"{name}: step {event.step + 1} of {steps}" if event.step < steps else f"{name}: writing"
    return "beginning" if isinstance(event, RunStarted | EnvironmentChanged) else "writing"


def where(started: RunStarted) -> str:
    """Return where the run is, and for a resumed one which phase is next."""
    directory, phases = shown(started.directory), started.plan.phases
    if not started.phases_done:
        earlier = directory.with_name(started.name)
        return f"run directory: {directory}" + ("" if directory == earlier else f" ({earlier} is another run's)")
    following = f', "{phases[started.phases_done].phase.name}" is next' if started.phases_done < len(phases) else ""
    return f"run directory: {directory} ({started.phases_done} of {len(phases)} phases done{following})"


def elsewhere(event: EnvironmentChanged) -> str:
    """Return what differs from when the run began."""
    return f"note: the bits may differ from those of an undisturbed run: {'; '.join(event.differences)}"


def resumed(event: PhaseResumed) -> str:
    """Return from where a phase resumes, and which checkpoints couldn't be used."""
    planned, damaged = event.planned, "".join(f"{problem}\n" for problem in event.damaged)
    place = f"at step {event.step + 1} of {planned.steps}" if event.step else "from its beginning"
    return f"{damaged}{planned.phase.name}: resumes {place}"


def written(event: CheckpointWritten) -> str:
    """Report that the checkpoint which was asked for is written."""
    return f"{event.planned.phase.name}: checkpoint after step {event.step} of {event.planned.steps}"


def warning(event: BadStep | LossSpike) -> str:
    """Describe what was odd about a step."""
    where = f"{event.planned.phase.name}: step {event.step}"
    if isinstance(event, BadStep):
        return f"{where} left out: {event.reason}"
    return f"{where}: a spike, loss {event.loss:.3f} after a mean of {event.mean:.3f}"


def share(part: int, whole: int) -> str:
    """Return a percentage, or a dash where the whole is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def print_result(console: Console, result: RunResult) -> None:
    """Print the tables at the end of a run: what each phase took, and what each stack added."""
    rows = [
        {
            "phase": phase.name,
            "steps": str(phase.steps),
            "time": duration(phase.seconds),
            "first loss": f"{phase.first_loss:.3f}",
            "last loss": f"{phase.last_loss:.3f}",
            "tokens/s": count(phase.tokens_per_second),
            "peak memory": str(ByteSize(phase.peak_bytes)),
            "computed": str(phase.boundaries_computed) if phase.boundaries_wanted else "-",
            "hits": share(phase.boundaries_found, phase.boundaries_wanted),
            "equal": share(phase.boundaries_repeated, phase.boundaries_wanted),
        }
        for phase in result.phases
    ]
    if console.is_terminal and console.width < ALL_RESULT_COLUMNS:
        rows = [{name: cell for name, cell in row.items() if name not in ("computed", "hits", "equal")} for row in rows]
    console.print()
    print_table(console, list(rows[0]), abridged([list(row.values()) for row in rows]))
    evicted = sum(phase.boundaries_evicted for phase in result.phases)
    damaged = sum(phase.boundaries_damaged for phase in result.phases)
    bad, spikes = (sum(getattr(phase, of) for phase in result.phases) for of in ("bad_steps", "loss_spikes"))
    if bad:
        console.print(f"\n{bad} steps were left out: their loss or gradient was no finite number.", highlight=False)
    if spikes:
        console.print(
            f"\n{spikes} steps had a loss far above those before (loss_spike in metrics.jsonl).", highlight=False
        )
    if evicted:
        console.print(f"\n{evicted} boundaries were evicted: the capacity or the disk was full.", highlight=False)
    if damaged:
        console.print(f"\n{damaged} boundaries were found damaged, and computed again.", highlight=False)
    console.print()
    if result.likelihoods:
        print_likelihoods(console, result.likelihoods, result.routes)
    else:
        console.print("No validation split (data.validation_fraction = 0), so no likelihood.", highlight=False)
    kept = "the weights, the plan and the metrics" if result.keeps_weights else "the plan and the metrics"
    console.print(f"\n{shown(result.directory)} holds {kept}.", highlight=False, soft_wrap=not console.is_terminal)
