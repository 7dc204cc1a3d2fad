"""Results of a run, to be compared to the bit: its files and its measurements, but for clock and memory."""

import json
from pathlib import Path

from tests.hashes import hashes

MEASUREMENTS = {"plan.json", "progress.json", "finished.json", "metrics.jsonl", "manifest.json"}


def bits(directory: Path) -> dict[str, str]:
    """Return a hash of every file that is neither a measurement nor a boundary."""
    files = hashes(directory).items()
    return {name: digest for name, digest in files if name not in MEASUREMENTS and not name.startswith("cache/")}


def same(found: dict[str, str], expected: dict[str, str]) -> bool:
    """Whether all files are the same but for the configuration, which names the directory."""
    return {**found, "config.toml": ""} == {**expected, "config.toml": ""}


def measured(directory: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without what clock and memory say, and without counts of the cache."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    unlike = ("seconds", "tokens_per_second", "peak_bytes")
    return [
        {key: value for key, value in line.items() if key not in unlike and not key.startswith("boundaries_")}
        for line in lines
    ]
