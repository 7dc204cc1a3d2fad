"""Entries of a run's manifest: copies of files from elsewhere, and the directory's place at that time."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from attrs import frozen

from stackwise_core.hookspecs import INTERFACES
from stackwise_core.run_files.names import CONFIG, MANIFEST, PLUGINS


@frozen
class KeptPlugin:
    """A copy of a local plugin file."""

    path: Path
    sha256: str
    declares: tuple[tuple[str, str], ...]
    """Hook and name of each of its implementations."""


@frozen
class Kept:
    """Entries of a run's manifest about the files that its configuration names."""

    written_in: Path | None = None
    """The run's directory, without links, when config.toml was written."""
    contents: Mapping[str, str] = MappingProxyType({})
    """Hashes of the content at paths when the run was written, by the dotted keys of the paths."""
    plugins: Mapping[str, KeptPlugin] = MappingProxyType({})
    """Copies of local plugin files, by the file's name."""

    @classmethod
    def of(cls, directory: Path) -> "Kept":
        """Read the entries from a run's manifest. Missing or malformed entries are left out."""
        try:
            files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
            entries = {name: entry for name, entry in files.items() if isinstance(entry, dict)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return cls()
        about = entries.get(CONFIG, {})
        written_in, contents = about.get("written_in"), about.get("contents")
        paths = (PurePosixPath(name) for name in entries if name.startswith(f"{PLUGINS}/"))
        plugins = {path: entries[str(path)] for path in paths if len(path.parts) == 2}
        return cls(
            written_in=Path(written_in) if isinstance(written_in, str) and "\0" not in written_in else None,
            contents={key: hash_ for key, hash_ in contents.items() if isinstance(hash_, str)}
            if isinstance(contents, dict)
            else {},
            plugins={
                path.name: KeptPlugin(directory / path, str(entry.get("sha256")), _declared(entry))
                for path, entry in plugins.items()
            },
        )


def _declared(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    listed = entry.get("declares")
    pairs = listed if isinstance(listed, list) else []
    return tuple(
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and pair[0] in INTERFACES and isinstance(pair[1], str)
    )
