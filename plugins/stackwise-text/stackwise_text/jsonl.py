"""A .jsonl file: a document a line."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.corpus import Consumed, Document, TextField
from stackwise_text.compression import DamagedError, opened
from stackwise_text.files import CorpusFile
from stackwise_text.utf8 import decoded

LONGEST_LINE = 1 << 28
"""Bytes. A line is parsed whole; a few kilobytes of a compressed file can stand for a line without end."""


def read_jsonl(file: CorpusFile, field: TextField, consumed: Consumed | None) -> Iterator[Document]:
    """Yield a document for each line with a non-empty text. Blank lines are skipped."""
    number = offset = 0
    with opened(file, consumed) as stream:
        while True:
            number += 1
            where = f"{file.path}:{number}"
            try:
                line = stream.readline(LONGEST_LINE + 1)
            except DamagedError as error:
                raise UsageError(f"{where}: {error}") from None
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UsageError(
                    f"{where}: expected a JSON object of at most {LONGEST_LINE >> 20} MiB, found a longer line"
                )
            content = decoded(line, file, line=number, offset=offset)
            offset += len(line)
            if content.strip() and (text := _text(content, where, field)):
                yield Document(where, (text,))


def missing_field(where: str, field: TextField, names: list[str], texts: list[str], kind: str) -> str:
    """Return the message for a record or table without the field.

    Args:
        names: the fields that it has.
        texts: those of them that hold texts.
        kind: what it has, ``"field"`` or ``"column"``.
    """
    nearest = get_close_matches(field.name, names, n=1, cutoff=0.5)
    if not nearest and len(texts) == 1:
        nearest = texts
    return (
        f'{where}: expected a {kind} "{field.name}" ({field.key}), found '
        + (", ".join(json.dumps(name) for name in names[:8]) or f"no {kind} at all")
        + (f'; the nearest is "{nearest[0]}"' if nearest else "")
    )


def _text(line: str, where: str, field: TextField) -> str:
    try:
        record = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}:{error.colno}: expected a JSON object, found bad JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        raise UsageError(f"{where}: expected a JSON object, found bad JSON: {error}") from None
    if not isinstance(record, dict):
        example = json.dumps({field.name: "..."})
        raise UsageError(f"{where}: expected a JSON object such as {example}, found {_kind(record)}")
    if field.name not in record:
        texts = [name for name, value in record.items() if isinstance(value, str)]
        raise UsageError(missing_field(where, field, list(record), texts, "field"))
    text = record[field.name]
    if not isinstance(text, str):
        raise UsageError(f'{where}: expected a text in the field "{field.name}", found {_kind(text)}')
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f'{where}: expected Unicode text in the field "{field.name}", found half a surrogate pair '
            f"(\\u{ord(text[error.start]):04x}) at character {error.start}"
        ) from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
