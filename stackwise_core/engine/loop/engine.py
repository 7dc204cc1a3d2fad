"""The engine: it executes a plan phase after phase. Each finished stack is written to disk and joins the trunk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from attrs import evolve
from cattrs import unstructure

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.boundary.stores import Stores
from stackwise_core.engine.draws.draws import Drawer, Stream
from stackwise_core.engine.draws.sequences import Split
from stackwise_core.engine.evaluation.evaluate import Evaluation, Likelihood, evaluate
from stackwise_core.engine.evaluation.validation import Validation
from stackwise_core.engine.events.events import (
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
from stackwise_core.engine.events.recording import Recorder
from stackwise_core.engine.events.stopping import Stopping
from stackwise_core.engine.loop.checkpoint import Checkpoints
from stackwise_core.engine.loop.kept_moments import KeptMoments
from stackwise_core.engine.loop.run_boundaries import RunBoundaries
from stackwise_core.engine.loop.run_record import RunRecord
from stackwise_core.engine.loop.running_phase import RunningPhase
from stackwise_core.engine.loop.step_draws import StepDraws
from stackwise_core.engine.loop.streamed_step import StreamedStep
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.offload.disk import Disk
from stackwise_core.engine.offload.host_memory import HostMemory
from stackwise_core.engine.offload.offload import Offload
from stackwise_core.engine.phases.phase_steps import sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.device_room import cache_room, device_room
from stackwise_core.engine.plan.passing_on import with_passed_on
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan, as_begun
from stackwise_core.engine.plan.plan_limits import (
    check_disk,
    check_memory,
    check_offload,
    check_possible,
    check_stores_directory,
    stores_directory,
)
from stackwise_core.engine.process.allocator import trim_heap
from stackwise_core.engine.process.memory import device_memory
from stackwise_core.engine.process.threads import computing_threads
from stackwise_core.engine.rack.compiled_blocks import missing_for_compiling
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError, UnavailableError
from stackwise_core.registry import Registry
from stackwise_core.run_files.kept import Kept
from stackwise_core.run_files.metrics import Metrics
from stackwise_core.run_files.steps import has_work
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

    Attributes:
        files: the run's directory.
        forward: the rack.
        order: in which the training split is visited.
        boundaries: those that are open.
        record: what it leaves in its directory.

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
        setup = evolve(setup, recomputed=plan.recomputed)
        self.setup, self.plan, self.listener, self.stopping = setup, plan, listener, stopping or Stopping()
        run = setup.config.run
        check_memory(plan, setup.config.training.memory_budget)
        parent, stores = (parent or Path(run.directory)).absolute(), stores_directory(setup.config)
        if not beyond_machine:
            check_possible(plan, device_memory(setup.device), None if directory else parent)
        check_stores_directory(stores)
        if directory is None:  # what a resumed run has on the disk is a part of what it needs
            check_disk(plan, stores or parent)
            check_offload(plan, parent)
        self._resumes, self._lock = directory is not None, ExitStack()
        if directory is None:
            self.files = RunDirectory.create(parent, run.name)
            # Others would take it for one that was left without a step.
            self._lock.enter_context(self.files.locked())
        else:
            self.files = RunDirectory(directory.path.absolute())
        self.order = sample_order(setup)
        try:
            self.stores = self._open_stores(stores)
            self.forward = setup.forward(self.files)
        except BaseException:  # for want of memory, or by Ctrl-C
            if not self._resumes:
                self._leave_nothing_without_work()
            raise
        room = device_room(plan.phases, setup)
        self.boundaries = RunBoundaries(
            setup, registry, self.forward, self.order, self.stores, self.training_drawer, room
        )
        self.record = RunRecord(setup, plan, registry, self.files, self.placement)

    def _open_stores(self, directory: Path | None) -> Stores | None:
        """Return the place of the boundaries' stores; None where they aren't kept.

        Args:
            directory: for them; None: in the run's own.
        """
        cache = self.setup.implementations.cache
        if cache is None:
            return None
        cache.device_room = cache_room(self.plan.phases, self.setup)
        before = Kept.of(self.files.path).written_in
        if directory is not None and before is not None and not before.exists():  # the run was moved
            take_over(directory, str(before), str(self.files.path))
        return Stores(cache, directory or self.files.cache, self.files.path)

    @property
    def directory(self) -> Path:
        """Directory of the run."""
        return self.files.path

    @property
    def placement(self) -> Placement:
        """Where the rack's stacks are."""
        return self.forward.placement

    def run(self) -> RunResult:
        """Train every phase that isn't done yet, then measure every depth.

        Raises:
            StackwiseError: another process is working on the run, a file is damaged, or losses aren't finite.
            KeyboardInterrupt: somebody asked the run to stop; what is done is on disk.
        """
        with self._lock, computing_threads(self.setup.config.run.threads):
            if self._resumes:
                self._lock.enter_context(self.files.locked())
            try:
                return self._run()
            except BaseException:
                self._leave_nothing_without_work()
                raise

    def _leave_nothing_without_work(self) -> None:
        """Delete a run that has taken no step, nor made boundaries for one."""
        with suppress(StackwiseError):  # a manifest that is damaged is somebody's
            if not has_work(self.files.path):
                shutil.rmtree(self.files.path, ignore_errors=True)

    def _run(self) -> RunResult:
        config, record, trackers = self.setup.config, self.record, self.setup.implementations.trackers
        done, measured_until = record.begin()
        self._compile()
        with (
            Metrics(self.files.metrics) as metrics,
            Recorder(self.plan, config, self.files.path, metrics, trackers) as recorder,
            own_state(self.setup.device),
        ):

            def tell(event: Event) -> None:
                recorder.record(event)
                self.listener(event)

            tell(RunStarted(self.plan, self.files.path, config.run.name, len(done)))
            record.compare_environment(tell)
            record.bring_ends()  # after the plan is shown, since large ones take their time
            if len(done) == len(self.plan.phases):  # what is left is measured, as a whole
                metrics.cut_back(measured_until)
            with self.stopping.deferred():
                phases = self._train(done, measured_until, metrics, tell)
            self.stopping.stop()
            active, keeps = self._active_at_the_end, config.checkpoint.save_stacks
            record.finish(phases, active, evaluated=False, keeps=keeps)
            likelihoods = tuple(self._evaluate(tell))
            result = RunResult(self.files.path, tuple(phases), self.plan.routes, likelihoods, keeps)
            tell(RunDone(result))
            metrics.settle()
            record.finish(phases, active, evaluated=True, keeps=keeps)
        return result

    def _compile(self) -> None:
        """Have blocks compiled as was decided when the run began.

        Raises:
            UnavailableError: they were compiled then, and can't be here.
        """
        if self._resumes:
            self.plan = as_begun(self.plan, self.files)
        self.placement.compiles = any(planned.compiles for planned in self.plan.phases)
        if self.placement.compiles and (missing := missing_for_compiling(self.setup.device)):
            raise UnavailableError(
                f"{self.files.path} began with compiled blocks, and {missing}. Install it, or begin a new run with "
                "--fresh --set run.compile=false."
            )
        self.forward.compiled_batch = self.setup.config.training.batch_size

    def _train(
        self, done: list[PhaseResult], measured_until: int, metrics: Metrics, tell: Listener
    ) -> list[PhaseResult]:
        """Train every phase that isn't done yet; return the measurements of all of them.

        Args:
            measured_until: how many bytes of metrics there were when the last of them was done.
        """
        phases, boundaries = list(done), self.boundaries
        with ExitStack() as interrupted:
            interrupted.callback(boundaries.close)
            boundaries.find(self._planned(done)[: len(done)])
            while len(phases) < len(self.plan.phases):
                planned = self._planned(phases)[len(phases)]
                self.stopping.stop()
                tell(PhaseStarted(planned, sum(each.steps for each in phases)))
                boundaries.make_room(planned)
                self.record.merge(planned.phase)
                checkpoints = Checkpoints(
                    self.files, metrics, self.setup.config.checkpoint, len(phases), measured_until
                )
                offload = self.offload(planned, checkpoints)
                if offload is not None:
                    interrupted.callback(offload.close)
                self.placement.place(planned.phase, streams=planned.streams, offload=offload)
                boundary = boundaries.open(planned)
                phase = self.phase(planned, boundary, tell, checkpoints, offload)
                measured = phase.run()
                phases.append(measured)
                metrics.write("phase", **unstructure(measured))
                measured_until = metrics.settle()
                goes_on = self.setup.config.training.course == "run" and len(phases) < len(self.plan.phases)
                self.record.write_phase(planned, phases, measured_until, phase.step.moments if goes_on else None)
                del phase  # and with it the optimizer's state, before the next one takes its room
                if offload is not None:
                    offload.close()
                boundaries.phase_done()
                trim_heap()
                tell(PhaseDone(planned, measured))
            boundaries.run_done()
            interrupted.pop_all()
        return phases

    def _planned(self, done: Sequence[PhaseResult]) -> list[PhasePlan]:
        """Return the planned phases, with the budget that those which are done have passed on."""
        course = self.setup.config.training.course
        return with_passed_on(self.plan.phases, done, self.order, course=course)

    def phase(
        self,
        planned: PhasePlan,
        boundary: Boundary | None,
        listener: Listener,
        checkpoints: Checkpoints | None = None,
        offload: Offload | None = None,
    ) -> RunningPhase:
        """Return a phase, whose stacks are placed, ready to run.

        Args:
            boundary: that it starts from; None where it starts at the tokens.
            offload: where the training state of stacks waits; None: they are in memory.
        """
        training, plugin = self.setup.config.training, self.setup.implementations.optimizer
        parts = self.forward, planned.phase, self.objective(planned), boundary, training, plugin
        return RunningPhase(
            planned=planned,
            training=training,
            draws=self.draws(planned, boundary, listener),
            step=TrainingStep.of(*parts) if offload is None else StreamedStep(*parts, offload),
            listener=listener,
            validation=self.validation(planned),
            checkpoints=checkpoints,
            stopping=self.stopping,
            moments=KeptMoments(self.files, self.setup.spec, planned.phase) if training.course == "run" else None,
        )

    def offload(self, planned: PhasePlan, checkpoints: Checkpoints | None = None) -> Offload | None:
        """Return the place where a phase's training state waits; None where all of it stays in memory.

        Args:
            checkpoints: of the phase. What is decided by itself stays as it was in them, however much memory is free.
        """
        place, on_cpu = planned.offload, self.setup.device.type == "cpu"
        if checkpoints is not None and self.setup.config.training.residency == "auto":
            was_streamed = checkpoints.was_streamed
            if was_streamed is not None:
                place = (place or ("disk" if on_cpu else "memory")) if was_streamed else None
        if place is None:
            return None
        device = self.setup.device
        return HostMemory(device) if place == "memory" else Disk(self.files.offload, pinned=device.type == "cuda")

    def draws(self, planned: PhasePlan, boundary: Boundary | None, listener: Listener) -> StepDraws:
        """Return the draws of a phase's steps."""
        return StepDraws(
            planned=planned,
            drawer=self.training_drawer(planned),
            order=self.order,
            boundary=boundary,
            objective=self.objective(planned),
            device=self.setup.device,
            workers=self.setup.config.data.workers,
            listener=listener,
        )

    def objective(self, planned: PhasePlan) -> PhaseLoss:
        """Return the loss of a phase."""
        phase = planned.phase
        assert phase.weighting is not None  # make_plan has resolved it
        return PhaseLoss(self.setup.implementations.objective, self.setup.noise, phase.weighting, phase.progress)

    def validation(self, planned: PhasePlan) -> Validation | None:
        """Return what measures a phase on held-out text while it trains, if that is asked for."""
        config = self.setup.config
        if config.evaluation.every is None:
            return None
        return Validation(
            drawer=self.drawer(planned, self.setup.corpus.validation, Stream.VALIDATION),
            objective=self.objective(planned),
            every=config.evaluation.every,
            sequences=config.evaluation.sequences,
            batch_size=config.training.batch_size,
        )

    def training_drawer(self, planned: PhasePlan) -> Drawer:
        """Return the drawer of what a phase trains on."""
        return self.drawer(planned, self.setup.corpus.train, Stream.TRAINING)

    def drawer(self, planned: PhasePlan, split: Split, stream: Stream) -> Drawer:
        """Return the drawer of a split, under the masks of a phase."""
        setup, objective = self.setup, self.setup.implementations.objective
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

    @property
    def _active_at_the_end(self) -> frozenset[int]:
        """Stacks that trained last; those that had been quantised before, and came back to train, are so again."""
        *earlier, last = (planned.phase for planned in self.plan.phases)
        before = {stack for phase in earlier for stack in phase.path}
        formats = self.setup.implementations.formats
        return frozenset(
            stack for stack in last.trains if stack not in before or not formats.precision(stack, "trunk").quantises
        )

    def _evaluate(self, tell: Listener) -> list[Likelihood]:
        setup = self.setup
        split = setup.corpus.validation
        if not len(split):
            return []

        def progress(done: int, total: int) -> None:
            tell(EvaluationProgress(done, total))
            self.stopping.stop()

        return evaluate(
            self.forward,
            Evaluation.of(
                setup.config, split, setup.tokenizer.mask_id, causal=setup.implementations.objective.options.causal
            ),
            routes=self.plan.routes,
            exits=self.plan.exits,
            active=self._active_at_the_end,
            streams=self.plan.streams,
            progress=progress,
        )
