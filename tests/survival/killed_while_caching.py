"""Runs that are killed while boundaries are written, and go on until they end; a process of its own.

``python -m tests.survival.killed_while_caching REQUESTS`` forks a process for each life, since autograd can't be used
in the fork of a process that has used it. REQUESTS is JSON, by name: ``directory``, ``changes`` of the configuration,
``kills`` a phase, ``ways`` (of killing: "instant", "change"), ``seed``, and ``plant``, whether entries are replaced by
wrong ones after the first kill. It prints as JSON, by name, the directories of an ``undisturbed`` run and of the
``killed`` one, and the end of each of the latter's ``lives``.

Every boundary that a life reads is compared, to the bit, with one that it computes from the tokens.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, define

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.boundary.codec import decode, encode
from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.events.events import Event, PhaseDone, PhaseStarted
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files.stored_boundaries import read_records
from stackwise_core.system.process_state import own_state
from tests.killing import forked, kill_before_change
from tests.tiny import TinyRun

WRONG = 77
"""Exit code of a life that has read a wrong activation."""

PUT, READ, LATE = b"p", b"r", b"l"


@define
class Life:
    """The outcome of one process."""

    phase: str | None
    """In which it was to be killed; None: it was to go on to the end."""
    way: str
    puts: int = 0
    """Number of times that it began to put boundaries in that phase."""
    reads: int = 0
    """Number of batches that it compared, in any phase."""
    beside: bool = False
    """Whether a thread beside the main one calls the stores."""
    late: bool = False
    """Whether the phase was over before the instant had come."""
    status: int = 0
    """-9 where it was killed, else what it exited with."""


def survive(request: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a request, as JSON values."""
    directory, rng = Path(request["directory"]), random.Random(request["seed"])
    run = TinyRun.of(directory, request["changes"])
    undisturbed = live(run, None, Life(None, "none"), rng)
    assert undisturbed.status == 0
    killed, lives = directory / "runs" / "tiny-2", list[Life]()
    for phase in [*phases_to_be_killed_in(run.plan, request["kills"]), None]:
        begun = killed if killed.exists() else None
        way = rng.choice(request["ways"]) if phase else "none"
        lives.append(live(run, begun, Life(phase, way, beside=request["beside"]), rng))
        if lives[-1].status not in (0, -signal.SIGKILL):
            break
        if request["plant"] and len(lives) == 1:
            plant(run, killed)
    return {
        "undisturbed": str(directory / "runs" / "tiny"),
        "killed": str(killed),
        "lives": [asdict(each) for each in lives],
    }


def phases_to_be_killed_in(plan: Plan, kills: int) -> list[str]:
    """The phases that have boundaries, each as often as it is to be killed."""
    return [each.phase.name for each in plan.phases if each.phase.frozen_prefix for _ in range(kills)]


def live(run: TinyRun, directory: Path | None, life: Life, rng: random.Random) -> Life:
    """Go on with a run, or begin one, in a process that is killed as ``life`` has it."""
    instant, delay, changes = rng.randint(1, 3), rng.uniform(0, 0.02), rng.randint(0, 30)
    child, readable = forked(lambda tell: work(run, directory, life, changes, tell))
    while said := os.read(readable, 1):
        life.puts += said == PUT
        life.reads += said == READ
        life.late |= said == LATE
        if life.way == "instant" and said == PUT and life.puts == instant:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
    os.close(readable)
    life.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return life


def work(run: TinyRun, directory: Path | None, life: Life, changes: int, tell: Callable[[bytes], object]) -> None:
    """One life."""
    begun = in_phase = False

    def listen(event: Event) -> None:
        nonlocal in_phase
        if isinstance(event, PhaseStarted):
            in_phase = event.planned.phase.name == life.phase
        elif isinstance(event, PhaseDone) and in_phase:
            tell(LATE)
            os.kill(os.getpid(), signal.SIGKILL)

    def keep(boundary: Boundary, *arguments: Any) -> None:
        nonlocal begun
        if in_phase:
            tell(PUT)
            if life.way == "change" and not begun:
                kill_before_change(changes)
            begun = True
        unwatched_keep(boundary, *arguments)

    def read(boundary: Boundary, draws: Draws, number: int) -> torch.Tensor:
        hidden = unwatched_read(boundary, draws, number)
        tell(READ)
        if not torch.equal(hidden.view(torch.int32), recomputed(boundary, draws, number).view(torch.int32)):
            os._exit(WRONG)
        return hidden

    if life.beside:
        Boundary.__init__ = partialmethod(Boundary.__init__, beside=True)  # type: ignore[method-assign]
    unwatched_keep, unwatched_read = Boundary._keep, Boundary.read
    Boundary._keep, Boundary.read = keep, read  # type: ignore[method-assign]
    torch.manual_seed(torch.seed())
    begun_run = None if directory is None else RunDirectory(directory)
    run.engine(listen, begun_run).run()


@torch.no_grad()
def recomputed(boundary: Boundary, draws: Draws, number: int) -> torch.Tensor:
    """What ``Boundary.read`` should give: whole chunks, from the tokens, rounded after each stack."""
    forward, layout, size = boundary._forward, boundary.layout, boundary._order.chunk_size
    made = boundary.__dict__.setdefault("made_by_the_test", {})
    for chunk in {int(sample) // size for sample in draws.samples}:
        if (chunk, number) in made:
            continue
        drawn = boundary._drawer.draw(boundary._order.chunk(chunk), number)
        hidden = forward.embed(boundary.trunk[0], drawn.inputs, drawn.fraction)
        for index in boundary.trunk:
            with forward.placement.visiting(index):
                hidden = forward.through(index, hidden, forward.context(drawn.segments))
            hidden = decode(encode(hidden, layout), layout)
        made[chunk, number] = hidden
    return torch.stack([made[int(sample) // size, number][int(sample) % size] for sample in draws.samples])


def plant(run: TinyRun, directory: Path) -> None:
    """Replace all that a run has stored by activations that are wrong in one bit, under whole checksums."""
    backend = run.setup.implementations.cache
    assert backend is not None
    for record in read_records(directory / "cache"):
        store = backend.open(directory / "cache" / record.namespace, record.layout, None)
        keys = list(store.keys())
        entries = store.get(keys).clone()
        entries.view(torch.uint8)[:, 0, 0] ^= 1
        store.discard(keys)
        store.put(keys, entries)
        store.close()


if __name__ == "__main__":
    with own_state():
        """Here rather than in each life, since torch imports a thousand modules for it."""
    print(json.dumps({name: survive(request) for name, request in json.loads(sys.argv[1]).items()}))
