"""The results of device.sh as one JSON, and as docs/benchmarks/device.md.

    python -m tests.benchmarks.device FOLDER [--device cuda] [--page [FILE]]

FOLDER has what the parts of device.sh have left. Writes device.json there. Without results the page says so.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from tests.benchmarks.steps.page import lines, ranged

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "device.md"
COMMAND = "tests/benchmarks/device.sh --page"
INTRODUCTION = f"""# On a CUDA device

The tests on the device, training steps beside a loop written by hand and the device's peaks, phases at the shape of a
model of 70 billion weights, and the examples. The command writes this page, and takes at most ten minutes on one GPU:

```console
$ {COMMAND}
```

On a machine that has torch, transformers and peft and no network, `--wheels FOLDER` takes the rest from files; the
first lines of the script say which.
"""
NOTHING = """
**Not measured yet.** No GPU was at hand where this version was made: the script has run on a CPU alone, at its smallest
shapes (`--device cpu --tiny`). What it measures on a device, and the targets, are in the tables that it writes here.
"""


def gathered(folder: Path, device: str) -> dict[str, Any]:
    """Return the results of all parts, as far as they are there."""
    engine: dict[str, Any] = {}
    for path in sorted(folder.glob("engine-*.json")):
        part = json.loads(path.read_text())
        engine = engine or {**part, "shapes": {}}
        engine["shapes"] |= part["shapes"]
    return {
        "machine": machine(device),
        "parts": [
            {"name": name, "status": int(status), "seconds": int(seconds)}
            for name, status, seconds in table(folder / "parts.tsv")
        ],
        "phases": [json.loads(path.read_text()) for path in sorted(folder.glob("phases-*.json"))],
        "engine": engine or None,
        "suite": suite(folder / "suite.xml"),
        "examples": [
            {"name": name, "status": int(status), "seconds": float(seconds)}
            for name, status, seconds in table(folder / "examples.tsv")
        ],
    }


def machine(device: str) -> dict[str, str]:
    """Return what the parts ran on."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def table(path: Path) -> list[list[str]]:
    """Return the rows of a file of tab-separated values; none where it isn't there."""
    return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


def suite(path: Path) -> dict[str, Any] | None:
    """Return the counts of a test run, and the names of what failed; None where there was none."""
    if not path.exists():
        return None
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    bad = []
    for case in cases:
        kinds = {child.tag for child in case}
        kind = next(
            (
                name
                for tag, name in (("failure", "failed"), ("error", "errors"), ("skipped", "skipped"))
                if tag in kinds
            ),
            "passed",
        )
        counts[kind] += 1
        if kind in ("failed", "errors"):
            message = next(child.get("message") or "" for child in case if child.tag in ("failure", "error"))
            bad.append(
                {"test": f"{case.get('classname')}::{case.get('name')}", "message": " ".join(message.split())[:160]}
            )
    return {**counts, "bad": bad}


def page(found: Mapping[str, Any]) -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION.rstrip(), *([NOTHING.rstrip()] if not found["parts"] else told(found))]) + "\n"


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of all results."""
    on = found["machine"]
    yield f"\nOn {on['device']}, torch {on['torch']}, CUDA {on['cuda']}, Python {on['python']}."
    yield "\n| part | status | seconds |\n| --- | ---: | ---: |"
    for part in found["parts"]:
        status = {0: "done", 124: "out of time"}.get(part["status"], f"**failed** ({part['status']})")
        yield f"| {part['name']} | {status} | {part['seconds']} |"
    if found["phases"]:
        yield from phases(found["phases"], found["engine"])
    if found["suite"] is not None:
        yield from tests(found["suite"])
    if found["examples"]:
        bad = [each["name"] for each in found["examples"] if each["status"]]
        yield "\n## Examples\n"
        yield f"{len(found['examples'])} of docs/examples were run, and {len(found['examples']) - len(bad)} ended well."
        if bad:
            yield f"**Not these**: {', '.join(bad)}."
    if found["engine"] is not None:
        yield "\n# Training steps\n"
        yield from lines(found["engine"])


def phases(found: list[Mapping[str, Any]], engine: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the lines of runs, phase by phase."""
    peak = None if engine is None else engine["peaks"]["bf16"]
    yield "\n## Phases of a run\n"
    yield "Block-wise, boundaries in a cache in memory. Times until a first step count from the last step before, and"
    yield "include writing what that phase trained.\n"
    yield (
        "| shape | phase | tokens/s | share of the bf16 peak | planned | peak | planned / peak | written | first step "
        "after |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for run in found:
        for each in run["phases"]:
            planned, step = each["plan"], each["step_seconds"]
            memory = planned["memory"]["total"]
            rate = planned["flops"] / planned["steps"] / step
            share = "" if peak is None else f"{rate / peak:.2f}"
            first = "" if each["first_step_seconds"] is None else f"{each['first_step_seconds']:.1f} s"
            written = f"{each['written_bytes'] / 1e9:.2f} GB in {each['written_seconds']:.1f} s"
            yield (
                f"| {run['shape']} | {planned['name']} | {each['tokens'] / step:,.0f} | {share} | "
                f"{memory / 1e9:.2f} GB | {each['peak_bytes'] / 1e9:.2f} GB | {memory / each['peak_bytes']:.2f} | "
                f"{written} | {first} |"
            )
    plans = [run["plan_seconds"] for run in found]
    names = ", ".join(run["shape"] for run in found)
    yield f"\nSeconds until the plan is there, from the start of the process ({names}): {ranged(plans)}."


def tests(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the test run."""
    yield "\n## Tests\n"
    yield (
        f"{found['passed']} passed, {found['failed']} failed, {found['errors']} errors, {found['skipped']} skipped, of "
        "those that the time was enough for."
    )
    if found["bad"]:
        yield ""
        for each in found["bad"][:60]:
            yield f"- `{each['test']}`: {each['message']}"
        if len(found["bad"]) > 60:
            yield f"- and {len(found['bad']) - 60} more"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--page", type=Path, nargs="?", const=PAGE, metavar="FILE")
    options = parser.parse_args()
    device = options.device if torch.cuda.is_available() else "cpu"
    found = gathered(options.folder, device)
    if found["parts"]:
        (options.folder / "device.json").write_text(json.dumps(found, indent=1))
    if options.page is not None:
        options.page.write_text(page(found))


if __name__ == "__main__":
    main()
