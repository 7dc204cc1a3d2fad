"""Which files a directory holds, each whole and with a checksum; those that are written together count together.

``manifest.json`` names every file with its size and SHA-256. A new file is written beside its place (``NAME.new``) and
entered in the manifest as pending, which is the instant from which it counts; then it is renamed. So a process that is
killed at any point leaves all of the old files or all of the new ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from stackwise_core.errors import StackwiseError
from stackwise_core.files import publish, publish_text, sha256, sync

MANIFEST = "manifest.json"
STAGED = ".new"


class Manifest:
    """The files of a directory. Only one process may write; any may read at the same time."""

    def __init__(self, directory: Path) -> None:
        """Read the manifest of a directory, if there is one.

        Raises:
            StackwiseError: it is no manifest.
        """
        self.directory = directory
        self._files: dict[str, dict[str, Any]] = {}
        self._pending: frozenset[str] = frozenset()
        self._staged: dict[str, dict[str, Any]] | None = None
        self._dropped: set[str] = set()
        path = directory / MANIFEST
        if path.exists():
            self._files, self._pending = _read(path)
            self._rename_pending()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def about(self, name: str) -> dict[str, Any]:
        """What is known of a file: ``bytes``, ``sha256``, and what was said when it was written."""
        return self._files[name]

    def write(self, name: str, fill: Callable[[Path], None], **about: Any) -> None:
        """Let ``fill`` write a file, in place of an older one.

        Args:
            name: relative to the directory, with forward slashes.
            about: JSON values to keep with its entry.
        """
        with self.together():
            assert self._staged is not None
            staged = self.directory / (name + STAGED)
            if not staged.parent.exists():
                staged.parent.mkdir(parents=True)
                sync(staged.parent.parent)
            publish(staged, fill)
            self._staged[name] = {"bytes": staged.stat().st_size, "sha256": sha256(staged), **about}
            self._dropped.discard(name)

    def drop(self, name: str) -> None:
        """Delete a file."""
        with self.together():
            assert self._staged is not None
            self._staged.pop(name, None)
            self._dropped.add(name)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written and dropped in it takes effect at its end, all of it or nothing."""
        if self._staged is not None:
            yield
            return
        self._staged = {}
        try:
            yield
            kept = {name: entry for name, entry in self._files.items() if name not in self._dropped}
            files = kept | self._staged
            self._publish(files, self._staged)
            self._files, self._pending = files, frozenset(self._staged)
        except BaseException:
            for name in self._staged:
                (self.directory / (name + STAGED)).unlink(missing_ok=True)
            raise
        finally:
            dropped, self._staged, self._dropped = self._dropped, None, set()
        self._put_in_place()
        for name in dropped:
            (self.directory / name).unlink(missing_ok=True)

    def recover(self) -> None:
        """Finish what a killed writer had begun; for the next writer."""
        self._put_in_place()
        for stray in self.directory.rglob(f"*{STAGED}"):
            stray.unlink()

    def where(self, name: str) -> Path:
        """The path at which a file is at this moment."""
        path, staged = self.directory / name, self.directory / (name + STAGED)
        return staged if name in self._pending and staged.exists() else path

    def checked(self, name: str) -> Path:
        """The path of a file, once it was compared with its entry.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        path = self.directory / name
        problem = "the run hasn't written it" if name not in self._files else self.problem(name)
        if problem:
            raise StackwiseError(f"{path}: {problem}.")
        return self.where(name)

    def problem(self, name: str) -> str | None:
        """What is wrong with a file, or None."""
        entry, path = self._files[name], self.where(name)
        if not path.is_file():
            return "missing; it was deleted since it was written"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"damaged; it has {size} bytes, and {MANIFEST} says {entry['bytes']}"
        if sha256(path) != entry["sha256"]:
            return f"damaged; its checksum isn't the one in {MANIFEST}"
        return None

    def _rename_pending(self) -> None:
        for name in self._pending:
            # A reader that looks in meanwhile renames too, if it may: whoever comes first does it.
            with suppress(FileNotFoundError, PermissionError):
                os.replace(self.directory / (name + STAGED), self.directory / name)

    def _put_in_place(self) -> None:
        if not self._pending:
            return
        self._rename_pending()
        for folder in {(self.directory / name).parent for name in self._pending}:
            sync(folder)
        self._publish(self._files, ())
        self._pending = frozenset()

    def _publish(self, files: dict[str, dict[str, Any]], pending: Iterable[str]) -> None:
        content = {"format": 1, "files": dict(sorted(files.items())), "pending": sorted(pending)}
        publish_text(self.directory / MANIFEST, json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], frozenset[str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        files, pending = data["files"], frozenset(data.get("pending", ()))
        fine = data["format"] == 1 and all(
            _stays_inside(name) and type(entry["bytes"]) is int and type(entry["sha256"]) is str
            for name, entry in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StackwiseError(f"{path}: not a manifest: {type(error).__name__}: {error}") from error
    if not fine or not pending <= set(files):
        raise StackwiseError(f"{path}: not a manifest: an entry isn't a file of this directory, its size and SHA-256")
    return files, pending


def _stays_inside(name: str) -> bool:
    """Whether a name leads to nowhere outside of the directory."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not PurePosixPath(name).is_absolute() and ".." not in parts and "\\" not in name
