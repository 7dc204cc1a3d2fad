"""The page: generated sections between markers; what people wrote around them stays."""

import json
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stackwise_core.cli.quantities import duration
from stackwise_core.errors import UsageError
from stackwise_core.system.files import publish_text
from tests.benchmarks.quality.corpora import SOURCES
from tests.benchmarks.quality.regimes import BASE, BASELINE, REGIMES
from tests.benchmarks.quality.table import Row

Seeds = Mapping[str, Mapping[str, int]]
"""Number of seeds by corpus and regime."""
MODULE = "python -m tests.benchmarks.quality"

SKELETON = """# Quality by trainer mode

Does training stack by stack reach the quality of end-to-end training? Each regime trains the same rack on the same
text with the FLOPs of end-to-end training, and is measured by its validation NELBO.

<!-- setting: begin -->
<!-- setting: end -->

## Results

<!-- table: begin -->
<!-- table: end -->

## What was compared

<!-- regimes: begin -->
<!-- regimes: end -->
"""


def write_page(path: Path, sections: Mapping[str, str]) -> None:
    """Put sections into the page, which is made if there is none."""
    page = path.read_text(encoding="utf-8") if path.exists() else SKELETON
    for name, text in sections.items():
        page = with_section(page, name, text, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_text(path, page)


def with_section(page: str, name: str, text: str, path: Path) -> str:
    """The page with what stands between a section's markers replaced.

    Raises:
        UsageError: it hasn't exactly one pair of them.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    replaced, found = pattern.subn(lambda _: f"{begin}\n{text.strip()}\n{end}", page)
    if found != 1:
        raise UsageError(f"{path}: expected the lines {begin} and {end} once, in this order; found {found} such pairs")
    return replaced


def setting(runs: Sequence[dict[str, Any]], steps: int, seeds: Seeds, flags: str) -> str:
    """Describe the runs and the machine.

    Args:
        steps: of the baseline.
        seeds: how many, by corpus and regime.
        flags: what the calls had in common.
    """
    rack, data, training = BASE["rack"], BASE["data"], BASE["training"]
    machines = {
        f"{one['processor']}, {one['cores']} cores, {run['jobs']} runs at once with {one['threads']} "
        f"{'thread' if one['threads'] == 1 else 'threads'} each, torch {one['torch']}"
        for run in runs
        for one in [run["machine"]]
    }
    paragraphs = [
        f"{rack['stacks']} stacks of {rack['blocks_per_stack']} blocks, d_model {rack['d_model']}, bytes, sequences of "
        f"{data['seq_len']}, batches of {training['batch_size']}. End-to-end training takes {steps} steps; the other "
        "regimes take as many as need the same FLOPs, by the plan. "
        f"Machine: {'; '.join(sorted(machines))}."
    ]
    errors = [run["standard_error"] for run in runs if run["standard_error"] is not None]
    if errors:
        paragraphs.append(
            f"One evaluation has a standard error of {statistics.mean(errors):.4f} nats/byte, from the choice of "
            "sequences and masks. With one seed all regimes are measured on the same ones, so it hardly enters the "
            "gaps."
        )
    if len({run["curves"] for run in runs}) > 1:
        paragraphs.append("**The results are of versions of the code that train differently.**")
    return "\n\n".join([f"```sh\n{commands(seeds, flags)}\n```", *map(wrapped, paragraphs)])


def commands(seeds: Seeds, flags: str) -> str:
    """Return the commands that make these results: a call for each corpus and number of seeds."""
    calls = []
    for corpus, by_regime in seeds.items():
        for count in sorted(set(by_regime.values())):
            regimes = [name for name, seeds_of in by_regime.items() if seeds_of >= count]
            every = [] if len(regimes) == len(REGIMES) else [f"  --regimes {','.join(regimes)}"]
            words = [f".venv/bin/{MODULE} --corpora {corpus} --seeds {count} {flags}", *every]
            calls.append(" \\\n".join(words))
    return "\n".join(calls)


def wrapped(text: str) -> str:
    """A paragraph in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def table(rows: Sequence[Row], baselines: Mapping[str, float]) -> str:
    """A corpus under a budget."""
    lines = [
        "| regime | NELBO, nats/byte | gap | memory of training | peak memory | FLOPs | tokens | time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    whole = next((statistics.mean(row.nelbo) for row in rows if row.regime == BASELINE), None)
    for name, bound in baselines.items():
        gap = "" if whole is None else f"{100 * (bound / whole - 1):+.1f} %"
        lines.append(f"| *{name}* | {bound:.4f} | {gap} | | | | | |")
    for row in rows:
        title = REGIMES[row.regime].title
        cells = [
            f"**{title}**" if row.regime == BASELINE else title,
            spread(row.nelbo),
            "" if row.regime == BASELINE else gap_text(row),
            f"{row.state:.2f}",
            f"{row.peak_bytes / 1e6:.0f} MB",
            f"{row.flops:.2f}",
            f"{row.tokens:.2f}",
            duration(row.seconds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; the mean alone of one value."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def gap_text(row: Row) -> str:
    """Mean and range over the seeds."""
    if row.gap is None:
        return ""
    mean = f"{row.gap:+.1f} %"
    return f"{mean} ({min(row.gaps):+.1f} to {max(row.gaps):+.1f})" if len(row.gaps) > 1 else mean


def tables(by_corpus: Mapping[str, Sequence[Row]], baselines: Mapping[str, Mapping[str, float]], plot: str) -> str:
    """All tables, and the plot of this file name above them."""
    parts = [
        f"![gap to end-to-end training, by regime, with its share of the memory of training in brackets]({plot})",
        wrapped(
            "NELBO: mean ± standard deviation over the seeds. Gap: to end-to-end training with the same seed, mean "
            "(and range). Memory of training, FLOPs and tokens: shares of end-to-end training's, by the plan. Memory "
            "of training: the most that weights, gradients, optimizer state and activations take at once. FLOPs: with "
            "the second forward pass of streamed stacks. Peak memory: of the whole process as it ran. Time: of the "
            "training phases."
        ),
        wrapped(
            "All regimes but end-to-end training are planned with one stack in memory at a time. They ran in memory, "
            "which ends with the same bits, but for those that say that they ran streamed."
        ),
    ]
    for corpus, rows in by_corpus.items():
        parts += [f"### {SOURCES[corpus].title}", table(rows, baselines[corpus])]
    return "\n\n".join(parts)


def regimes_text(by_corpus: Mapping[str, Sequence[Row]]) -> str:
    """Describe each regime, and the length of its training."""
    lines = ["| regime | trainer_mode | other keys | corpus | steps a stack |", "| --- | --- | --- | --- | ---: |"]
    for corpus, rows in by_corpus.items():
        for row in rows:
            regime = REGIMES[row.regime]
            mode = ", ".join(f"{key} = {json.dumps(value)}" for key, value in regime.trainer_mode.items())
            changes = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in regime.changes.items())
            lines.append(f"| {regime.title} | `{{ {mode} }}` | {changes} | {corpus} | {row.steps_per_stack} |")
    return "\n".join(lines)
