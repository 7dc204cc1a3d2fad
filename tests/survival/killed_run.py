"""Runs that are killed at many kinds of moments and go on each time; a process of its own.

``python -m tests.survival.killed_run REQUESTS`` forks a process for each life, since autograd can't be used in the fork
of a process that has used it. REQUESTS is JSON, by name: ``directory``, ``changes`` of the configuration, ``kills``
(how often in each kind of moment), and ``seed``. It prints as JSON, by name, the directories of an ``undisturbed`` run
and of the ``killed`` ones, of which there is a second when the first has come to its end before the last kill, and what
became of each of the latter's ``lives``.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, define

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.events.stopping import Stopping
from stackwise_core.engine.loop.checkpoint import Checkpoints
from stackwise_core.engine.loop.run_record import RunRecord
from stackwise_core.engine.loop.streamed_step import StreamedStep
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.system.process_state import own_state
from tests.killing import STOPPED, forked, kill_before_change
from tests.tiny import TinyRun

MOMENTS: dict[str, tuple[type, str]] = {
    "step": (TrainingStep, "backward"),
    "streamed step": (StreamedStep, "backward"),
    "streamed update": (StreamedStep, "update"),
    "checkpoint": (Checkpoints, "write"),
    "cache write": (Boundary, "_keep"),
    "quantising": (RunDirectory, "write_prepared"),
    "phase change": (RunRecord, "write_phase"),
}
"""The activity during which a life is killed, by its method."""


@define
class Life:
    """The outcome of one process."""

    moment: str | None
    """In which it was to end; None: it was to go on to the run's end."""
    way: str
    """instant: SIGKILL by another process, some time after the moment has begun; change: before one of the changes
    to the disk that follow; terminate: SIGTERM some time after the moment has begun."""
    reached: bool = False
    """Whether the moment came."""
    status: int = 0
    """-9 where it was killed, else what it exited with."""


def survive(request: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a request, as JSON values."""
    directory, rng = Path(request["directory"]), random.Random(request["seed"])
    run = TinyRun.of(directory, request["changes"])
    undisturbed = live(run, None, Life(None, "none"), rng)
    assert undisturbed.status == 0
    moments = [moment for moment, times in request["kills"].items() for _ in range(times)]
    rng.shuffle(moments)
    killed, lives = [directory / "runs" / "tiny-2"], list[Life]()
    while moments or lives[-1].status != 0:
        moment = moments.pop() if moments else None
        way = ("instant", "change", "instant", "terminate", "instant")[len(lives) % 5] if moment else "none"
        if lives and lives[-1].status == 0:  # that one came to its end, so there is another
            killed.append(directory / "runs" / f"tiny-{len(killed) + 2}")
        lives.append(live(run, killed[-1] if killed[-1].exists() else None, Life(moment, way), rng))
        if lives[-1].status not in (0, STOPPED, -signal.SIGKILL):
            break
    return {
        "undisturbed": str(directory / "runs" / "tiny"),
        "killed": [str(each) for each in killed],
        "lives": [asdict(each) for each in lives],
    }


def live(run: TinyRun, directory: Path | None, life: Life, rng: random.Random) -> Life:
    """Go on with a run, or begin one, in a process that ends as ``life`` has it."""
    often = life.moment in ("step", "streamed step", "streamed update", "checkpoint", "cache write")
    occurrence, delay, changes = rng.randint(1, 2 if often else 1), rng.uniform(0, 0.015), rng.randint(0, 20)
    child, readable = forked(lambda tell: work(run, directory, life, occurrence, changes, lambda: tell(b"!")))
    while os.read(readable, 1):
        life.reached = True
        if life.way in ("instant", "terminate"):
            time.sleep(delay)
            os.kill(child, signal.SIGKILL if life.way == "instant" else signal.SIGTERM)
    os.close(readable)
    life.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return life


def work(
    run: TinyRun, directory: Path | None, life: Life, occurrence: int, changes: int, tell: Callable[[], object]
) -> None:
    """One life."""
    left = occurrence

    def announce() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            tell()
            if life.way == "change":
                kill_before_change(changes)

    if life.moment is not None:
        owner, name = MOMENTS[life.moment]
        original = getattr(owner, name)

        def announced(*arguments: Any, **options: Any) -> Any:
            announce()
            return original(*arguments, **options)

        setattr(owner, name, announced)
    torch.manual_seed(torch.seed())
    begun, stopping = None if directory is None else RunDirectory(directory), Stopping()
    with stopping.heeding():
        run.engine(lambda event: None, begun, stopping).run()


if __name__ == "__main__":
    with own_state():
        """Here rather than in each life, since torch imports a thousand modules for it."""
    print(json.dumps({name: survive(request) for name, request in json.loads(sys.argv[1]).items()}))
