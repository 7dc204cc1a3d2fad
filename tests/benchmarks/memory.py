"""Peak memory of racks of 2 to 64 equal stacks, and how far the plan's estimate is from it.

    .venv/bin/python tests/benchmarks/memory.py [--results FILE]

Each rack is trained by `stackwise run` in a process of its own, whose peak resident memory is taken, evaluation
included: a trunk that is streamed with its boundaries on disk, one that is streamed and recomputed for each window, one
that is in memory and recomputed, and end-to-end training, in memory and streamed from disk. Where only the last phase
matters (the two that recompute), the stacks below it come from the first rack by `rack.init_from`. A stack is 25.7 MB
in fp32 (d_model 512, two blocks). Medians of three runs where the trunk is cached, up to 32 stacks.

Writes docs/benchmarks/memory.md and the plot beside it. Takes some 25 minutes on two cores, 7 GB of memory and 10 GB of
disk; needs matplotlib (the extra `benchmarks`). With FILE (JSON) it resumes an interrupted measurement.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).with_name("few_steps.py")
PAGE = ROOT / "docs" / "benchmarks" / "memory.md"
DEPTHS = (2, 4, 8, 16, 32, 64)
REPEATS = {"streamed, cached": 3}
"""Of the others one run: what they add with depth is far above the noise."""
LONG = 64
"""Stacks of which one run has to do in any case."""
SINCE = (
    "",
    "This table is from before the C library kept blocks of up to 32 MiB in its heap, which makes steps faster and",
    "peaks some 50 MB higher. Measured since, one run each with one thread: a streamed trunk with its boundaries on",
    "disk takes 653, 681 and 695 MB at 4, 16 and 32 stacks, end-to-end training streamed from disk 631, 659 and 659.",
)
"""To be taken out where the whole table is measured anew."""
WAYS = {
    "streamed, cached": "a streamed trunk, its boundaries on disk",
    "streamed, recomputed": "a streamed trunk, recomputed for each window",
    "in memory, recomputed": "a trunk in memory, recomputed for each window",
    "end to end": "end-to-end training",
    "end to end, streamed": "end-to-end training, streamed from disk",
}
CONFIG = """
[run]
name = "{name}"
directory = "{directory}"
seed = 1
plugins = [{plugins}]
[data]
seq_len = 128
tokens_directory = "{directory}/tokens"
[rack]
stacks = {stacks}
blocks_per_stack = {blocks}
d_model = 512
n_heads = 8
{given}
[training]
{budget}
batch_size = 8
masks = "resampled"
window = 64
residency = "{residency}"
[evaluation]
sequences = 16
draws = 1
[trainer_mode]
use = "{mode}"
{cache}
"""


def measure(way: str, stacks: int, directory: Path) -> dict[str, int]:
    """Planned and measured peak bytes of a rack's runs, medians."""
    runs = [measure_once(way, stacks, directory) for _ in range(1 if stacks >= LONG else REPEATS.get(way, 1))]
    return {key: round(statistics.median(run[key] for run in runs)) for key in runs[0]}


def measure_once(way: str, stacks: int, directory: Path) -> dict[str, int]:
    """Planned and measured peak bytes of a run."""
    values: dict[str, Any] = {"name": f"{way.replace(' ', '-')}-{stacks}", "directory": directory, "stacks": stacks}
    values |= {"blocks": 2, "given": "", "cache": "", "mode": "blockwise", "residency": "stream"}
    values |= {"budget": "steps_per_stack = 4", "plugins": ""}
    if way == "end to end, streamed":
        values |= {"mode": "few_steps", "plugins": f'"{PLUGIN}"'}
    elif way == "end to end":  # one stack of all blocks: the budget is a stack's
        values |= {"mode": "end_to_end", "stacks": 1, "blocks": 2 * stacks}
    elif way == "streamed, cached":
        values["cache"] = '[cache_backend]\nuse = "disk"'
    else:
        values["given"] = f'init_from = "{below(stacks, directory)}"'
        values["residency"] = "stream" if way.startswith("streamed") else "memory"
    return run(CONFIG.format(**values), directory / f"{values['name']}.toml")


def below(stacks: int, directory: Path) -> Path:
    """A finished run of one stack less."""
    path = directory / f"below-{stacks}"
    if not path.exists():
        values = {"name": path.name, "directory": directory, "stacks": stacks - 1, "given": "", "mode": "blockwise"}
        values |= {"blocks": 2, "plugins": ""}
        values |= {"residency": "stream", "budget": "steps_per_stack = 1", "cache": '[cache_backend]\nuse = "disk"'}
        run(CONFIG.format(**values), directory / f"{path.name}.toml")
    return path


def run(config: str, file: Path) -> dict[str, int]:
    """Run a configuration, and take the peak of its process."""
    file.write_text(config)
    command = [sys.executable, "-m", "stackwise_core.cli", "run", str(file), "--json"]
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{file} failed; run it to see why")
        output.seek(0)
        result = json.loads(output.read())
    plan = json.loads((Path(result["directory"]) / "plan.json").read_text())
    if "below" not in file.name:
        shutil.rmtree(result["directory"])
    # The process resets its peak at the beginning of each phase, so the system's is the last phase's.
    peaks = [usage.ru_maxrss * 1024, *(phase["peak_bytes"] for phase in result["phases"])]
    return {"measured": max(peaks), "planned": max(phase["memory"]["total"] for phase in plan["phases"])}


def draw(results: dict[str, dict[str, dict[str, int]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "stackwise", "font.size": 10, "svg.fonttype": "none"}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (way, title), marker in zip(WAYS.items(), "osD^v", strict=True):
        depths = [depth for depth in DEPTHS if str(depth) in results[way]]
        axes.plot(depths, [results[way][str(depth)]["measured"] / 1e9 for depth in depths], marker=marker, label=title)
    axes.set(xscale="log", yscale="log", xlabel="stacks of 25.7 MB", ylabel="peak resident memory, GB")
    axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS], minor=False)
    axes.minorticks_off()
    ticks = (0.5, 1, 2, 4, 8)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PAGE.with_suffix(".svg"), format="svg", metadata={"Date": None})


def cell(found: dict[str, int] | None) -> str:
    return "-" if found is None else f"{found['measured'] / 1e6:.0f} MB ({found['planned'] / found['measured']:.2f})"


def write(results: dict[str, dict[str, dict[str, int]]]) -> None:
    draw(results)
    lines = [
        "# Memory by depth",
        "",
        "Peak resident memory of racks of equal stacks (d_model 512, two blocks, 25.7 MB in fp32 each; 128 tokens, 8",
        "sequences a batch, windows of 64), everything from Python to the last evaluation included, on a CPU with two",
        "threads; the first column has medians of three runs (one at 64), the others one each. In brackets: what",
        "`stackwise plan` says over what was measured. The command: `.venv/bin/python tests/benchmarks/memory.py`.",
        "",
        f"![peak memory by depth, for five ways to train]({PAGE.with_suffix('.svg').name})",
        "",
        "| stacks | " + " | ".join(WAYS.values()) + " |",
        "| ---: |" + " ---: |" * len(WAYS),
    ]
    for depth in map(str, DEPTHS):
        lines.append(f"| {depth} | " + " | ".join(cell(results[way].get(depth)) for way in WAYS) + " |")
    ratios = [
        f"{results[way]['64']['measured'] / results[way]['4']['measured']:.2f}" if "64" in results[way] else "-"
        for way in WAYS
    ]
    lines.append("| 64 over 4 | " + " | ".join(ratios) + " |")
    lines += [
        "",
        "A streamed trunk has one stack in memory, and only while a window passes it: its peak is that of the stack",
        "that trains. A trunk in memory grows by its weights; end-to-end training also by their gradients, by two",
        "moments of AdamW, and by the activations of every block. Streamed from disk it has one stack's of all these,",
        "and the same gradient. At 64 stacks another run took 595 MB (1.02 of that at 4): where the disk is slow, a",
        "stack's gradients are still being written while the next stack computes.",
        "",
        "The first column is the highest peak of all phases of a whole run and of its evaluation. A phase's peak",
        "differs from the next one's by some 2 %, by how the heap is cut up, without a trend from the first to the",
        "last: the highest of 64 is a little above the highest of 4. The second and third columns are runs of the",
        "deepest phase alone.",
        *SINCE,
    ]
    _, begin, rest = PAGE.read_text().partition("<!-- machines: begin -->")  # written by memory_table.py
    PAGE.write_text("\n".join(lines) + f"\n\n{begin}{rest}".rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path)
    file = parser.parse_args().results
    results: dict[str, dict[str, dict[str, int]]] = {way: {} for way in WAYS}
    if file is not None and file.exists():
        results |= json.loads(file.read_text())
    for depth in DEPTHS:
        with tempfile.TemporaryDirectory() as directory:
            for way in WAYS:
                if str(depth) in results[way]:
                    continue
                found = results[way][str(depth)] = measure(way, depth, Path(directory))
                ratio = found["planned"] / found["measured"]
                print(f"{depth:3} {way:24} {found['measured'] / 1e6:7.0f} MB, planned {ratio:.2f}", flush=True)
                if file is not None:
                    file.write_text(json.dumps(results))
    write(results)


if __name__ == "__main__":
    main()
