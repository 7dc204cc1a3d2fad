"""Executes a plan: phase after phase, each finished stack written to disk and handed to the trunk."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import torch
from cattrs import unstructure

from stackwise_core import __version__
from stackwise_core.config.dump import dump
from stackwise_core.config.model import Config
from stackwise_core.config.source_run import FINISHED
from stackwise_core.data.draws import Corruption, Drawer, Stream
from stackwise_core.data.sequences import Split
from stackwise_core.inference.evaluate import Evaluation, Likelihood, evaluate
from stackwise_core.registry import Registry
from stackwise_core.runs.directory import RunDirectory, embedding_file, head_file
from stackwise_core.runs.metrics import Metrics
from stackwise_core.training.boundary import Boundary, namespace
from stackwise_core.training.cost import PhasePlan, boundary_layout, cache_of, sample_order
from stackwise_core.training.determinism import deterministic
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
    Validated,
)
from stackwise_core.training.fit import Fit
from stackwise_core.training.objective import Objective
from stackwise_core.training.plan import Plan, check_disk
from stackwise_core.training.setup import Setup
from stackwise_core.training.validation import Validation


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
        self._residency = setup.residency(self._directory)
        self._order = sample_order(setup)

    def run(self) -> RunResult:
        """Train every phase, then measure every depth."""
        config = self._setup.config
        if self._setup.source is not None:
            given = self._setup.source.copy_into(self._directory, self._setup.spec)
            self._residency.load_ends(given)
        self._directory.write_text("config.toml", dump(config))
        self._directory.write_json("plan.json", self._plan.to_json())
        self._directory.write_json("environment.json", environment(config, self._registry, self._setup.device))
        with Metrics(self._directory.metrics) as metrics, deterministic(), ExitStack() as interrupted:

            def tell(event: Event) -> None:
                record(event, metrics, config.run.log_every)
                self._listener(event)

            tell(RunStarted(self._plan, self._directory.path))
            phases: list[PhaseResult] = []
            kept: list[Boundary] = []
            for planned in self._plan.phases:
                tell(PhaseStarted(planned))
                if not planned.made_from_below:
                    self._drop_all_but(kept, self._keep - 1)
                self._residency.place(planned.phase)
                boundary = self._boundary(planned, kept[-1] if kept else None)
                if boundary is not None:
                    # Nothing resumes a run yet, so what an interrupted one cached is of no use to anybody.
                    interrupted.callback(boundary.drop)
                    if boundary.is_stored:
                        kept.append(boundary)
                measured = self._fit(planned, boundary, tell).run()
                self._write_weights(planned)
                if boundary is not None and not boundary.is_stored:
                    boundary.drop()
                self._drop_all_but(kept, self._keep)
                phases.append(measured)
                tell(PhaseDone(planned, measured))
            self._drop_all_but(kept, self._keep if self._keep > 1 else 0)
            for boundary in kept:
                boundary.close()
            interrupted.pop_all()
            self._directory.write_json(FINISHED, {"phases": unstructure(phases)})
            likelihoods = tuple(self._evaluate(tell))
            result = RunResult(self._directory.path, tuple(phases), self._plan.routes, likelihoods)
            tell(RunDone(result))
        return result

    @property
    def _keep(self) -> int:
        """Of how many phases boundaries are kept."""
        cache = self._setup.implementations.cache
        return 1 if cache is None else cache.options.keep_time_steps

    @staticmethod
    def _drop_all_but(kept: list[Boundary], newest: int) -> None:
        while len(kept) > newest:
            kept.pop(0).drop()

    def _fit(self, planned: PhasePlan, boundary: Boundary | None, listener: Listener) -> Fit:
        phase, config = planned.phase, self._setup.config
        assert phase.weighting is not None  # make_plan has settled it
        objective = Objective(self._setup.noise, phase.weighting, phase.progress)
        validation = None
        if config.evaluation.every is not None:
            validation = Validation(
                drawer=self._drawer(planned, self._setup.corpus.validation, Stream.VALIDATION),
                objective=objective,
                every=config.evaluation.every,
                sequences=config.evaluation.sequences,
                batch_size=config.training.batch_size,
            )
        return Fit(
            planned=planned,
            residency=self._residency,
            drawer=self._drawer(planned, self._setup.corpus.train, Stream.TRAINING),
            objective=objective,
            order=self._order,
            boundary=boundary,
            training=config.training,
            listener=listener,
            validation=validation,
        )

    def _drawer(self, planned: PhasePlan, split: Split, stream: Stream) -> Drawer:
        setup, training = self._setup, self._setup.config.training
        corruption = None
        if training.mlm_random or training.mlm_keep:
            corruption = Corruption(training.mlm_random, training.mlm_keep, setup.tokenizer.vocab_size)
        return Drawer(
            split=split,
            noise=setup.noise,
            seed=setup.config.run.seed,
            mask_id=setup.tokenizer.mask_id,
            progress=planned.phase.progress,
            at_least_one=planned.phase.weighting == "mean",
            causal=training.objective == "clm",
            corruption=corruption,
            stream=stream,
        )

    def _boundary(self, planned: PhasePlan, below: Boundary | None) -> Boundary | None:
        """The boundary that a phase starts from, or None where it starts at the tokens."""
        trunk = planned.phase.frozen_prefix
        if not trunk:
            return None
        cache, store = cache_of(planned.phase, self._setup), None
        layout = boundary_layout(planned.phase, self._setup)
        if cache is not None:
            name = namespace(self._residency, trunk, layout, self._settings())
            capacity: int | None = cache.options.capacity
            if capacity is not None:
                capacity //= self._plan.stores
            store = cache.open(self._directory.cache / name, layout, capacity)
        return Boundary(
            trunk,
            self._residency,
            self._drawer(planned, self._setup.corpus.train, Stream.TRAINING),
            self._order,
            store,
            layout,
            below if planned.made_from_below else None,
            keep_below=self._keep > 1,
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
        phase = planned.phase
        for owner, ends in self._residency.all_ends():
            tensors = ends.state_dict()
            for file, prefix, trained, place in (
                (embedding_file(owner), "embed_", phase.embedding, 0),
                (head_file(owner), "lm_head.", phase.head, -1),
            ):
                part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
                theirs = trained and owner in (None, phase.path[place])
                if part and (theirs or not self._directory.has(file)):
                    self._directory.write_tensors(file, part)
        for index in sorted(phase.trains):
            self._directory.write_stack(index, self._residency.stack(index).state_dict())

    def _evaluate(self, tell: Listener) -> list[Likelihood]:
        setup = self._setup
        split = setup.corpus.validation
        if not len(split):
            return []
        return evaluate(
            self._residency,
            Evaluation.of(setup.config, split, setup.tokenizer.mask_id),
            routes=self._plan.routes,
            exits=self._plan.exits,
            active=self._plan.phases[-1].phase.trains,
            progress=lambda done, total: tell(EvaluationProgress(done, total)),
        )


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
    elif isinstance(event, Validated):
        metrics.write("validation", phase=event.planned.phase.name, step=event.step, loss=event.loss)
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
