"""progress.json and finished.json: the measurements of phases that are done."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from stackwise_core.run_files.records import read_record, refuse
from stackwise_core.words import shown


@frozen
class PhaseResult:
    """Measurements of a phase."""

    name: str
    """Name of the phase."""
    steps: int
    """Optimizer steps that were taken."""
    seconds: float
    """Seconds that it took, boundaries and validations included."""
    first_loss: float
    """Mean over the first tenth of the steps."""
    last_loss: float
    """Mean over the last tenth of the steps."""
    tokens_per_second: float
    """Speed over the phase, boundaries and validations included."""
    peak_bytes: int
    """Most memory held, in bytes."""
    stopped_early: bool
    """Whether it ended at a plateau, before its budget did."""
    boundaries_computed: int
    """Number of boundaries that passed the trunk."""
    boundaries_read: int
    """Number of boundaries that training steps read from the store."""
    boundaries_evicted: int
    """Number of boundaries that the store let go for want of room."""
    boundaries_damaged: int
    """Number of boundaries that were damaged in the store, and made again."""
    boundaries_wanted: int = 0
    """Activations that were asked for, a window at a time."""
    boundaries_found: int = 0
    """Number of these that were in the store already."""
    boundaries_repeated: int = 0
    """Number of these equal to one of another sequence, which so serves both."""
    bad_steps: int = 0
    """Number of steps left out, since a loss or gradient wasn't a finite number."""
    loss_spikes: int = 0
    """Steps whose loss was far above those before them."""
    passed_on: int = 0
    """Steps of its budget that it left to the next phase."""


@frozen(kw_only=True)
class ProgressFile:
    """The content of progress.json."""

    phases: tuple[PhaseResult, ...]
    """The phases that are done, in order."""
    metrics: int
    """Bytes of metrics.jsonl when the last of them was done."""


@frozen(kw_only=True)
class FinishedFile:
    """The content of finished.json."""

    phases: tuple[PhaseResult, ...]
    """All phases, in order."""
    active: tuple[int, ...]
    """Stacks at the active precision: those that trained last."""
    evaluated: bool = True
    """Whether the likelihoods were measured, too; the last step of a run."""
    weights: bool = True
    """Whether the weights are there; not with ``checkpoint.save_stacks = false``."""

    @classmethod
    def from_json(cls, content: object, file: Path) -> FinishedFile:
        """Read the file's content from JSON values.

        Args:
            file: its path, for messages.

        Raises:
            StackwiseError: it isn't what a run writes, with the first key that is wrong.
        """
        finished = read_record(cls, content, file)
        if any(stack < 0 for stack in finished.active):
            refuse(file, ("active",), "whole numbers of 0 or more", shown(finished.active))
        return finished
