"""Where the text comes from: a built-in corpus, a file, a directory or a glob, as a stream of documents."""

import glob
import json
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise_core.errors import UnavailableError, UsageError

BUILT_IN = "python-docs"
ENDINGS = (".txt", ".md", ".jsonl")
BOM = "\ufeff"
LOOKED_AT = 8192
"""Bytes of a file's beginning from which it is guessed what it is."""


@frozen
class Document:
    """A text that hangs together: no token of it sees another document's tokens."""

    name: str
    """The file, ``file:line`` in a .jsonl, or the topic of the built-in corpus; for messages only."""
    text: str


def documents(corpus: str, *, text_field: str) -> Iterator[Document]:
    """Stream the documents of a corpus, in an order that depends on the names of its files only.

    A .txt or .md file is one document, so is a line of a .jsonl; empty ones and blank lines are passed over. In a
    directory (searched recursively) hidden files and files with other endings are passed over too; a file that is
    named, or found by a glob, must have a known ending. Bytes are kept as they are, line ends included, but for a
    byte order mark.

    Args:
        corpus: ``"python-docs"``, or the path of a file or a directory, or a glob, in which ``**`` is any depth.
        text_field: field of a .jsonl line that holds its text.

    Raises:
        UsageError: nothing is there, or something in it isn't what it should be. Since documents are streamed, a
            fault in a file shows when the stream gets there.
    """
    found = 0
    for document in _python_docs() if corpus == BUILT_IN else _from_files(_files(corpus), text_field):
        if document.text:
            found += 1
            yield document
    if not found:
        raise UsageError(f"{corpus}: expected text, but there is not one character in it")


def _python_docs() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UnavailableError(
            f'the corpus "{BUILT_IN}" is read from pydoc_data.topics, which this Python lacks; '
            "name a file or a directory of text as data.corpus"
        ) from None
    for name in sorted(topics):
        yield Document(name, topics[name])


def _files(corpus: str) -> list[Path]:
    path = Path(corpus)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        inside = _glob(os.path.join(glob.escape(corpus), "**", "*"))
        found = [file for file in inside if file.suffix.lower() in ENDINGS]
        if not found:
            others = ", ".join(sorted({file.suffix or file.name for file in inside})[:5])
            raise UsageError(
                f"{corpus}: expected {_listed(ENDINGS)} files in this directory or below it, found "
                + (f"only {others}" if others else "no files at all")
            )
    else:
        found = _glob(corpus) if glob.has_magic(corpus) else []
        if not found:
            raise UsageError(f"{corpus}: nothing is there{_nearest_name(path)}")
    for file in found:
        if file.suffix.lower() not in ENDINGS:
            nearest = get_close_matches(file.suffix.lower(), ENDINGS, n=1)
            raise UsageError(
                f"{file}: expected a file that ends in {_listed(ENDINGS)}, found "
                + (f'"{file.suffix}"' if file.suffix else "no ending")
                + (f'; the nearest is "{nearest[0]}"' if nearest else "")
                + (f"; narrow the glob {corpus}" if file != path else "")
            )
    return found


def _glob(pattern: str) -> list[Path]:
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(match)]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


def _nearest_name(path: Path) -> str:
    """What the message about a missing path goes on to say."""
    folder, missing = path.parent, path.name
    while glob.has_magic(str(folder)) or not folder.is_dir():
        if folder == folder.parent:
            return ""
        folder, missing = folder.parent, folder.name
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        return f"; {folder} can't be read ({error.strerror})"
    nearest = get_close_matches(missing, [*names, BUILT_IN], n=1, cutoff=0.5)
    if nearest == [BUILT_IN]:
        return f'; the built-in corpus is called "{BUILT_IN}"'
    if nearest:
        return f"; the nearest name is {folder / nearest[0]}"
    return f"; {folder} holds " + (", ".join(names[:5] + ["..."] * (len(names) > 5)) or "nothing")


def _from_files(files: list[Path], text_field: str) -> Iterator[Document]:
    for file in files:
        try:
            if file.suffix.lower() == ".jsonl":
                yield from _lines(file, text_field)
            else:
                yield Document(str(file), _decoded(file.read_bytes(), file))
        except OSError as error:
            raise UsageError(f"{file}: expected a file that can be read: {error.strerror}") from None


def _lines(file: Path, text_field: str) -> Iterator[Document]:
    offset = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = _decoded(line, file, line=number, offset=offset)
            offset += len(line)
            if text.strip():
                yield Document(f"{file}:{number}", _field(text, f"{file}:{number}", text_field))


def _decoded(raw: bytes, file: Path, *, line: int = 1, offset: int = 0) -> str:
    """``offset`` and ``line`` say where in the file these bytes begin."""
    try:
        text = raw.decode("utf-8")
        fault = raw.find(0, 0, max(0, LOOKED_AT - offset))  # UTF-8, too, but as git and grep do: no text begins so
    except UnicodeDecodeError as error:
        fault = error.start
    if fault >= 0:
        raise UsageError(
            f"{file}:{line + raw.count(10, 0, fault)}: expected UTF-8, found byte 0x{raw[fault]:02x} at "
            f"offset {offset + fault} of the file; {_advice(file)}"
        )
    return text if offset else text.removeprefix(BOM)


def _advice(file: Path) -> str:
    """What to do about a file that isn't UTF-8."""
    with file.open("rb") as stream:
        start = stream.read(LOOKED_AT)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "UTF-16"
    elif 0 in start:
        return "it looks like a binary file: convert it to text, or leave it out of data.corpus"
    else:
        encoding = "ISO-8859-1"
    return f"if it is {encoding}, convert it with: iconv -f {encoding} -t UTF-8"


def _field(line: str, where: str, text_field: str) -> str:
    try:
        record = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}:{error.colno}: expected a JSON object, found bad JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        raise UsageError(f"{where}: expected a JSON object, found bad JSON: {error}") from None
    example = json.dumps({text_field: "..."})
    if not isinstance(record, dict):
        raise UsageError(f"{where}: expected a JSON object such as {example}, found {_kind(record)}")
    if text_field not in record:
        nearest = get_close_matches(text_field, record, n=1, cutoff=0.5)
        texts = [name for name, value in record.items() if isinstance(value, str)]
        if not nearest and len(texts) == 1:
            nearest = texts
        raise UsageError(
            f'{where}: expected a field "{text_field}" (data.text_field), found '
            + (", ".join(json.dumps(name) for name in list(record)[:8]) or "no field at all")
            + (f'; the nearest is "{nearest[0]}"' if nearest else "")
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise UsageError(f'{where}: expected a text in the field "{text_field}", found {_kind(text)}')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f'{where}: expected Unicode text in the field "{text_field}", found half a surrogate pair '
            f"(\\u{ord(text[error.start]):04x}) at character {error.start}"
        ) from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
