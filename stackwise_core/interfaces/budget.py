"""The record of ``[training]`` that a trainer mode plans with: the budget, and settings that phases copy."""

import math
from typing import Any, Literal

from attrs import frozen

from stackwise_core.errors import UsageError


@frozen(kw_only=True)
class Budget:
    """The keys of ``[training]`` that reach a phase through its mode alone."""

    epochs_per_stack: int = 1
    """Number of passes over the training split, a stack."""
    steps_per_stack: int | None = None
    """Optimizer steps a stack, in place of epochs; None: epochs count."""
    masks: Literal["fixed", "resampled"] = "fixed"
    """Masks of a sample: ``masks_per_sample`` draws in turn, or a new one each epoch."""
    masks_per_sample: int = 4
    """The number of fixed draws of a sample."""
    head: Literal["frozen", "trains"] = "frozen"
    """Training of an untied LM head after the first phase."""
    over: Literal["time", "depth", "both"] = "time"
    """Meaning of the mask schedule's progress: the time of a draw, the stack's place, or a slice each."""
    over_is_set_by: Literal["over", "time"] = "over"
    """The key of ``[training]`` that decides ``over``, for messages."""
    noise_index: Literal["build", "position"] = "build"
    """Place where the schedule begins over depth: the stack that is built first, or the one at the tokens."""

    def share(self, stacks: float, after: float = 0.0, *, anew: bool = False) -> dict[str, Any]:
        """Return the fields ``epochs``, ``steps`` and ``begins`` of a phase.

        Args:
            stacks: the phase's budget, in units of one stack's average budget.
            after: the budget of the phases before it, in the same units.
            anew: whether the phase begins at the first sample and draw again, instead of where the earlier ones ended.
        """
        if self.steps_per_stack is None:
            return {
                "epochs": self.epochs_per_stack * stacks,
                "begins": 0 if anew else self.epochs_per_stack * after,
            }
        # Rounded at both ends, so that phases which follow one another leave no step out and do none twice.
        begin, end = (math.floor(round(self.steps_per_stack * at, 6) + 0.5) for at in (after, after + stacks))
        return {"steps": max(1, end - begin), "begins": 0 if anew else begin}

    @property
    def mask_fields(self) -> dict[str, Any]:
        """Fields ``masks`` and ``masks_per_sample`` of a phase, as configured."""
        return {"masks": self.masks, "masks_per_sample": self.masks_per_sample}

    def stretch(self, stack: int, stacks: int, built: int) -> tuple[float, float]:
        """Return the stretch of the mask schedule's progress that a stack's phase draws from.

        Over time it is the whole of it. Over depth it is one point, the stack's place: 0 for the first stack, 1 for
        the last. Over both it is the stack's own slice. Places count in the order of building, or by position in the
        rack: ``noise_index`` decides.

        Args:
            stacks: the number of stacks of the rack.
            built: how many stacks were built before this one.
        """
        place = stack if self.noise_index == "position" else built
        if self.over == "time":
            return (0.0, 1.0)
        if self.over == "depth":
            point = place / (stacks - 1) if stacks > 1 else 0.0
            return (point, point)
        return (place / stacks, (place + 1) / stacks)

    def only_over_time(self, what: str) -> None:
        """Refuse a mask schedule over depth, for phases without a depth of their own.

        Args:
            what: the mode, or the option of it, that has no place for one.

        Raises:
            UsageError: the schedule runs over depth, or over both.
        """
        if self.over != "time":
            instead = {"over": 'over = "time"', "time": 'time = "none"'}[self.over_is_set_by]
            raise UsageError(
                f'training.{self.over_is_set_by} = "{self.over}" gives each stack a mask fraction or a slice of its '
                f"own, and {what} has no place for that. Use {instead}."
            )
