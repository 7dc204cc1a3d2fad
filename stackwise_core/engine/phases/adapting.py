"""Adapters of planned phases: which of them train when, as ``[adapter]`` says.

Two adapters can be on a stack: ``stack``, its own, and ``trunk``, which trains when the stack belongs to the trunk
(progressive QLoRA). Modes only say of which stacks adapters train; the rules are here, the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from stackwise_core.config.model import AdapterConfig
from stackwise_core.engine.rack.formats import Formats
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec

STACK, TRUNK = "stack", "trunk"


@frozen
class _Resolving:
    """A phase being resolved, and the stacks whose own adapter trains in it."""

    phase: Phase
    own: frozenset[int] = frozenset()


def resolve_adapters(phases: Sequence[Phase], config: AdapterConfig, spec: RackSpec, formats: Formats) -> list[Phase]:
    """Settle the phases that are executed. What can't train in full adapts, and every adapter has its time and name.

    Raises:
        UsageError: a phase trains adapters that there aren't, or an adapter is never trained.
    """
    if config.stack is not None and config.attach == "birth" and formats.adapters[STACK].rewrites_base:
        raise UsageError(
            f'adapter.attach = "birth": {config.stack.use} begins from a stack\'s finished weights. Use "freeze".'
        )
    if config.growth == "merge" and config.trunk is not None and (reason := formats.adapters[TRUNK].unmergeable):
        raise UsageError(
            f'adapter.growth = "merge": adapter.trunk = "{config.trunk.use}" can\'t be merged: {reason}. Use '
            '"continue", or another adapter.'
        )
    if config.stack is not None and config.trunk is not None:
        ours, others = formats.adapters[STACK], formats.adapters[TRUNK]
        reason = ours.clashes_with(others) or others.clashes_with(ours)
        if reason:
            raise UsageError(
                f'adapter.stack = "{config.stack.use}" and adapter.trunk = "{config.trunk.use}" can\'t stand on one '
                f"stack: {reason}"
            )
    resolving = list(_over_frozen_weights(phases, config, spec, formats))
    if config.active == "adapters" and not any(each.own for each in resolving):
        raise UsageError(
            'adapter.active = "adapters": every stack that joins begins at random, and has no weights to adapt. Set '
            'trainer_mode.start = "copy", or have rack.init_from bring all stacks.'
        )
    if config.stack is not None and config.attach == "freeze":
        passing = next((each.phase.name for each in resolving if each.phase.ends == "passing_on"), None)
        if passing is not None:
            raise UsageError(
                f'adapter.attach = "freeze" gives each stack\'s adapter a part of its budget, and phase "{passing}" '
                'passes on what it leaves at a plateau. Use trainer_mode.joins = "share", or another adapter.attach.'
            )
        resolving = [
            each for place in range(len(resolving)) for each in _with_time_of_its_own(resolving, place, config)
        ]
    resolved = list(_named(resolving, config))
    trained: set[tuple[int, str]] = set()
    for phase in resolved:
        _check_formats(phase, config, formats)
        trained -= set(phase.merges)
        for stack, name in trained & set(phase.adapters):
            if formats.adapters[name].rewrites_base:
                raise UsageError(
                    f'phase "{phase.name}" goes on training the {name} adapter of stack {stack}, which begins with a '
                    'part of the weights and is kept as a larger one without it. Use another adapter, such as "lora"'
                    + (', or adapter.growth = "merge".' if name == TRUNK else ".")
                )
        trained |= set(phase.adapters)
    named = {name for phase in resolved for _, name in phase.adapters}
    if config.trunk is not None and TRUNK not in named:
        raise UsageError(
            "adapter.trunk: no phase trains the trunk's adapters. Trainer mode progressive does, with "
            'trainer_mode.trunk = "adapters"; or leave adapter.trunk out.'
        )
    return resolved


def _over_frozen_weights(
    phases: Sequence[Phase], config: AdapterConfig, spec: RackSpec, formats: Formats
) -> Iterator[_Resolving]:
    """Move those stacks from ``trains`` to ``adapts`` of which only adapters can or should train."""
    trained, seen, with_weights = set(spec.given), set(spec.given), set(spec.given)
    for phase in phases:
        if phase.start == "copy" and trained:
            with_weights |= set(phase.path) - seen
        own = phase.trains & with_weights if config.active == "adapters" else frozenset()
        adapts = set(own)
        if not phase.restores:
            adapts |= {stack for stack in phase.trains & trained if not formats.precision(stack, "trunk").trainable}
        if adapts and config.stack is None and config.trunk is None:
            stack = min(adapts)
            raise UsageError(
                f'phase "{phase.name}" goes on training stack {stack}, whose weights can\'t train at the precision '
                'that the trunk has. Name an adapter, such as adapter.trunk = { use = "lora" }, or set '
                "trainer_mode.restore = true to train the full-precision masters."
            )
        trained |= phase.trains
        seen |= set(phase.path)
        yield _Resolving(evolve(phase, trains=phase.trains - adapts, adapts=phase.adapts | adapts), frozenset(own))


def _with_time_of_its_own(resolving: Sequence[_Resolving], place: int, config: AdapterConfig) -> Iterator[_Resolving]:
    """Yield a phase, and another after the last that trains a stack in full: its adapter over the frozen weights.

    That has a share of the phase's budget, and continues its samples and draws.
    """
    phase = resolving[place].phase
    done = phase.trains - {stack for after in resolving[place + 1 :] for stack in after.phase.trains}
    if not done:
        yield resolving[place]
        return
    if phase.steps is None:
        epochs = phase.epochs * config.share
        main = evolve(phase, epochs=phase.epochs - epochs)
        adapter = evolve(phase, epochs=epochs, begins=phase.begins + main.epochs)
    else:
        steps = max(1, round(phase.steps * config.share))
        if steps == phase.steps:
            raise UsageError(
                f'adapter.share = {config.share:g} leaves phase "{phase.name}" itself none of its steps, which are '
                f"{steps}. Raise training.steps_per_stack, or lower adapter.share."
            )
        main = evolve(phase, steps=phase.steps - steps)
        adapter = evolve(phase, steps=steps, begins=phase.begins + phase.steps - steps)
    yield evolve(resolving[place], phase=main)
    yield _Resolving(
        evolve(adapter, name=f"{phase.name}, adapter", trains=(), adapts=done, embedding=False, head=False), done
    )


def _named(resolving: Sequence[_Resolving], config: AdapterConfig) -> Iterator[Phase]:
    """Yield each phase with the adapters that it trains, and those that it begins by merging."""
    there: dict[int, set[str]] = {}
    seen: set[int] = set()
    for each in resolving:
        phase = each.phase
        if phase.adapts and config.stack is None and config.trunk is None:
            raise UsageError(
                f'phase "{phase.name}" trains adapters, and there are none. Name one, such as '
                'adapter.trunk = { use = "lora" }.'
            )
        pairs = []
        for stack in sorted(phase.adapts):
            if stack in each.own:
                names = {STACK}
            elif phase.trains or each.own:
                names = {STACK if config.trunk is None else TRUNK}
            else:  # a finale, of all adapters that are there
                names = there.get(stack) or {TRUNK if config.stack is None else STACK}
            pairs += [(stack, name) for name in sorted(names)]
        if config.stack is not None and config.attach == "birth":
            pairs += [(stack, STACK) for stack in sorted(phase.trains)]
        merges = []
        if config.growth == "merge" and set(phase.path) - seen:
            merges = [(stack, TRUNK) for stack in sorted(phase.adapts) if TRUNK in there.get(stack, ())]
        for stack, name in pairs:
            there.setdefault(stack, set()).add(name)
        seen |= set(phase.path)
        yield evolve(phase, adapters=tuple(pairs), merges=tuple(merges))


def _check_formats(phase: Phase, config: AdapterConfig, formats: Formats) -> None:
    uses = {STACK: config.stack, TRUNK: config.trunk}
    for stack, name in phase.adapters:
        reason, choice = formats.adapters[name].float_only, uses[name]
        if reason and choice is not None and formats.precision(stack, "trunk").quantises:
            raise UsageError(
                f'adapter.{name} = "{choice.use}" can\'t stand on stack {stack}, whose weights are quantised when it '
                f'is frozen: {reason}. Use another adapter, such as "lora", or a precision.trunk such as "bf16".'
            )
