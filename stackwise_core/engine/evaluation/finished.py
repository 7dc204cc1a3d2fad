"""A finished run, ready to be used: its rack in memory, and how that uses its stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from attrs import evolve, frozen
from torch import Tensor

from stackwise_core.config.choices import RACK_HOOKS
from stackwise_core.config.errors import ProblemsError
from stackwise_core.config.load import load_run, load_run_at_precision, text_alone
from stackwise_core.config.source_run import finished_run
from stackwise_core.engine.draws.sequences import Progress, Split, fingerprint_now, kept_validation, tokenise
from stackwise_core.engine.evaluation.evaluate import Evaluation, Likelihood, evaluate
from stackwise_core.engine.phases.setup import RackParts, select_device, set_up_rack
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.plugin_changes import plugin_changes
from stackwise_core.engine.text.sources import find_sources, make_corpus, measured
from stackwise_core.engine.text.text_source import Source
from stackwise_core.engine.weights.ending import check_rack, read_ending
from stackwise_core.engine.weights.planned_rack import PlannedRack
from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.interfaces.corpus import TextField
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.registry import Registry
from stackwise_core.run_files.names import CONFIG, PLAN, TOKENIZER

_IN_PLACE_OF_THE_SPLIT = "--corpus TEXT (from Python: corpus) measures on another text."

Device = Literal["auto", "cpu", "cuda"]


class _Untouched(RunDirectory):
    """A run's directory that is read, and left as it is."""

    def write_prepared(self, index: int, precision: object, tensors: Mapping[str, Tensor]) -> None:
        """Keep nothing: what was quantised serves this process alone."""


@frozen
class FinishedRun:
    """A rack from a run's directory, as it was when the run ended."""

    path: Path
    """The run's directory as it was named, for messages."""
    parts: RackParts
    registry: Registry
    plugins: tuple[str, ...]
    """Plugin files to load beside the installed ones, as ``-p`` names them."""
    forward: Forward
    routes: tuple[BandRoute, ...]
    exits: frozenset[int]
    active: frozenset[int]
    """Stacks at the active precision: those that trained last. The others are at the trunk's."""
    streams: bool
    """Whether only one stack is in memory at a time."""
    trained_bands: tuple[tuple[float, float], ...]
    """The mask fractions that each phase trained on."""
    causal: bool
    """Whether it predicts each token from those before it, and nothing is masked."""
    corpus: str
    """Fingerprint of the text that it was trained and measured on."""
    notes: tuple[str, ...] = ()
    """Differences from when it was run that may change its numbers."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: Device | None = None,
        precision: str | None = None,
        plugins: Sequence[str] = (),
    ) -> FinishedRun:
        """Load a run's rack. Every file is compared with its checksum before it is used.

        Args:
            device: in place of the run's own ``run.device``.
            precision: the name of one that all stacks are frozen at, in place of the run's own.
            plugins: as for ``-p``.

        Raises:
            UsageError: it isn't a run, its plan can't be read, it never finished, or there is no such precision.
            UnavailableError: a plugin, a package or the device isn't there.
            StackwiseError: a file is missing or damaged.
        """
        planned = finished_run(path)
        directory = _Untouched(path.absolute())  # stacks may be read from it long after
        for name in (PLAN, CONFIG, TOKENIZER):
            if name != TOKENIZER or directory.has(TOKENIZER):
                directory.manifest.checked(name)
        if precision is None:
            config, registry = load_run(path, plugins=plugins, hooks=RACK_HOOKS)
        else:
            config, registry = load_run_at_precision(
                path, precision, asked_by="precision", plugins=plugins, hooks=RACK_HOOKS
            )
            config = evolve(config, precision=evolve(config.precision, stacks={}))
        if device is not None:
            if device not in get_args(Device):
                raise UsageError(f'device "{device}": expected {", ".join(get_args(Device))}.')
            select_device(device, "device")
            config = evolve(config, run=evolve(config.run, device=device))
        # The working directory may be another one when a text is asked for.
        tokens = str(Path(config.data.tokens_directory).absolute())
        config = evolve(config, data=evolve(config.data, tokens_directory=tokens))
        parts = set_up_rack(config, registry, PlannedRack.of(directory, planned))
        if parts.tokenizer.fingerprint.hex() != planned.tokenizer:
            raise UsageError(
                f"{path}: its plan isn't that of its configuration; was the tokenizer's file or config.toml changed?"
            )
        check_rack(directory, parts.spec, parts.formats.adapters)
        forward = parts.forward(directory)
        forward.placement.load_written_ends()
        active = frozenset(read_ending(directory).active if precision is None else ())
        changed = plugin_changes(directory, config, registry)
        bands = tuple(phase.band for phase in planned.plan.phases if phase.band is not None)
        return cls(
            path,
            parts,
            registry,
            tuple(plugins),
            forward,
            routes=planned.plan.routes,
            exits=frozenset(planned.exits),
            active=active,
            streams=planned.plan.streams,
            trained_bands=bands,
            causal=not bands,  # a phase that masks nothing has no band
            corpus=planned.plan.corpus,
            notes=changed,
        )

    @property
    def bytes(self) -> float:
        """Bytes that all stacks occupy in memory together, with ends of their own, if any, but without adapters."""
        spec, formats = self.parts.spec, self.parts.formats
        widths = (
            4 if stack in self.active else formats.precision(stack, "trunk").bytes_per_weight
            for stack in range(spec.stacks)
        )
        own = 4 * spec.stacks * (spec.embedding_parameters + spec.head_parameters) if spec.ends == "per_stack" else 0
        return own + sum(spec.stack_parameters(stack) * width for stack, width in enumerate(widths))

    def text(
        self, corpus: str | None, progress: Progress | None = None, text_field: str | None = None
    ) -> tuple[Split, tuple[str, ...]]:
        """Return the run's validation split, or another text, and what a user should know of it.

        Args:
            corpus: a path, as ``data.corpus``; of a data set with splits its validation split, or the only one.
            text_field: of that text, in place of the run's ``data.text_field``.

        Raises:
            UsageError: the text can't be read, or isn't the run's any more.
        """
        data = self.parts.config.data
        if corpus is not None:
            choice = text_alone(corpus, self.registry, asked_by="--corpus")
            source = measured(make_corpus(choice, TextField(text_field or data.text_field), self.registry))
            prepared = tokenise([source], data, self.parts.tokenizer, progress, causal=self.causal)
            return prepared.validation, prepared.notes
        split, notes = self._own_validation(progress)
        if not len(split):
            raise UsageError(
                f"{self.path} has no validation split (data.validation_fraction = 0). {_IN_PLACE_OF_THE_SPLIT}"
            )
        return split, notes

    def _own_validation(self, progress: Progress | None) -> tuple[Split, tuple[str, ...]]:
        """Return the validation split as it was when the run was made.

        It comes from the text, if that is as it was then, and otherwise from the tokens that were made of it.
        """
        data, tokenizer = self.parts.config.data, self.parts.tokenizer
        kind: type[StackwiseError] = UsageError
        try:
            sources = self._sources()
            if fingerprint_now(sources, data, tokenizer) == self.corpus:
                return tokenise(sources, data, tokenizer, progress, causal=self.causal).validation, ()
            changed = f"the text of {self.path} has changed since the run"
            refused = f"{changed}, and so its validation split is another one"
        except (UsageError, UnavailableError) as error:
            kind = UnavailableError if isinstance(error, UnavailableError) else UsageError
            refused = _in_one_line(error).removesuffix(".")
            changed = f"the text of {self.path} can't be read any more ({refused})"
        kept = kept_validation(data, tokenizer, self.corpus)
        if kept is None:
            raise kind(
                f"{refused}. The tokens that were made of it then aren't in {data.tokens_directory} any more. "
                f"{_IN_PLACE_OF_THE_SPLIT}"
            )
        kept = kept.causal() if self.causal else kept
        return kept, (f"{changed}: measured on the validation split as it was then, whose tokens were kept.",)

    def _sources(self) -> list[Source]:
        """Find the texts of the run, whose plugins its rack doesn't need.

        Raises:
            UsageError: a text can't be read.
            UnavailableError: a plugin, or a package that reads a text, isn't there.
        """
        config, registry = load_run(self.path, plugins=self.plugins, hooks=("corpus",))
        return find_sources(config.data, registry)

    def evaluation(self, split: Split, notes: Sequence[str] = (), **changes: Any) -> Evaluation:
        """Return the run's own settings for a split, with these of them changed.

        Args:
            notes: what a user should know of the split.
        """
        changes["notes"] = (*self.notes, *notes)
        return Evaluation.of(self.parts.config, split, self.parts.tokenizer.mask_id, causal=self.causal, **changes)

    def likelihoods(
        self, evaluation: Evaluation, progress: Callable[[int, int], None] | None = None
    ) -> list[Likelihood]:
        """Compute the bound at every depth; see ``evaluate``."""
        return evaluate(
            self.forward,
            evaluation,
            routes=self.routes,
            exits=self.exits,
            active=self.active,
            streams=self.streams,
            progress=progress,
        )


def _in_one_line(error: StackwiseError) -> str:
    problems = error.problems if isinstance(error, ProblemsError) else ()
    return "; ".join(f"{problem.key}: {problem.message}" for problem in problems) or str(error)
