"""Runs small enough for a test: a real engine on a page of real text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from stackwise_core.config.load import structure
from stackwise_core.config.model import Config
from stackwise_core.engine.events.events import Event, Listener, RunResult, StepDone
from stackwise_core.engine.events.stopping import Stopping
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.loop.running_phase import RunningPhase
from stackwise_core.engine.loop.step_batches import StepBatches
from stackwise_core.engine.phases.setup import Setup, set_up
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan, make_plan
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.registry import Registry

TEXT = Path(__file__).parent / "golden" / "genesis.txt"


def tiny_config(directory: Path, changes: Mapping[str, Any] | None = None) -> tuple[Config, Registry]:
    """A rack of three stacks on Genesis 1; ``changes`` maps dotted keys to values, None takes a key out."""
    data: dict[str, Any] = {
        "run": {"name": "tiny", "directory": str(directory / "runs"), "seed": 3, "log_every": 1},
        "data": {"corpus": str(TEXT), "seq_len": 32, "tokens_directory": str(directory / "tokens")},
        "rack": {"stacks": 3, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2},
        "training": {
            "epochs_per_stack": 3,
            "masks_per_sample": 2,
            "batch_size": 8,
            "block_lr": 3e-3,
            "residency": "memory",  # so that tests can look at all of it
        },
        "mask_schedule": {"use": "linear"},
        "cache_backend": {"use": "memory", "dtype": "fp32"},
        "trainer_mode": {"use": "blockwise"},
    }
    for key, value in (changes or {}).items():
        table, *rest = key.split(".")
        if not rest:
            data.pop(table, None) if value is None else data.__setitem__(table, value)
        else:
            data.setdefault(table, {})[rest[0]] = value
    registry = Registry.discover()
    return structure(data, registry), registry


@define
class TinyRun:
    """A tiny run as several processes may go on with it."""

    setup: Setup
    plan: Plan
    registry: Registry

    @classmethod
    def of(cls, directory: Path, changes: Mapping[str, Any]) -> "TinyRun":
        """The run of ``tiny_config``."""
        config, registry = tiny_config(directory, changes)
        setup = set_up(config, registry)
        return cls(setup, make_plan(setup), registry)

    def engine(self, listener: Listener, begun: RunDirectory | None = None, stopping: Stopping | None = None) -> Engine:
        """The call that begins or resumes the run."""
        return Engine(self.setup, self.plan, self.registry, listener, begun, stopping)


@define
class Ran:
    """The result of a tiny run."""

    setup: Setup
    plan: Plan
    engine: Engine
    events: list[Event] = field(factory=list)
    result: RunResult | None = None

    @property
    def losses(self) -> list[float]:
        """Every step's loss, in order."""
        return [event.loss for event in self.events if isinstance(event, StepDone)]

    @property
    def directory(self) -> Path:
        assert self.result is not None
        return self.result.directory


def run_tiny(
    directory: Path, changes: Mapping[str, Any] | None = None, before: Callable[[Ran], None] | None = None
) -> Ran:
    """Train a tiny run to its end; ``before`` may look at or replace parts of it first."""
    config, registry = tiny_config(directory, changes)
    setup = set_up(config, registry)
    plan = make_plan(setup)
    events: list[Event] = []
    ran = Ran(setup, plan, Engine(setup, plan, registry, events.append), events)
    if before is not None:
        before(ran)
    ran.result = ran.engine.run()
    return ran


def backward(engine: Engine, planned: PhasePlan, samples: Sequence[int]) -> tuple[RunningPhase, float]:
    """Compute the gradients of a step on these samples, from the tokens on; the phase, and the step's loss."""
    phase, objective = engine.phase(planned, None, lambda event: None), engine.objective(planned)
    draws = engine.training_drawer(planned).draw(samples, 0)
    numbers = phase.step.backward(StepBatches.of([draws], 0, objective, phase.step.device), seed=0, factor=1.0)
    return phase, numbers.loss.item()


def telling(listen: Callable[[Event, Path], None]) -> Callable[[Ran], None]:
    """For ``before``: tell somebody of each event first, and where the run is."""

    def before(ran: Ran) -> None:
        listener = ran.engine.listener

        def both(event: Event) -> None:
            listen(event, ran.engine.directory)
            listener(event)

        ran.engine.listener = both

    return before
