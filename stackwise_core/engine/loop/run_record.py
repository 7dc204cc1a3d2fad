"""Record of a run in its directory: configuration, plan, environment, weights by phase, measurements."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial

from torch import Tensor

from stackwise_core.config.contents import contents
from stackwise_core.engine.events.events import EnvironmentChanged, Listener, PhaseResult
from stackwise_core.engine.loop.kept_moments import KeptMoments
from stackwise_core.engine.loop.optimizer_state import Number
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan, check_same_plan
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.environment import environment
from stackwise_core.engine.runs.software import changed_plugins, differences, plugins_of
from stackwise_core.engine.text.sources import named_texts
from stackwise_core.engine.weights.kept_files import (
    configuration_text,
    keep_plugins,
    keep_tokenizer,
    named_files,
    write_config,
)
from stackwise_core.engine.weights.merge import merge_adapter
from stackwise_core.interfaces.phase import Phase
from stackwise_core.registry import Registry
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
from stackwise_core.run_files.progress_file import FinishedFile, ProgressFile
from stackwise_core.run_files.records import as_json, read_record
from stackwise_core.run_files.steps import has_step


class RunRecord:
    """Writer of all that a run leaves but metrics, checkpoints and boundaries."""

    def __init__(
        self, setup: Setup, plan: Plan, registry: Registry, directory: RunDirectory, placement: Placement
    ) -> None:
        self._setup, self._plan, self._registry = setup, plan, registry
        self.directory, self._placement = directory, placement

    def begin(self) -> tuple[list[PhaseResult], int]:
        """Initialise the run directory but for weights, or load the completed phases of an interrupted run.

        Returns:
            The phases that are done, and how many bytes of metrics there were then.
        """
        config, directory = self._setup.config, self.directory
        if has_step(directory.path):
            directory.manifest.recover()
            shutil.rmtree(directory.offload, ignore_errors=True)  # a killed process left it
            corpora = [text.corpus.name for text in named_texts(config.data, self._registry)]
            check_same_plan(self._plan, directory, corpora)
            progress = read_record(ProgressFile, directory.read_json(PROGRESS), directory.path / PROGRESS)
            self._update_config()
            self._save_rack(len(progress.phases))
            return list(progress.phases), progress.metrics
        # What a run without a step left; by its directory, its own copies are what is copied anew.
        directory.clear(keep=named_files(config, self._registry))
        with directory.together():
            hashes = contents(config, self._registry)
            write_config(directory, config, own_tokenizer=self._keep_files(), contents=hashes)
            directory.write_json(PLAN, self._plan.to_json())
            directory.write_json(ENVIRONMENT, as_json(environment(config, self._registry, self._setup.device)))
            directory.write_json(PROGRESS, as_json(ProgressFile(phases=(), metrics=0)))
        return [], 0

    def bring_ends(self) -> None:
        """Load embedding and head as they were written; before the first step, write the rack as it begins.

        Raises:
            StackwiseError: a file, here or of the source, isn't what was written, or a weight isn't finite.
        """
        if has_step(self.directory.path):
            self._placement.load_written_ends()
            return
        with self.directory.together():
            if self._setup.source is not None:
                self._placement.load_ends(self._setup.source.copy_into(self.directory, self._setup.spec))
            self._write_ends(None)

    def _keep_files(self) -> bool:
        """Copy what using the finished run takes into its directory; return whether the tokenizer is among it."""
        keep_plugins(self.directory, self._registry)
        return keep_tokenizer(self.directory, self._setup.config, self._setup.tokenizer)

    def _update_config(self) -> None:
        """Write the configuration anew where a change was accepted, or the run was moved."""
        config, directory = self._setup.config, self.directory
        about = directory.manifest.about(CONFIG)
        same_place = about.get("written_in") == os.path.realpath(directory.path)
        with directory.together():
            own_tokenizer = self._keep_files()
            text = configuration_text(directory, config, own_tokenizer=own_tokenizer)
            if not same_place or text != directory.read_text(CONFIG):
                known = about.get("contents")
                hashes = known if isinstance(known, dict) else contents(config, self._registry)
                write_config(directory, config, own_tokenizer=own_tokenizer, contents=hashes)

    def compare_environment(self, tell: Listener) -> None:
        """Report what changed since the run began; a changed plugin counts as the run's own from now on."""
        known = self.directory.read_json(ENVIRONMENT)
        now = as_json(environment(self._setup.config, self._registry, self._setup.device))
        if changed := differences(known, now):
            tell(EnvironmentChanged(tuple(changed)))
        known = known if isinstance(known, dict) else {}
        if plugins := changed_plugins(known.get("plugins"), plugins_of(self._setup.config, self._registry)):
            earlier = known.get("changed")
            changes = [*(earlier if isinstance(earlier, list) else []), *plugins]
            self.directory.write_json(ENVIRONMENT, {**known, "plugins": now["plugins"], "changed": changes})

    def merge(self, phase: Phase) -> None:
        """Fold those adapters into the masters that the phase begins afresh."""
        formats = self._setup.implementations.formats
        with self.directory.together():
            for stack, name in phase.merges:
                if name in self.directory.adapters(stack):  # an interrupted run may have done it
                    merge_adapter(self.directory, self._setup.spec, formats.adapters, stack, name)
        self._placement.let_go({stack for stack, _ in phase.merges})

    def write_phase(
        self,
        planned: PhasePlan,
        phases: list[PhaseResult],
        measured_until: int,
        moments: Iterable[tuple[str, Tensor | Number]] | None = None,
    ) -> None:
        """Write what a phase trained, in full precision, and its measurements; all of it or nothing.

        Args:
            moments: to keep for later phases; None: none are kept, and none are needed any more.
        """
        phase, placement, directory = planned.phase, self._placement, self.directory
        with directory.together():
            self._write_ends(phase)
            for index in sorted(phase.trains):
                with placement.visiting(index):
                    directory.write_stack(index, placement.master(index))
            for index, name in phase.adapters:
                with placement.visiting(index):
                    directory.write_adapter(index, name, partial(placement.save_adapter, index, name))
            directory.write_json(PROGRESS, as_json(ProgressFile(phases=tuple(phases), metrics=measured_until)))
            for name in directory.checkpoints():
                directory.drop_checkpoint(name)
            kept = KeptMoments(directory, self._setup.spec, phase)
            if moments is None:
                kept.drop()
            else:
                kept.write(moments)
        placement.were_written(phase.trains)
        self._save_rack(len(phases))
        # So that an uninterrupted run has them from the files too, as a resumed one.
        placement.let_go({stack for stack, _ in phase.adapters})

    def _save_rack(self, phases: int) -> None:
        """Write the whole rack as it is after so many phases, if that is asked for and wasn't done."""
        directory = self.directory
        if self._setup.config.checkpoint.save_rack and phases and not directory.has(rack_file(phases)):
            directory.write_rack(phases)

    def _write_ends(self, phase: Phase | None) -> None:
        """Write embedding and head where a phase trained them; all of them before the first phase."""
        owners = self._placement.owners if phase is None or None in self._placement.owners else phase.path
        for owner in owners:
            tensors = self._placement.ends(owner or 0).state_dict()
            for file, prefix, trains, place in (
                (embedding_file(owner), "embed_", phase is None or phase.embedding, 0),
                (head_file(owner), "lm_head.", phase is None or phase.head, -1),
            ):
                part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
                if part and trains and (phase is None or owner in (None, phase.path[place])):
                    self.directory.write_tensors(file, part)
            if phase is None and owner is not None:  # one pair in memory at a time, however many there are
                self._placement.let_go_of_ends(owner)

    def finish(self, phases: list[PhaseResult], active: frozenset[int], *, evaluated: bool, keeps: bool) -> None:
        """Write that training is done.

        Args:
            active: stacks that are at the active precision in the end.
            evaluated: whether every depth was measured, too.
            keeps: whether weights stay.
        """
        finished = FinishedFile(
            phases=tuple(phases),
            active=tuple(sorted(active)),
            evaluated=evaluated,
            weights=keeps or not evaluated,
        )
        with self.directory.together():
            if evaluated and not keeps:
                self.directory.drop_weights()
            self.directory.write_json(FINISHED, as_json(finished))
