"""The file that ``data.tokenizer`` names: read, or found missing, without any library."""

from difflib import get_close_matches
from pathlib import Path

from stackwise_core.errors import UsageError


def check_tokenizer_file(path: Path) -> None:
    """Refuse a path where no file can be opened.

    Raises:
        UsageError: nothing is there, or a directory, or the system won't open it.
    """
    try:
        path.open("rb").close()
    except FileNotFoundError:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = get_close_matches(path.name, [*names, "bytes"], n=1, cutoff=0.5)
        raise UsageError(
            f"{path}: expected a tokenizer.json, but nothing is there"
            + ('; the built-in tokenizer is called "bytes"' if nearest == ["bytes"] else "")
            + (f"; the nearest name is {path.parent / nearest[0]}" if nearest and nearest != ["bytes"] else "")
        ) from None
    except IsADirectoryError:
        inside = path / "tokenizer.json"
        raise UsageError(
            f"{path}: expected the path of a tokenizer.json, found a directory"
            + (f"; the nearest name is {inside}" if inside.is_file() else "")
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def read_tokenizer_file(path: Path) -> bytes:
    """Read the file.

    Raises:
        UsageError: as ``check_tokenizer_file``.
    """
    check_tokenizer_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: expected a tokenizer.json that can be read: {error.strerror}")
