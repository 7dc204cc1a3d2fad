"""Executes a plan: phase after phase, each finished stack written to disk and handed to the trunk."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from cattrs import unstructure

from stackwise_core import __version__
from stackwise_core.config.dump import dump
from stackwise_core.config.model import Config
from stackwise_core.data.draws import Drawer
from stackwise_core.inference.evaluate import Likelihood, evaluate
from stackwise_core.rack.residency import Residency
from stackwise_core.registry import Registry
from stackwise_core.runs.directory import RunDirectory
from stackwise_core.runs.metrics import Metrics
from stackwise_core.training.boundary import Boundary, namespace
from stackwise_core.training.cost import PhasePlan, cache_layout, sample_order
from stackwise_core.training.events import (
    EvaluationProgress,
    Event,
    Listener,
    PhaseDone,
    PhaseResult,
    PhaseStarted,
    RunDone,
    RunResult,
    RunStarted,
    StepDone,
)
from stackwise_core.training.fit import Fit
from stackwise_core.training.objective import Objective
from stackwise_core.training.plan import Plan, check_disk
from stackwise_core.training.setup import Setup


class Engine:
    """One run, from its directory to its last evaluation.

    Args:
        listener: told of everything that happens.
    """

    def __init__(self, setup: Setup, plan: Plan, registry: Registry, listener: Listener) -> None:
        self._setup, self._plan, self._registry, self._listener = setup, plan, registry, listener
        config = setup.config
        check_disk(plan, Path(config.run.directory))
        self._directory = RunDirectory.create(Path(config.run.directory), config.run.name)
        self._residency = Residency(
            setup.spec,
            mask_id=setup.tokenizer.mask_id,
            seed=config.run.seed,
            active=setup.implementations.active,
            trunk=setup.implementations.trunk,
            device=setup.device,
            read_master=self._directory.read_stack,
            write_master=self._directory.write_stack,
        )
        self._order = sample_order(setup)
        self._layout = cache_layout(setup)

    def run(self) -> RunResult:
        """Train every phase, then measure every depth."""
        config = self._setup.config
        self._directory.write_text("config.toml", dump(config))
        self._directory.write_json("plan.json", self._plan.to_json())
        self._directory.write_json("environment.json", environment(config, self._registry, self._setup.device))
        with Metrics(self._directory.metrics) as metrics, deterministic(), ExitStack() as boundaries:

            def tell(event: Event) -> None:
                record(event, metrics, config.run.log_every)
                self._listener(event)

            tell(RunStarted(self._plan, self._directory.path))
            phases: list[PhaseResult] = []
            below: Boundary | None = None
            for planned in self._plan.phases:
                tell(PhaseStarted(planned))
                if below is not None and not planned.made_from_below:
                    below.drop()
                self._residency.place(planned.phase)
                boundary = self._boundary(planned, below)
                if boundary is not None:
                    # Nothing resumes a run yet, so what an interrupted one cached is of no use to anybody.
                    boundaries.callback(boundary.drop)
                measured = self._fit(planned, boundary, tell).run()
                self._write_weights(planned)
                if below is not None:
                    below.drop()
                below = boundary
                phases.append(measured)
                tell(PhaseDone(planned, measured))
            if below is not None:
                below.drop()
            result = RunResult(self._directory.path, tuple(phases), tuple(self._evaluate(tell)))
            tell(RunDone(result))
        return result

    def _fit(self, planned: PhasePlan, boundary: Boundary | None, listener: Listener) -> Fit:
        phase = planned.phase
        assert phase.weighting is not None  # make_plan has settled it
        return Fit(
            planned=planned,
            residency=self._residency,
            drawer=self._drawer(planned),
            objective=Objective(self._setup.implementations.schedule, phase.weighting, phase.progress),
            order=self._order,
            boundary=boundary,
            training=self._setup.config.training,
            listener=listener,
        )

    def _drawer(self, planned: PhasePlan) -> Drawer:
        return Drawer(
            split=self._setup.corpus.train,
            schedule=self._setup.implementations.schedule,
            seed=self._setup.config.run.seed,
            mask_id=self._setup.tokenizer.mask_id,
            progress=planned.phase.progress,
            at_least_one=planned.phase.weighting == "mean",
        )

    def _boundary(self, planned: PhasePlan, below: Boundary | None) -> Boundary | None:
        """The boundary that a phase starts from, or None where it starts at the tokens."""
        trunk = planned.phase.frozen_prefix
        if not trunk:
            return None
        cache, store = self._setup.implementations.cache, None
        if cache is not None:
            name = namespace(self._residency, trunk, self._layout, self._settings())
            capacity: int | None = cache.options.capacity
            if capacity is not None and planned.made_from_below:
                capacity //= 2  # the one below takes its part, until this one is whole
            store = cache.open(self._directory.cache / name, self._layout, capacity)
        return Boundary(
            trunk,
            self._residency,
            self._drawer(planned),
            self._order,
            store,
            self._layout,
            below if planned.made_from_below else None,
        )

    def _settings(self) -> dict[str, object]:
        """What besides weights and draws decides a boundary's bits."""
        setup = self._setup
        return {
            "tokenizer": setup.tokenizer.fingerprint.hex(),
            "device": setup.device.type,
            "precision": unstructure(setup.config.precision.trunk or setup.config.precision.active),
        }

    def _write_weights(self, planned: PhasePlan) -> None:
        """Put what a phase trained on disk, in full precision."""
        ends = self._residency.ends
        unwritten = not (self._directory.path / "embedding.safetensors").exists()
        if planned.phase.embedding or unwritten:
            self._directory.write_tensors("embedding.safetensors", {"embed_tokens.weight": ends.embed_tokens.weight})
        if ends.lm_head is not None and (planned.phase.head or unwritten):
            self._directory.write_tensors("head.safetensors", {"lm_head.weight": ends.lm_head.weight})
        for index in sorted(planned.phase.trains):
            self._directory.write_stack(index, self._residency.stack(index).state_dict())

    def _evaluate(self, tell: Listener) -> list[Likelihood]:
        setup, config = self._setup, self._setup.config
        split = setup.corpus.validation
        if not len(split):
            return []
        done, total = 0, min(config.evaluation.sequences or len(split), len(split))

        def advance(sequences: int) -> None:
            nonlocal done
            done += sequences
            tell(EvaluationProgress(done, total))

        return evaluate(
            self._residency,
            split,
            path=self._plan.phases[-1].phase.path,
            mask_id=setup.tokenizer.mask_id,
            seed=config.run.seed,
            draws=config.evaluation.draws,
            sequences=config.evaluation.sequences,
            batch_size=config.training.batch_size,
            progress=advance,
        )


@contextmanager
def deterministic() -> Iterator[None]:
    """Same configuration, same machine: same bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # every buffer here is written before it is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def record(event: Event, metrics: Metrics, log_every: int) -> None:
    """Write what a machine will want to read later."""
    if isinstance(event, StepDone):
        if event.step % log_every == 0 or event.step in (1, event.planned.steps):
            metrics.write(
                "step",
                phase=event.planned.phase.name,
                step=event.step,
                loss=event.loss,
                learning_rate=event.learning_rate,
                grad_norm=event.grad_norm,
                tokens_per_second=event.tokens_per_second,
            )
    elif isinstance(event, PhaseDone):
        metrics.write("phase", **unstructure(event.result))
    elif isinstance(event, RunDone):
        for likelihood in event.result.likelihoods:
            metrics.write("likelihood", **unstructure(likelihood))


def environment(config: Config, registry: Registry, device: torch.device) -> dict[str, object]:
    """What the run ran on: versions of the core, its plugins and torch, and the device."""
    chosen = {
        "mask_schedule": config.mask_schedule,
        "precision.active": config.precision.active,
        "precision.trunk": config.precision.trunk,
        "cache_backend": config.cache_backend,
        "trainer_mode": config.trainer_mode,
    }
    plugins = {}
    for where, choice in chosen.items():
        if choice is not None:
            declared = registry.resolve(where.split(".")[0], choice.use)
            plugins[where] = {
                "use": declared.implementation.name,
                "distribution": declared.distribution,
                "version": declared.version,
            }
    return {
        "stackwise-core": __version__,
        "plugins": plugins,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": metadata.version("safetensors"),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
