"""Reads the files of a run's directory, which may be damaged, unfinished, of a later version, or somebody else's."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from stackwise_core.errors import StackwiseError
from stackwise_core.printable import printable
from stackwise_core.run_files.manifest import OTHER_CHECKSUM, Manifest
from stackwise_core.run_files.names import MANIFEST

LARGEST = 64 << 20
"""Bytes of a file that is read as a whole."""
LONGEST_LINE = 1 << 20
"""Bytes of a line of metrics.jsonl that is taken for one."""

DEEPEST = 30
"""Tables and arrays within one another."""
LARGEST_NUMBER = 1e30
"""Largest number that counts as a measurement."""


class RunFiles:
    """Files of one run. What can't be read leaves a gap, and each gap is said once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.gaps: list[str] = []
        self._manifest: Manifest | None = None
        try:
            self._manifest = Manifest(directory)
        except StackwiseError as error:
            self.gap(f"{MANIFEST}: {str(error).removeprefix(f'{directory / MANIFEST}: ')}; no checksum was compared")

    def gap(self, what: str) -> None:
        """Note what is missing from the page, and why."""
        if what not in self.gaps:
            self.gaps.append(what)

    def has(self, name: str) -> bool:
        """Return whether a file of this name exists, of whatever kind."""
        return os.path.lexists(self._path(name))

    def text(self, name: str) -> str | None:
        """Return a text file's content. If it can't be read, note a gap and return None."""
        try:
            with _open(self._path(name)) as file:
                if os.fstat(file.fileno()).st_size > LARGEST:
                    raise ValueError(f"more than {LARGEST >> 20} MiB")
                content = file.readall()
            text = content.decode()
        except (OSError, ValueError) as error:
            self.gap(f"{name}: {_reason(error)}")
            return None
        manifest = self._manifest
        if manifest is not None and name in manifest:
            if hashlib.sha256(content).hexdigest() != manifest.about(name)["sha256"]:
                self.gap(f"{name}: {OTHER_CHECKSUM}. It is shown as it is.")
        elif manifest is not None:
            self.gap(f"{name}: {MANIFEST} has no checksum of it. It is shown as it is.")
        return text

    def json(self, name: str) -> dict[str, Any]:
        """Return a file's JSON object. If it can't be read, note a gap and return an empty one."""
        text = self.text(name)
        if text is None:
            return {}
        try:
            value = cleaned(json.loads(text, parse_constant=str))
        except (ValueError, RecursionError) as error:
            self.gap(f"{name}: not JSON ({error!s:.100})")
            return {}
        if not isinstance(value, dict):
            self.gap(f"{name}: expected a JSON object")
            return {}
        return value

    def lines(self, name: str, *, mentioning: str = "") -> Iterator[dict[str, Any]]:
        """Yield the complete JSON objects of a file, one a line. Incomplete lines, except the last, count as a gap.

        Args:
            mentioning: a word; lines without it are skipped without parsing.
        """
        word = mentioning.encode()
        try:
            file = _open(self._path(name))
        except (OSError, ValueError) as error:
            self.gap(f"{name}: {_reason(error)}")
            return
        with BufferedReader(file, LONGEST_LINE) as buffered:
            good, bad, last = 0, 0, True
            while line := buffered.readline(LONGEST_LINE):
                if word not in line:
                    continue
                bad, last = bad + (not last), True
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    last = False  # a kill cuts the last line off, which is no fault
                    continue
                if isinstance(value, dict):
                    good += 1
                    yield value
                else:
                    bad += 1
        if not (good or last):
            self.gap(f"{name}: no line of it is a JSON object")
        elif bad:
            self.gap(f"{name}: {bad} {'line is' if bad == 1 else 'lines are'} no JSON object, and left out")

    def _path(self, name: str) -> Path:
        if self._manifest is not None and name in self._manifest:
            return self._manifest.where(name)
        return self.directory / name


def _open(path: Path) -> FileIO:
    """Open a file that is one: through a link a page of somebody else's run could show any file."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    file = FileIO(path, opener=opener)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("not a file")
    return file


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, OSError) and os.path.islink(error.filename or ""):
        return "a link, which could lead anywhere, and isn't followed"
    return getattr(error, "strerror", None) or str(error)


def cleaned(value: Any, depth: int = 0) -> Any:
    """Return a copy whose texts and keys a page can show. Values nested too deeply are left out."""
    if depth > DEEPEST and isinstance(value, (dict, list)):
        return "…"
    if isinstance(value, dict):
        return {printable(str(key)): cleaned(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [cleaned(each, depth + 1) for each in value]
    return printable(value, keep="\n\t") if isinstance(value, str) else value


def number(value: object) -> float | None:
    """Return a finite number that can be drawn, or None for any other value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with suppress(OverflowError):
        if abs(found := float(value)) <= LARGEST_NUMBER:
            return found
    return None


def whole(value: object) -> int | None:
    """Return a whole number that counts something, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def table(value: object) -> dict[str, Any]:
    """Return a JSON object, or an empty one for any other value."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """Return a JSON array, or an empty one for any other value."""
    return value if isinstance(value, list) else []
