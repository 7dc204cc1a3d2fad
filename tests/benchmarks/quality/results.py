"""The results file: a JSON line a run, added as runs end, so that a benchmark goes on where it stopped."""

import json
from pathlib import Path
from typing import Any


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Results by key, the latest of each; a line that a crash cut short is passed over."""
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[result["key"]] = result
    return results


def append_result(path: Path, result: dict[str, Any]) -> None:
    """Add a line, on a line of its own even after one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(result).encode() + b"\n")
