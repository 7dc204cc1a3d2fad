"""The page's tables: headings and rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from stackwise_core.run_files.files import listed, table
from stackwise_core.run_files.run import COUNTS, MEMORY, Phase, Run
from stackwise_report import wording


@frozen
class Table:
    """Rows of cells; the first ``left`` columns are text, the others numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    colours: Sequence[int] = ()
    """Colour of each row, where rows are runs."""


def comparison(runs: Sequence[Run]) -> Table:
    """Make the table that compares runs, one row a run."""
    measures = list(dict.fromkeys(run.measure for run in runs if run.whole)) or ["NELBO"]
    rows = [
        (
            run.label,
            run.state.partition(":")[0],
            *_bound(run, runs[0]),
            wording.whole(run.steps),
            wording.count(run.tokens),
            wording.duration(run.seconds),
            wording.size(run.peak_bytes),
        )
        for run in runs
    ]
    bound = (f"{' / '.join(measures)}, nats/token", "std. error", "to the first", "bits/byte")
    headings = ("run", "state", *bound, "steps", "tokens", "time", "peak memory")
    return Table(headings, rows, left=2, colours=range(len(runs)))


def _bound(run: Run, first: Run) -> tuple[str, ...]:
    """Return the whole rack's bound, and its distance from the first run's where both have the same tokens."""
    bound, other = run.whole, first.whole
    if bound is None:
        return 4 * (wording.NOTHING,)
    gap = None
    if run is not first and other is not None and (run.measured_on, run.causal) == (first.measured_on, first.causal):
        gap = bound.nats_per_token - other.nats_per_token
    return (
        wording.nats(bound.nats_per_token),
        wording.error(bound.standard_error),
        wording.change(gap),
        wording.nats(bound.bits_per_byte),
    )


def remarks(runs: Sequence[Run]) -> list[str]:
    """List what to know before comparing the likelihoods of several runs."""
    measured, said = [run for run in runs if run.whole], []
    if len({run.measured_on for run in measured}) > 1:
        said.append(
            "The runs were not all measured on the same tokens. nats/token compare only where the held-out text, its "
            "tokenizer and the length of sequences are the same, bits/byte where the text is."
        )
    if len({run.causal for run in measured}) > 1:
        said.append("NLL is the likelihood itself, and NELBO an upper bound on it.")
    return said


def differences(runs: Sequence[Run]) -> Table:
    """Make the table of configuration keys whose values differ between runs."""
    flat = [wording.flat(run.config) for run in runs]
    keys = sorted(set().union(*flat) - {"run.name"})
    rows = [
        (key, *(each.get(key, wording.NOTHING) for each in flat))
        for key in keys
        if len({each.get(key) for each in flat}) > 1
    ]
    return Table(("key", *(run.label for run in runs)), rows, left=1 + len(runs))


def phases(run: Run) -> Table:
    """Make the table of phases: steps, time, losses and speed."""
    odd = [name for name in ("bad_steps", "loss_spikes") if any(getattr(phase, name) for phase in run.phases)]
    rows = [
        (
            phase.name,
            phase.entry or wording.NOTHING,
            trains(phase),
            _masks(phase),
            wording.count(phase.trainable_parameters),
            _progress(phase),
            wording.duration(phase.seconds),
            wording.nats(phase.first_loss),
            wording.nats(phase.last_loss),
            wording.count(phase.tokens_per_second),
            *(wording.whole(getattr(phase, name)) for name in odd),
        )
        for phase in run.phases
    ]
    of_plan = ("phase", "starts at", "trains", "masked", "parameters", "steps")
    measured = ("time", "first loss", "last loss", "tokens/s", *(name.replace("_", " ") for name in odd))
    return Table((*of_plan, *measured), rows, left=4)


def _masks(phase: Phase) -> str:
    """Return ``0–100 %, 4 fixed``."""
    parts = [
        *([wording.band(*phase.band)] if phase.band else []),
        *([phase.masks] if phase.band and phase.masks else []),
    ]
    return ", ".join(parts) or wording.NOTHING


def _progress(phase: Phase) -> str:
    if phase.done and not phase.stopped_early:
        return wording.whole(phase.steps)
    planned = wording.whole(phase.planned_steps)
    if phase.passed_on:
        return f"{wording.whole(phase.steps)}, {wording.whole(phase.passed_on)} passed on"
    return f"{wording.whole(phase.steps)} of {planned}{', early stop' if phase.stopped_early else ''}"


def trains(phase: Phase) -> str:
    """Return ``embedding, stack 0, head``."""
    parts = ["embedding"] if phase.embedding else []
    if phase.trains:
        parts.append(f"stack{'s' if len(phase.trains) > 1 else ''} {wording.numbers(phase.trains)}")
    for name in dict.fromkeys(name for _, name in phase.adapts):
        of = tuple(stack for stack, adapter in phase.adapts if adapter == name)
        parts.append(f"{name} adapter of {wording.numbers(of)}")
    return ", ".join([*parts, *(["head"] if phase.head else [])]) or wording.NOTHING


def depths(run: Run) -> Table:
    """Make the table of bounds of the rack cut off after each number of stacks."""
    rows, before = [], None
    for each in run.likelihoods:
        rows.append(
            (
                f"{each.depth} stack{'' if each.depth == 1 else 's'}",
                wording.nats(each.nats_per_token),
                wording.error(each.standard_error),
                wording.change(None if before is None else each.nats_per_token - before),
                wording.perplexity(each.perplexity),
                wording.nats(each.bits_per_byte),
            )
        )
        before = each.nats_per_token
    return Table((f"{run.measure} at", "nats/token", "std. error", "change", "perplexity", "bits/byte"), rows)


def bands(run: Run) -> Table | None:
    """Make the table of the bound's shares, by interval of mask fractions."""
    bound = run.whole
    if bound is None or not bound.bands:
        return None
    banded = len(run.routes) == len(bound.bands) > 1
    rows = [
        (
            wording.band(band.low, band.high),
            *([wording.numbers(run.routes[place])] if banded else []),
            wording.nats(band.nats_per_token),
            wording.error(band.standard_error),
            wording.share(band.nats_per_token, bound.nats_per_token),
        )
        for place, band in enumerate(bound.bands)
    ]
    return Table(("masked", *(["stack"] if banded else []), "nats/token", "std. error", "share"), rows)


def memory(run: Run) -> Table:
    """Make the table of each phase's peak memory: planned, in parts, and measured; of a device, and of its host."""
    host = ("host",) if any(phase.planned_host is not None for phase in run.phases) else ()
    rows = [
        (
            phase.name,
            *(wording.size(phase.planned_host) for _ in host),
            *(wording.size(phase.planned_memory.get(part)) for part in MEMORY),
            wording.size(phase.planned_peak),
            wording.size(phase.peak_bytes),
            wording.share(phase.peak_bytes, phase.planned_peak),
        )
        for phase in run.phases
    ]
    return Table(("phase", *host, *MEMORY, "planned", "measured", "of plan"), rows)


def boundaries(run: Run) -> Table | None:
    """Make the table of boundaries: counts by phase. None where no phase has any."""
    rows = [
        (
            phase.name,
            *(wording.whole(phase.boundaries.get(name)) for name in COUNTS),
            wording.share(phase.boundaries.get("found"), phase.boundaries.get("wanted")),
        )
        for phase in run.phases
        if any(phase.boundaries.values())
    ]
    return Table(("phase", *COUNTS, "hits"), rows) if rows else None


def method(run: Run) -> Table:
    """Make the table of the run's main settings."""
    precision, adapter = (table(run.config.get(name)) for name in ("precision", "adapter"))
    rows = [
        ("rack", _shape(run.rack)),
        ("parameters", wording.count(run.parameters)),
        ("trainer mode", wording.choice(run.config.get("trainer_mode"), wording.NOTHING)),
        ("objective", wording.choice(run.config.get("objective"), wording.NOTHING)),
        ("mask schedule", wording.choice(run.config.get("mask_schedule"), wording.NOTHING)),
        ("precision, active", wording.choice(precision.get("active"), wording.NOTHING)),
        ("precision, trunk", wording.choice(precision.get("trunk"), "as active")),
        *(
            (f"precision, stack {name}", wording.choice(each, ""))
            for name, each in table(precision.get("stacks")).items()
        ),
        *((f"adapter, {name}", wording.choice(adapter.get(name), "none")) for name in ("stack", "trunk")),
        ("cache", wording.choice(run.config.get("cache_backend"), "none")),
    ]
    return Table(("what", "chosen"), rows, left=2)


def _shape(rack: dict[str, object]) -> str:
    """Return ``3 stacks of 1 block, d_model 128, ...``."""
    blocks = [str(each) for each in listed(rack.get("blocks"))]
    each = " or ".join(dict.fromkeys(blocks))
    stacks = [f"{len(blocks)} stack{'' if len(blocks) == 1 else 's'} of {each} block{'' if each == '1' else 's'}"]
    widths = [f"{key} {rack[key]}" for key in ("d_model", "n_heads", "d_ff", "vocab_size", "seq_len") if key in rack]
    return ", ".join([*(stacks if blocks else []), *widths]) or wording.NOTHING


def environment(run: Run) -> Table:
    """Make the table of versions and the device that the run used."""
    rows = [
        (key, "; ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in run.environment.items()
        if key not in ("plugins", "packages")
    ]
    for hook, about in table(run.environment.get("plugins")).items():
        said = table(about)
        rows.append((hook, f"{said.get('use')} ({said.get('distribution')} {said.get('version')})"))
    rows += [(name, str(version)) for name, version in table(run.environment.get("packages")).items()]
    return Table(("what", "version"), rows, left=2)
