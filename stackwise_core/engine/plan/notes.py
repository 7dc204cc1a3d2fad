"""Notes on a plan for the user before starting: what is wasted, off, never seen, or too large."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psutil
from attrs import evolve, fields

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.draws.sequences import TokenisedCorpus
from stackwise_core.engine.estimates.disk_estimate import boundary_bytes
from stackwise_core.engine.phases.phase_steps import distinct_draws, phase_epochs, sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.device_room import where_the_cache_is
from stackwise_core.engine.plan.out_of_reach import settings_out_of_reach
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.process.memory import device_memory
from stackwise_core.engine.text.token_stream import Coverage
from stackwise_core.interfaces.phase import Phase
from stackwise_core.options import ByteSize
from stackwise_core.system.machine import memory

MOST_NAMES = 10
"""Names that a note has."""


def notes(planned: list[PhasePlan], setup: Setup) -> list[str]:
    """List the notes for the user before starting."""
    training, cache = setup.config.training, setup.implementations.cache
    with_trunk = [plan for plan in planned if plan.phase.frozen_prefix]
    cached = [plan for plan in with_trunk if plan.phase.boundaries == "cache" and not plan.recomputed]
    said = []
    unused = training.epochs_per_stack != fields(TrainingConfig).epochs_per_stack.default
    if training.steps_per_stack is not None and unused:
        said.append("training.steps_per_stack is set, so that training.epochs_per_stack says nothing.")
    if cache is not None and cache.options.keep == "rack" and not cache.durable:
        said.append('cache_backend.keep = "rack" leaves nothing when the run ends: this backend isn\'t on disk.')
    masked = not setup.implementations.objective.options.causal
    if masked and with_trunk and training.masks == "fixed" and training.masks_per_sample == 1:
        said.append(
            "masks_per_sample = 1: a stack overfits to the one mask of each sample; 4 do nearly as well as fresh ones."
        )
    if cache is not None and not cached and not any(plan.recomputed for plan in planned):
        said.append("No phase keeps a boundary beyond its window, so nothing is cached.")
    live = [plan.phase.name for plan in planned if adapts_below_what_trains(plan.phase)]
    if cache is not None and live:
        names = several(live)
        said.append(
            f"The cache is off in {names}: adapters train in the trunk, so that its boundary changes with every step."
        )
    if cached and cache is not None:
        order = sample_order(setup)
        by_boundary = phases_by_boundary(cached)
        epochs, draws = (max(f(phase, order) for phase in by_boundary) for f in (phase_epochs, distinct_draws))
        if epochs <= draws:
            trained_on = f"Each boundary is trained on once (epochs a phase: {epochs:.3g}, draws a sample: {draws:.3g})"
            if any(plan.made_from_below for plan in planned):
                said.append(f"{trained_on}, so the cache saves only the stacks below the last one of the trunk.")
            elif len(by_boundary) > 1:
                said.append(f"{trained_on}, and phases share no draws, so the cache saves nothing.")
            else:
                said.append(f"{trained_on}, so the cache saves nothing.")
        if cache.options.capacity is not None:
            phases = [plan.phase for plan in planned]
            needed = max(boundary_bytes(phase, phases[:place], setup) for place, phase in enumerate(phases))
            if needed > cache.options.capacity:
                said.append(
                    f"cache_backend.capacity = {cache.options.capacity} is less than the {ByteSize(needed)} of "
                    "boundaries: each epoch visits them in turn, so that most are evicted and computed again."
                )
    said += where_the_cache_is(planned, setup)
    said += _of_streaming(planned)
    if masked:
        said += unseen([plan.band for plan in planned if plan.band is not None])
    said += setup.tokenizer.notes
    said += of_the_text(setup.corpus)
    said += settings_out_of_reach(planned, setup)
    if setup.config.training.head == "trains" and any(plan.phase.head for plan in planned[1:]):
        said.append("The head goes on training: what it reads at shallower depths changes with it.")
    return said + of_the_memory(planned, setup)


def of_the_memory(planned: Sequence[PhasePlan], setup: Setup) -> list[str]:
    """Note what doesn't fit: the peak into the device's memory, or what the host holds into its own."""
    said = []
    room, peak = device_memory(setup.device), max(plan.memory.total for plan in planned)
    # The peak includes what this process holds, which is no longer free.
    held = psutil.Process().memory_info().rss
    there = room.free + (held if setup.device.type == "cpu" else 0)
    if peak > there:
        limit = f", by {room.limit}" if room.limit else ""
        said.append(
            f"The peak of {ByteSize(peak)} is more than the {ByteSize(there)} that this process can have{limit}."
        )
    host = max((plan.host.total for plan in planned if plan.host is not None), default=0)
    if host > (there := memory().free + held):
        said.append(
            f"The host's part of {ByteSize(host)} is more than the {ByteSize(there)} that this process can have there."
        )
    return said


def _of_streaming(planned: Sequence[PhasePlan]) -> list[str]:
    """Note the phases in which what trains is streamed, and what waits meanwhile."""
    said = []
    for place, where in (("memory", "in host memory"), ("disk", "on disk")):
        streamed = [plan for plan in planned if plan.offload == place]
        if streamed:
            said.append(
                f"One stack at a time is in memory in {several([plan.phase.name for plan in streamed])}; "
                f"{ByteSize(max(plan.offloaded for plan in streamed))} of weights, gradients, moments and boundaries "
                f"wait {where}."
            )
    return said


def of_the_text(corpus: TokenisedCorpus) -> list[str]:
    """List each source's share of an epoch, where there are several, and what training doesn't get."""
    said = list(corpus.notes)
    sources = [source for source in corpus.sources if source.train.rows]
    if len(sources) > 1:
        shares = [f"{source.train.samples} are of {source.name} (weight {source.weight:g})" for source in sources]
        said.append(f"Of the {len(corpus.train)} samples of an epoch {', '.join(shares[:-1])} and {shares[-1]}.")
    if corpus.alone:
        several = corpus.alone > 1
        said.append(
            f"{corpus.alone} sequence{'s' if several else ''} without a token that has one of its document before it "
            f"{'are' if several else 'is'} left out: there is nothing to predict."
        )
    if corpus.left_out:
        said.append(f"{corpus.left_out} tokens are left out of training: data.validation has equal passages.")
    return said + of_the_coverage(corpus.train.coverage)


def of_the_coverage(coverage: Coverage) -> list[str]:
    """List the shares of a text that the tokenizer has no token for."""
    said = []
    if coverage.unknown:
        said.append(
            f"{_share(coverage.unknown, coverage.bytes)} of the text is unknown to the tokenizer: it is neither masked "
            "nor scored, and counts for no bits/byte."
        )
    if coverage.dropped:
        said.append(
            f"{_share(coverage.dropped, coverage.bytes)} of the text has no token, since the tokenizer drops it (white "
            "space, accents, characters that it lacks): bits/byte is of the rest."
        )
    return said


def _share(part: int, whole: int) -> str:
    """Return a share of bytes as text; one that isn't nothing is never shown as nothing."""
    percent = 100 * part / whole
    return f"{percent:.3g} %" if percent >= 0.01 else "Less than 0.01 %"


def adapts_below_what_trains(phase: Phase) -> bool:
    """Return whether a boundary would go through adapters that train."""
    lowest = phase.path[0]
    return lowest in phase.adapts and len(phase.trains | phase.adapts) > 1


def phases_by_boundary(planned: Iterable[PhasePlan]) -> list[Phase]:
    """List the phases, those that follow one another over the same boundary as one."""
    phases: list[Phase] = []
    for plan in planned:
        if plan.same_boundary:
            main, steps = phases[-1], plan.phase.steps
            together = None if main.steps is None or steps is None else main.steps + steps
            phases[-1] = evolve(main, epochs=main.epochs + plan.phase.epochs, steps=together)
        else:
            phases.append(plan.phase)
    return phases


def unseen(bands: Sequence[tuple[float, float]]) -> list[str]:
    """Return notes on bands that don't cover (0, 1]."""
    if covered(bands) >= 0.995:
        return []
    seen = several(list(dict.fromkeys(map(band_text, bands))))
    return [f"Training sees the mask fractions {seen} and no others; the validation bound is over all of them."]


def several(names: Sequence[str]) -> str:
    """Return the names in a line; of many, the first, the last and a count."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ... {names[-1]} ({len(names)} in all)"


def band_text(band: tuple[float, float]) -> str:
    """Return ``15-90 %``, or ``15 %`` for a band of one fraction."""
    low, high = (f"{100 * fraction:.3g}" for fraction in band)
    return f"{low} %" if low == high else f"{low}-{high} %"


def covered(bands: Iterable[tuple[float, float]]) -> float:
    """Return the share of (0, 1] that lies in one of the bands."""
    share, reached = 0.0, 0.0
    for low, high in sorted((min(band), max(band)) for band in bands):
        share += max(0.0, high - max(low, reached))
        reached = max(reached, high)
    return share
