"""Manifest of a directory: its files, each whole and with a checksum. Those that are written together count together.

``manifest.json`` names every file with its size and SHA-256. A new file is written beside its place (``NAME.7.new``,
with the number of the commit) and entered in the manifest as pending, which is the instant from which it counts; then
it is renamed. So a process that is killed at any point leaves all of the old files or all of the new ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from attrs import evolve, frozen

from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.names import MANIFEST
from stackwise_core.system.files import EXHAUSTED, publish, publish_text, sha256, sync

OTHER_CHECKSUM = f"damaged; its checksum isn't the one in {MANIFEST}"


@frozen
class _Content:
    """Content of manifest.json."""

    files: Mapping[str, dict[str, Any]] = MappingProxyType({})
    commit: int = 0
    """Number of times that files were written or dropped."""
    pending: frozenset[str] = frozenset()
    """Files of the last commit that may not be in their place yet."""
    dropped: frozenset[str] = frozenset()
    """Files that the last commit dropped, and that may still be there."""


class Manifest:
    """The files of a directory. Only one process may write; any may read at the same time."""

    def __init__(self, directory: Path) -> None:
        """Read the manifest of a directory, if there is one.

        Raises:
            StackwiseError: it is no manifest.
        """
        self.directory = directory
        self._content = self._read()
        self._staged: dict[str, dict[str, Any]] | None = None
        self._dropped: set[str] = set()
        for name in self._content.pending:
            # The writer may do so at the same time, or may be dead. What can't be renamed is read where it is.
            with suppress(OSError):
                os.replace(self._beside(name), directory / name)

    def __contains__(self, name: str) -> bool:
        return name in self._content.files

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._content.files))

    def about(self, name: str) -> dict[str, Any]:
        """Return what is known of a file: ``bytes``, ``sha256``, and what was said when it was written."""
        return self._content.files[name]

    def write(self, name: str, fill: Callable[[Path], object], **about: Any) -> None:
        """Let ``fill`` write a file, in place of an older one. It is read once more to be hashed.

        Args:
            name: relative to the directory, with forward slashes.
            about: JSON values to keep with its entry.
        """

        def fill_and_read(beside: Path) -> str:
            fill(beside)
            return sha256(beside)

        self.write_hashed(name, fill_and_read, **about)

    def write_hashed(self, name: str, fill: Callable[[Path], str], **about: Any) -> None:
        """Let ``fill`` write a file, and take the SHA-256 that it returns. Arguments as for ``write``."""
        with self.together():
            assert self._staged is not None
            beside, digests = self._beside(name), list[str]()
            _make_folder(beside.parent)
            publish(beside, lambda path: digests.append(fill(path)))
            self._staged[name] = {"bytes": beside.stat().st_size, "sha256": digests[0], **about}
            self._dropped.discard(name)

    def drop(self, name: str) -> None:
        """Delete a file."""
        with self.together():
            assert self._staged is not None
            if self._staged.pop(name, None) is not None:
                self._beside(name).unlink()
            if name in self:
                self._dropped.add(name)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make what is written and dropped within it take effect at its end, all of it or nothing."""
        if self._staged is not None:
            yield
            return
        self._put_in_place()
        before = self._content
        self._content = evolve(before, commit=before.commit + 1)
        self._staged, self._dropped = {}, set()
        try:
            yield
            if self._staged or self._dropped:
                kept = {name: entry for name, entry in before.files.items() if name not in self._dropped}
                self._publish(
                    _Content(
                        files={**kept, **self._staged},
                        commit=self._content.commit,
                        pending=frozenset(self._staged),
                        dropped=frozenset(self._dropped),
                    )
                )
            else:
                self._content = before
        except BaseException:
            # A signal may come when manifest.json was renamed already; what stands there is what counts.
            failed = self._content.commit
            self._content = self._read()
            if self._content.commit != failed:
                self._delete(f"*.{failed}.new")
            raise
        finally:
            self._staged, self._dropped = None, set()
        self._put_in_place()

    def recover(self) -> None:
        """Complete a killed writer's commit, and delete its other files, before the next writer begins."""
        self._put_in_place()
        self._delete("*.new", ".*.tmp")

    def where(self, name: str) -> Path:
        """Return the path at which a file is at this moment."""
        beside = self._beside(name)
        return beside if name in self._content.pending and beside.exists() else self.directory / name

    def checked(self, name: str) -> Path:
        """Return the path of a file, once it was compared with its entry.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        path = self.present(name)
        self.compare(name, sha256(path))
        return path

    def present(self, name: str) -> Path:
        """Return the path of a file that is there, and as long as its entry says; ``compare`` is for its content.

        Raises:
            StackwiseError: it is missing, or of another size.
        """
        problem = self._absence(name) if name in self else "the run hasn't written it"
        if problem:
            raise StackwiseError(f"{self.directory / name}: {problem}.")
        return self.where(name)

    def compare(self, name: str, digest: str) -> None:
        """Compare the SHA-256 of what was read of a file with its entry.

        Raises:
            StackwiseError: they differ.
        """
        if digest != self.about(name)["sha256"]:
            raise StackwiseError(f"{self.directory / name}: {OTHER_CHECKSUM}.")

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a file, or None."""
        absence = self._absence(name)
        if absence is None and sha256(self.where(name)) != self.about(name)["sha256"]:
            return OTHER_CHECKSUM
        return absence

    def _absence(self, name: str) -> str | None:
        entry, path = self.about(name), self.where(name)
        if not path.is_file():
            return "missing; it was deleted since it was written"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"damaged; it has {size} bytes, and {MANIFEST} says {entry['bytes']}"
        return None

    def _is_ours(self, folder: Path) -> bool:
        """Return whether a folder is within the directory, and not by name alone: a link could lead to anything."""
        here = Path(os.path.realpath(self.directory))
        return Path(os.path.realpath(folder)) == here / folder.relative_to(self.directory)

    def _beside(self, name: str) -> Path:
        """Return the path of a file of the last commit until it is renamed. No other commit's has this name."""
        return self.directory / f"{name}.{self._content.commit}.new"

    def _delete(self, *patterns: str) -> None:
        for pattern in patterns:
            for stray in self.directory.rglob(pattern):
                stray.unlink()

    def _put_in_place(self) -> None:
        """Finish the last commit."""
        content = self._content
        if not content.pending and not content.dropped:
            return
        for name in content.pending:
            with suppress(FileNotFoundError):  # a reader came first
                os.replace(self._beside(name), self.directory / name)
        for name in content.dropped:
            (self.directory / name).unlink(missing_ok=True)
        for name in content.dropped:
            for folder in (self.directory / name).parents:
                with suppress(OSError):  # there is something left in it
                    if folder != self.directory and self.directory in folder.parents:
                        folder.rmdir()
        for folder in {(self.directory / name).parent for name in content.pending | content.dropped}:
            if folder.is_dir():
                sync(folder)
        self._publish(evolve(content, pending=frozenset(), dropped=frozenset()))

    def _publish(self, content: _Content) -> None:
        data = {
            "format": 1,
            "files": dict(sorted(content.files.items())),
            "commit": content.commit,
            "pending": sorted(content.pending),
            "dropped": sorted(content.dropped),
        }
        publish_text(self.directory / MANIFEST, json.dumps(data, indent=2) + "\n")
        self._content = content

    def _read(self) -> _Content:
        path = self.directory / MANIFEST
        if not path.exists():
            return _Content()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found, files, commit = data["format"], data["files"], data.get("commit", 0)
            pending, dropped = frozenset(data.get("pending", ())), frozenset(data.get("dropped", ()))
            entries = files.items()
            fine = (
                type(commit) is int
                and pending <= set(files)
                and dropped.isdisjoint(files)
                and all(type(name) is str and _stays_inside(name) for name in {*files, *dropped})
                and all(map(self._is_ours, {(self.directory / name).parent for name in {*files, *dropped}}))
                and all(type(entry["bytes"]) is int and type(entry["sha256"]) is str for _, entry in entries)
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                raise
            raise StackwiseError(f"{path}: not a manifest: {type(error).__name__}: {error!s:.200}") from error
        if found != 1:
            raise StackwiseError(f"{path}: expected a manifest of format 1, found format {found!r:.40}")
        if not fine:
            raise StackwiseError(
                f"{path}: not a manifest: an entry isn't a file of this directory, its size and SHA-256"
            )
        return _Content(files, commit, pending, dropped)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        sync(folder.parent)


def _stays_inside(name: str) -> bool:
    """Return whether a name leads to a file within the directory, other than the manifest itself."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and "\\" not in name and name.isprintable() and path != PurePosixPath(MANIFEST)
