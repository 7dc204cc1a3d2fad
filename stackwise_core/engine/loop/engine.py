"""The engine: it executes a plan phase after phase. Each finished stack is written to disk and joins the trunk."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import torch
from cattrs import structure, unstructure
from cattrs.errors import BaseValidationError

from stackwise_core.config.contents import contents
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.boundary.namespace import made_of
from stackwise_core.engine.boundary.stores import Stores
from stackwise_core.engine.draws.draws import Drawer, Stream
from stackwise_core.engine.draws.sequences import Split
from stackwise_core.engine.evaluation.evaluate import Evaluation, Likelihood, evaluate
from stackwise_core.engine.evaluation.validation import Validation
from stackwise_core.engine.loop.checkpoint import Checkpoints
from stackwise_core.engine.loop.events import (
    EnvironmentChanged,
    EvaluationProgress,
    Event,
    Listener,
    PhaseDone,
    PhaseResult,
    PhaseStarted,
    RunDone,
    RunResult,
    RunStarted,
)
from stackwise_core.engine.loop.fit import Fit
from stackwise_core.engine.loop.recording import Recorder
from stackwise_core.engine.loop.stopping import Stopping
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.phases.phase_boundaries import boundary_layout, cache_of
from stackwise_core.engine.phases.phase_steps import sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan, check_same_plan
from stackwise_core.engine.plan.plan_limits import (
    check_disk,
    check_memory,
    check_possible,
    check_stores_directory,
    stores_directory,
)
from stackwise_core.engine.process.allocator import give_back
from stackwise_core.engine.process.memory import device_memory
from stackwise_core.engine.process.threads import computing_threads
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.environment import device_name, environment
from stackwise_core.engine.runs.software import changed_plugins, differences, plugins_of, software
from stackwise_core.engine.text.sources import named_texts
from stackwise_core.engine.weights.kept_files import (
    configuration_text,
    keep_plugins,
    keep_tokenizer,
    named_files,
    write_config,
)
from stackwise_core.engine.weights.merge import merge_adapter
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.registry import Registry
from stackwise_core.run_files.kept import Kept
from stackwise_core.run_files.metrics import Metrics
from stackwise_core.run_files.names import (
    CONFIG,
    ENVIRONMENT,
    FINISHED,
    PLAN,
    PROGRESS,
    embedding_file,
    head_file,
    rack_file,
)
from stackwise_core.run_files.steps import has_step, has_work
from stackwise_core.run_files.stored_boundaries import take_over
from stackwise_core.system.process_state import own_state


class Engine:
    """One run, from its directory to its last evaluation.

    Args:
        listener: told of everything that happens.
        directory: of an interrupted run, to resume; None for a new one.
        stopping: whether somebody asked the run to stop.
        parent: where a new run's directory is made; None: as ``run.directory`` says, from the working directory.
        beyond_machine: whether to begin though the plan is clearly impossible on this machine.

    The working directory may change while it runs: all of its paths are absolute.
    """

    def __init__(
        self,
        setup: Setup,
        plan: Plan,
        registry: Registry,
        listener: Listener,
        directory: RunDirectory | None = None,
        stopping: Stopping | None = None,
        parent: Path | None = None,
        *,
        beyond_machine: bool = False,
    ) -> None:
        self._setup, self._plan, self._registry, self._listener = setup, plan, registry, listener
        self._stopping = stopping or Stopping()
        run = setup.config.run
        check_memory(plan, setup.config.training.memory_budget)
        parent, stores = (parent or Path(run.directory)).absolute(), stores_directory(setup.config)
        if not beyond_machine:
            check_possible(plan, device_memory(setup.device), None if directory else parent)
        check_stores_directory(stores)
        if directory is None:  # what a resumed run has on the disk is a part of what it needs
            check_disk(plan, stores or parent)
        self._resumes, self._lock = directory is not None, ExitStack()
        if directory is None:
            self._directory = RunDirectory.create(parent, run.name)
            # Others would take it for one that was left without a step.
            self._lock.enter_context(self._directory.locked())
        else:
            self._directory = RunDirectory(directory.path.absolute())
        self._order, self._stores = sample_order(setup), None
        try:
            cache = setup.implementations.cache
            if cache is not None:
                if stores is not None and self._moved_from is not None:
                    take_over(stores, str(self._moved_from), str(self._directory.path))
                self._stores = Stores(cache, stores or self._directory.cache, self._directory.path)
            self._residency = setup.residency(self._directory)
        except BaseException:  # for want of memory, or by Ctrl-C
            if not self._resumes:
                self._leave_nothing_without_work()
            raise

    @property
    def _moved_from(self) -> Path | None:
        """Directory of the run when it wrote its configuration, if that was elsewhere and isn't there any more."""
        before = Kept.of(self._directory.path).written_in
        return None if before is None or before.exists() else before

    @property
    def directory(self) -> Path:
        """Directory of the run."""
        return self._directory.path

    def run(self) -> RunResult:
        """Train every phase that isn't done yet, then measure every depth.

        Raises:
            StackwiseError: another process is working on the run, a file is damaged, or losses aren't finite.
            KeyboardInterrupt: somebody asked the run to stop; what is done is on disk.
        """
        with self._lock, computing_threads(self._setup.config.run.threads):
            if self._resumes:
                self._lock.enter_context(self._directory.locked())
            try:
                return self._run()
            except BaseException:
                self._leave_nothing_without_work()
                raise

    def _leave_nothing_without_work(self) -> None:
        """Delete a run that has taken no step, nor made boundaries for one."""
        with suppress(StackwiseError):  # a manifest that is damaged is somebody's
            if not has_work(self._directory.path):
                shutil.rmtree(self._directory.path, ignore_errors=True)

    def _run(self) -> RunResult:
        config, (done, measured_until) = self._setup.config, self._begin()
        with (
            Metrics(self._directory.metrics) as metrics,
            Recorder(
                self._plan, config, self._directory.path, metrics, self._setup.implementations.trackers
            ) as recorder,
            own_state(self._setup.device),
        ):

            def tell(event: Event) -> None:
                recorder.record(event)
                self._listener(event)

            tell(RunStarted(self._plan, self._directory.path, config.run.name, len(done)))
            self._compare_environment(tell)
            if len(done) == len(self._plan.phases):  # what is left is measured, as a whole
                metrics.cut_back(measured_until)
            with self._stopping.deferred():
                phases = self._train(done, measured_until, metrics, tell)
            self._stopping.stop()
            finished = {"phases": unstructure(phases), "active": sorted(self._active_at_the_end)}
            self._directory.write_json(FINISHED, {**finished, "evaluated": False})
            likelihoods, keeps = tuple(self._evaluate(tell)), config.checkpoint.save_stacks
            result = RunResult(self._directory.path, tuple(phases), self._plan.routes, likelihoods, keeps)
            tell(RunDone(result))
            metrics.settle()
            with self._directory.together():
                if not keeps:
                    self._directory.drop_weights()
                self._directory.write_json(FINISHED, {**finished, "evaluated": True, "weights": keeps})
        return result

    def _compare_environment(self, tell: Listener) -> None:
        """Report what changed since the run began; a changed plugin counts as the run's own from now on."""
        known = self._directory.read_json(ENVIRONMENT)
        now = environment(self._setup.config, self._registry, self._setup.device)
        if changed := differences(known, now):
            tell(EnvironmentChanged(tuple(changed)))
        known = known if isinstance(known, dict) else {}
        if plugins := changed_plugins(known.get("plugins"), plugins_of(self._setup.config, self._registry)):
            earlier = known.get("changed")
            changes = [*(earlier if isinstance(earlier, list) else []), *plugins]
            self._directory.write_json(ENVIRONMENT, {**known, "plugins": now["plugins"], "changed": changes})

    def _train(
        self, done: list[PhaseResult], measured_until: int, metrics: Metrics, tell: Listener
    ) -> list[PhaseResult]:
        """Train every phase that isn't done yet; return the measurements of all of them.

        Args:
            measured_until: how many bytes of metrics there were when the last of them was done.
        """
        phases, kept = list(done), self._left(len(done))
        with ExitStack() as interrupted:
            for place, planned in enumerate(self._plan.phases[len(done) :], len(done)):
                self._stopping.stop()
                tell(PhaseStarted(planned))
                if not planned.same_boundary:  # there is one more then; the one below is needed to make it
                    self._drop_all_but(kept, max(self._keep - 1, int(planned.made_from_below)))
                self._merge(planned.phase)
                self._residency.place(planned.phase, streams=planned.streams)
                boundary = self._boundary(planned, kept)
                if boundary is not None:
                    interrupted.callback(boundary.close)
                    if boundary.is_stored:
                        kept.append(boundary)
                checkpoints = Checkpoints(
                    self._directory,
                    metrics,
                    self._setup.config.checkpoint,
                    place,
                    measured_until,
                    self._setup.implementations.optimizer,
                )
                measured = self._fit(planned, boundary, tell, checkpoints).run()
                phases.append(measured)
                metrics.write("phase", **unstructure(measured))
                measured_until = metrics.settle()
                self._write(planned, phases, measured_until)
                if self._stores is not None:
                    self._stores.settle()
                if boundary is not None and not boundary.is_stored:
                    boundary.drop()
                self._drop_all_but(kept, self._keep)
                give_back()
                tell(PhaseDone(planned, measured))
            self._drop_all_but(kept, self._keep if self._keeps_for_good else 0)
            if self._stores is not None and not self._keeps_for_good:
                self._stores.drop_others()
            for boundary in kept:
                boundary.close()
            interrupted.pop_all()
        return phases

    def _begin(self) -> tuple[list[PhaseResult], int]:
        """Initialise the run directory, or load the completed phases of an interrupted run.

        Returns:
            The phases that are done, and how many bytes of metrics there were then.
        """
        config, directory = self._setup.config, self._directory
        if has_step(directory.path):
            directory.manifest.recover()
            corpora = [text.corpus.name for text in named_texts(config.data, self._registry)]
            check_same_plan(self._plan, directory, corpora)
            self._residency.load_ends(directory.read_ends(self._setup.spec))
            done, measured_until = _read_progress(directory)
            self._update_config()
            self._save_rack(len(done))
            return done, measured_until
        # What a run without a step left; by its directory, its own copies are what is copied anew.
        directory.clear(keep=named_files(config, self._registry))
        with directory.together():
            if self._setup.source is not None:
                self._residency.load_ends(self._setup.source.copy_into(directory, self._setup.spec))
            self._write_ends(None)
            hashes = contents(config, self._registry)
            write_config(directory, config, own_tokenizer=self._keep_files(), contents=hashes)
            directory.write_json(PLAN, self._plan.to_json())
            directory.write_json(ENVIRONMENT, environment(config, self._registry, self._setup.device))
            directory.write_json(PROGRESS, {"phases": [], "metrics": 0})
        return [], 0

    def _keep_files(self) -> bool:
        """Copy what using the finished run takes into its directory; return whether the tokenizer is among it."""
        keep_plugins(self._directory, self._registry)
        return keep_tokenizer(self._directory, self._setup.config, self._setup.tokenizer)

    def _update_config(self) -> None:
        """Write the configuration anew where a change was accepted, or the run was moved."""
        config, directory = self._setup.config, self._directory
        about = directory.manifest.about(CONFIG)
        same_place = about.get("written_in") == os.path.realpath(directory.path)
        with directory.together():
            own_tokenizer = self._keep_files()
            text = configuration_text(directory, config, own_tokenizer=own_tokenizer)
            if not same_place or text != directory.read_text(CONFIG):
                known = about.get("contents")
                hashes = known if isinstance(known, dict) else contents(config, self._registry)
                write_config(directory, config, own_tokenizer=own_tokenizer, contents=hashes)

    @property
    def _active_at_the_end(self) -> frozenset[int]:
        """Stacks that trained last; those that had been quantised before, and came back to train, are so again."""
        *earlier, last = (planned.phase for planned in self._plan.phases)
        before = {stack for phase in earlier for stack in phase.path}
        formats = self._setup.implementations.formats
        return frozenset(
            stack for stack in last.trains if stack not in before or not formats.precision(stack, "trunk").quantises
        )

    @property
    def _keep(self) -> float:
        """Number of phases of which boundaries are kept."""
        cache = self._setup.implementations.cache
        return 1 if cache is None else cache.options.phases_kept

    @property
    def _keeps_for_good(self) -> bool:
        """Whether boundaries are left when the run ends."""
        cache = self._setup.implementations.cache
        return cache is not None and cache.options.keep == "rack"

    @staticmethod
    def _drop_all_but(kept: list[Boundary], newest: float) -> None:
        while len(kept) > newest:
            kept.pop(0).drop()

    def _fit(
        self,
        planned: PhasePlan,
        boundary: Boundary | None,
        listener: Listener,
        checkpoints: Checkpoints | None = None,
    ) -> Fit:
        phase, config = planned.phase, self._setup.config
        assert phase.weighting is not None  # make_plan has settled it
        objective = PhaseLoss(self._setup.implementations.objective, self._setup.noise, phase.weighting, phase.progress)
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
            optimizer=self._setup.implementations.optimizer,
            listener=listener,
            validation=validation,
            checkpoints=checkpoints,
            stopping=self._stopping,
        )

    def _drawer(self, planned: PhasePlan, split: Split, stream: Stream) -> Drawer:
        setup, objective = self._setup, self._setup.implementations.objective
        return Drawer(
            split=split,
            noise=setup.noise,
            seed=setup.config.run.seed,
            mask_id=setup.tokenizer.mask_id,
            progress=planned.phase.progress,
            at_least_one=planned.phase.weighting == "mean",
            causal=objective.options.causal,
            corrupt=objective.corrupt,
            vocab_size=setup.tokenizer.vocab_size,
            stream=stream,
        )

    def _boundary(self, planned: PhasePlan, kept: list[Boundary]) -> Boundary | None:
        """Return the boundary that a phase starts from, or None where it starts at the tokens."""
        trunk = planned.phase.frozen_prefix
        if not trunk:
            return None
        drawer = self._drawer(planned, self._setup.corpus.train, Stream.TRAINING)
        last = kept[-1] if kept and self._is_current(kept[-1]) else None
        if planned.same_boundary and last is not None and last.trunk == trunk:
            return kept.pop().passed_on(drawer)
        below = None
        if planned.made_from_below and last is not None and trunk[: len(last.trunk)] == last.trunk:
            below = last
        return self._boundary_of(planned.phase, drawer, below)

    def _is_current(self, boundary: Boundary) -> bool:
        """Return whether a boundary is made of what its trunk is now; one that an earlier process left may not be."""
        return boundary.made_of == made_of(self._residency, boundary.trunk, boundary.layout, self._settings())

    def _boundary_of(self, phase: Phase, drawer: Drawer, below: Boundary | None = None) -> Boundary:
        """Return a boundary above a phase's frozen stacks."""
        layout, store = boundary_layout(phase, self._setup), None
        what = made_of(self._residency, phase.frozen_prefix, layout, self._settings())
        if cache_of(phase, self._setup) is not None:
            assert self._stores is not None
            store = self._stores.open(phase.name, phase.frozen_prefix, layout, what)
        return Boundary(
            phase.frozen_prefix,
            self._residency,
            drawer,
            self._order,
            store,
            layout,
            self._stores,
            below,
            keep_below=self._keeps_for_good and self._keep > 1,
            made_of=what,
        )

    def _left(self, done: int) -> list[Boundary]:
        """Return boundaries of phases that are done, the oldest first, where another process left them on disk."""
        cache = self._setup.implementations.cache
        left: list[Boundary] = []
        if cache is None or not cache.durable:
            return []
        for planned in self._plan.phases[:done]:
            if not planned.phase.frozen_prefix or planned.same_boundary or cache_of(planned.phase, self._setup) is None:
                continue
            boundary = self._boundary_of(
                planned.phase, self._drawer(planned, self._setup.corpus.train, Stream.TRAINING)
            )
            for same in [each for each in left if each.made_of == boundary.made_of]:
                left.remove(same)  # of an earlier cycle: one store is open once
                same.close()
            if boundary.is_empty:
                boundary.drop()
            else:
                left.append(boundary)
        return left

    def _settings(self) -> dict[str, object]:
        """Return the settings, other than weights and draws, that change a boundary's bits."""
        setup = self._setup
        return {
            "tokenizer": setup.tokenizer.fingerprint.hex(),
            "device": device_name(setup.device),
            "torch": torch.__version__,
            **software(setup.config, self._registry, hooks=("precision", "adapter")),
        }

    def _merge(self, phase: Phase) -> None:
        """Fold those adapters into the masters that the phase begins afresh."""
        formats = self._setup.implementations.formats
        with self._directory.together():
            for stack, name in phase.merges:
                if name in self._directory.adapters(stack):  # an interrupted run may have done it
                    merge_adapter(self._directory, self._setup.spec, formats.adapters, stack, name)
        self._residency.let_go({stack for stack, _ in phase.merges})

    def _write(self, planned: PhasePlan, phases: list[PhaseResult], measured_until: int) -> None:
        """Write what a phase trained, in full precision, and its measurements; all of it or nothing."""
        phase, residency, directory = planned.phase, self._residency, self._directory
        with directory.together():
            self._write_ends(phase)
            for index in sorted(phase.trains):
                directory.write_stack(index, residency.master(index))
            for index, name in phase.adapters:
                directory.write_adapter(index, name, partial(residency.save_adapter, index, name))
            directory.write_json(PROGRESS, {"phases": unstructure(phases), "metrics": measured_until})
            for name in directory.checkpoints():
                directory.drop_checkpoint(name)
        self._save_rack(len(phases))
        # So that an uninterrupted run has them from the files too, as a resumed one.
        residency.let_go({stack for stack, _ in phase.adapters})

    def _save_rack(self, phases: int) -> None:
        """Write the whole rack as it is after so many phases, if that is asked for and wasn't done."""
        directory = self._directory
        if self._setup.config.checkpoint.save_rack and phases and not directory.has(rack_file(phases)):
            directory.write_rack(phases)

    def _write_ends(self, phase: Phase | None) -> None:
        """Write embedding and head where a phase trained them; all of them before the first phase."""
        for owner, ends in self._residency.all_ends():
            tensors = ends.state_dict()
            for file, prefix, trains, place in (
                (embedding_file(owner), "embed_", phase is None or phase.embedding, 0),
                (head_file(owner), "lm_head.", phase is None or phase.head, -1),
            ):
                part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
                if part and trains and (phase is None or owner in (None, phase.path[place])):
                    self._directory.write_tensors(file, part)

    def _evaluate(self, tell: Listener) -> list[Likelihood]:
        setup = self._setup
        split = setup.corpus.validation
        if not len(split):
            return []

        def progress(done: int, total: int) -> None:
            tell(EvaluationProgress(done, total))
            self._stopping.stop()

        return evaluate(
            self._residency,
            Evaluation.of(
                setup.config, split, setup.tokenizer.mask_id, causal=setup.implementations.objective.options.causal
            ),
            routes=self._plan.routes,
            exits=self._plan.exits,
            active=self._active_at_the_end,
            streams=self._plan.streams,
            progress=progress,
        )


def _read_progress(directory: RunDirectory) -> tuple[list[PhaseResult], int]:
    """Read the phases that are done, and how many bytes of metrics there were then."""
    progress = directory.read_json(PROGRESS)
    try:
        return structure(progress["phases"], list[PhaseResult]), structure(progress["metrics"], int)
    except (LookupError, TypeError, ValueError, BaseValidationError) as error:
        raise StackwiseError(f"{directory.path / PROGRESS}: not what a run writes: {error!r}") from error
