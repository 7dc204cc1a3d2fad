"""metrics.jsonl: one JSON object a line, flushed as it is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType


class Metrics:
    """Appends measurements to a file. Numbers that aren't finite are written as text, which JSON has no number for."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **values: object) -> None:
        """Append a line of this kind."""
        finite = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps({"kind": kind, **finite}) + "\n")
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
