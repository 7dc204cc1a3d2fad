"""Read a run from its directory's files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli

from stackwise_core.printable import printable
from stackwise_core.run_files.curves import Curve
from stackwise_core.run_files.files import RunFiles, cleaned, listed, number, table, whole
from stackwise_core.run_files.names import CONFIG, ENVIRONMENT, FINISHED, METRICS, PLAN, PROGRESS
from stackwise_core.run_files.run import COUNTS, CURVES, MEMORY, Band, Likelihood, Phase, Run

MOST_PHASES = 1000
"""Largest number of a run's phases that are shown."""
MOST_POINTS = 1000
"""Points of a planned curve that are read."""


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Several runs, each with a label of its own: its directory's name, or all of the path where two have one."""
    runs = [read_run(path) for path in paths]
    labels = [run.label for run in runs]
    for place, run in enumerate(runs):
        if labels.count(run.label) > 1:
            run.label = f"{printable(str(run.path))} ({place + 1})"
    return runs


def read_run(path: Path, *, curves: bool = True) -> Run:
    """Read a run's directory. What is damaged or missing leaves gaps in what is returned, each with its reason.

    Args:
        curves: whether the measurements of single steps are read; without them it is much faster.
    """
    files = RunFiles(path)
    plan = files.json(PLAN)
    phases = [_planned(table(each)) for each in listed(plan.get("phases"))[:MOST_PHASES]]
    ended = files.has(FINISHED)
    ending = files.json(FINISHED) if ended else files.json(PROGRESS)
    for place, result in enumerate(map(table, listed(ending.get("phases"))[:MOST_PHASES])):
        if place == len(phases):
            phases.append(Phase(_text(result.get("name"))))
        _measured(phases[place], result)
    config_text = files.text(CONFIG) or ""
    try:
        config = cleaned(tomli.loads(config_text))
    except (tomli.TOMLDecodeError, RecursionError) as error:
        files.gap(f"{CONFIG}: not TOML ({error!s:.100})")
        config = {}
    for place, phase in enumerate(phases[:-1]):
        _pass_on(phase, phases[place + 1])
    likelihoods, environment = _read_metrics(files, phases, curves), files.json(ENVIRONMENT)
    before = 0
    for phase in phases:
        phase.begins, before = before, before + phase.steps
    name = table(config.get("run")).get("name")
    return Run(
        path=path,
        label=printable(path.resolve().name) or str(path),
        name=_text(name) if isinstance(name, str) else printable(path.resolve().name),
        finished=ended
        and ending.get("evaluated") is not False
        and bool(phases)
        and all(phase.done for phase in phases),
        gaps=[printable(gap) for gap in files.gaps],
        phases=phases,
        likelihoods=likelihoods,
        routes=[_whole_numbers(table(route).get("path")) for route in listed(plan.get("routes"))],
        rack=table(plan.get("rack")),
        config=config,
        config_text=printable(config_text, keep="\n\t"),
        environment=environment,
        notes=[_text(note) for note in listed(plan.get("notes"))],
        corpus=_text(plan["corpus"]) if "corpus" in plan else None,
    )


def _planned(plan: dict[str, Any]) -> Phase:
    """Return a phase of plan.json."""
    memory = {part: whole(size) for part, size in table(plan.get("memory")).items()}
    masks, each = plan.get("masks"), whole(plan.get("masks_per_sample"))
    adapters = (listed(pair) for pair in listed(plan.get("adapters")))
    return Phase(
        name=_text(plan.get("name")),
        planned_steps=whole(plan.get("steps")),
        planned_tokens=whole(plan.get("tokens")),
        entry=_text(plan["entry"]) if "entry" in plan else None,
        trains=_whole_numbers(plan.get("trains")),
        adapts=tuple((pair[0], _text(pair[1])) for pair in adapters if len(pair) == 2 and whole(pair[0]) is not None),
        embedding=plan.get("embedding") is True,
        head=plan.get("head") is True,
        trainable_parameters=whole(plan.get("trainable_parameters")),
        frozen_parameters=whole(plan.get("frozen_parameters")),
        band=_band(plan.get("band")),
        masks={"resampled": "fresh", "fixed": f"{each}\xa0fixed"}.get(masks) if isinstance(masks, str) else None,
        weighting=_text(plan["weighting"]) if "weighting" in plan else None,
        planned_memory={part: size for part in MEMORY if (size := memory.get(part)) is not None},
        planned_peak=memory.get("total"),
        planned_host=whole(table(plan.get("host")).get("total")),
        planned_disk=whole(plan.get("disk")),
        planned_rates=_points(plan.get("rates")),
    )


def _points(pairs: object) -> Curve:
    """Return a curve of pairs of a step and a value; what is none is passed over."""
    curve = Curve()
    for pair in map(listed, listed(pairs)[:MOST_POINTS]):
        step, value = (whole(pair[0]), number(pair[1])) if len(pair) == 2 else (None, None)
        if step is not None and value is not None:
            curve.add(step, value)
    return curve


def _measured(phase: Phase, result: dict[str, Any]) -> None:
    """Add a phase's results from finished.json or progress.json."""
    phase.done = True
    phase.steps = whole(result.get("steps")) or 0
    phase.seconds = number(result.get("seconds"))
    phase.first_loss, phase.last_loss = number(result.get("first_loss")), number(result.get("last_loss"))
    phase.tokens_per_second = number(result.get("tokens_per_second"))
    phase.peak_bytes = whole(result.get("peak_bytes"))
    phase.stopped_early = result.get("stopped_early") is True
    phase.passed_on = max(0, whole(result.get("passed_on")) or 0)
    phase.bad_steps, phase.loss_spikes = whole(result.get("bad_steps")) or 0, whole(result.get("loss_spikes")) or 0
    counts = {name: whole(result.get(f"boundaries_{name}")) for name in COUNTS}
    phase.boundaries = {name: count for name, count in counts.items() if count is not None}


def _pass_on(phase: Phase, following: Phase) -> None:
    """Count steps as planned where they were taken, of those that a phase left to the next one."""
    for each, steps in ((phase, -phase.passed_on), (following, phase.passed_on)):
        if steps and each.planned_steps is not None and each.planned_steps + steps > 0:
            if each.planned_tokens is not None:
                each.planned_tokens = round(each.planned_tokens * (1 + steps / each.planned_steps))
            each.planned_steps += steps
    if phase.passed_on:  # what was planned of them is past
        phase.planned_rates = following.planned_rates = Curve()


def _read_metrics(files: RunFiles, phases: list[Phase], curves: bool) -> list[Likelihood]:
    """Add the curves of metrics.jsonl to the phases, and phases that no other file mentions; return the likelihoods."""
    by_name = {phase.name: phase for phase in phases}
    likelihoods: dict[int, Likelihood | None] = {}
    strange = 0
    for line in files.lines(METRICS, mentioning="" if curves else "likelihood"):
        kind = line.get("kind")
        if kind == "likelihood":
            likelihood, depth = _likelihood(line), whole(line.get("depth"))
            strange += likelihood is None
            if depth is not None:
                likelihoods[depth] = likelihood
            continue
        if kind not in ("step", "validation", "bad_step", "loss_spike"):
            continue
        name, step = _text(line.get("phase")), whole(line.get("step"))
        if step is None:
            strange += 1
            continue
        phase = by_name.get(name)
        if phase is None and len(phases) == MOST_PHASES:
            strange += 1
            continue
        if phase is None:
            phase = by_name[name] = Phase(name)
            phases.append(phase)
        strange += not _add(phase, kind, step, line)
        if not phase.done:
            phase.steps = max(phase.steps, step)
    if strange:
        files.gap(f"{METRICS}: {strange} {'line has' if strange == 1 else 'lines have'} no number where one belongs")
    return _measured_depths(likelihoods)


def _measured_depths(likelihoods: dict[int, Likelihood | None]) -> list[Likelihood]:
    """Return the likelihoods by depth; none where the whole rack's is no number, lest another pass for it."""
    by_depth = [likelihoods[depth] for depth in sorted(likelihoods)]
    return [each for each in by_depth if each is not None] if by_depth and by_depth[-1] is not None else []


def _add(phase: Phase, kind: str, step: int, line: dict[str, Any]) -> bool:
    """Add a line's points; return whether it had all required ones."""
    if kind == "bad_step":
        phase.curves["bad"].add(step, math.nan)
        phase.bad_steps += not phase.done
        return True
    values = {name: number(line.get(name)) for name in (CURVES if kind == "step" else ("loss",))}
    for name, value in values.items():
        if value is not None:
            phase.curves[name if kind == "step" else kind].add(step, value)
    if kind == "loss_spike":
        phase.loss_spikes += not phase.done
    if kind == "step" and not phase.done:
        phase.peak_bytes = whole(line.get("peak_bytes")) or phase.peak_bytes
    return values["loss"] is not None


def _likelihood(line: dict[str, Any]) -> Likelihood | None:
    depth, nats = whole(line.get("depth")), number(line.get("nats_per_token"))
    if depth is None or nats is None:
        return None
    bands = []
    for each in map(table, listed(line.get("bands"))):
        band, part = _band(each.get("band")), number(each.get("nats_per_token"))
        if band is not None and part is not None:
            bands.append(Band(*band, part, _error(each.get("standard_error"))))
    error, bits = _error(line.get("standard_error")), number(line.get("bits_per_byte"))
    return Likelihood(depth, nats, error, bits, whole(line.get("tokens")), tuple(bands))


def _error(value: object) -> float | None:
    found = number(value)
    return None if found is None or found < 0 else found


def _band(value: object) -> tuple[float, float] | None:
    ends = [number(end) for end in listed(value)]
    return (ends[0], ends[1]) if len(ends) == 2 and None not in ends else None  # type: ignore[return-value]


def _whole_numbers(value: object) -> tuple[int, ...]:
    return tuple(found for each in listed(value) if (found := whole(each)) is not None)


def _text(value: object) -> str:
    """Return a text that a page can show, or a placeholder."""
    return printable(value if isinstance(value, str) else repr(value))[:500]
