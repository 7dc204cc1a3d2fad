"""A column of texts in Arrow's memory layout, as .parquet files and saved data sets have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.corpus import Document, TextField
from stackwise_core.system.files import unreadable
from stackwise_text.files import CorpusFile
from stackwise_text.jsonl import missing_field

if TYPE_CHECKING:
    import pyarrow

ROWS = 64
"""Rows in memory at once; a row can be a whole book."""


def check_column(schema: pyarrow.Schema, file: CorpusFile, field: TextField) -> None:
    """Refuse a table without a column of texts of that name.

    Raises:
        UsageError: there is none, or it holds something else.
    """
    if schema.names.count(field.name) != 1:
        texts = [name for name, kind in zip(schema.names, schema.types, strict=True) if _is_text(kind)]
        raise UsageError(missing_field(str(file.path), field, schema.names, texts, "column"))
    kind = schema.field(field.name).type
    if not _is_text(kind):
        raise UsageError(f'{file.path}: expected texts in the column "{field.name}" ({field.key}), found {kind!s:.80}')


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(is_text(kind) for is_text in (types.is_string, types.is_large_string, types.is_string_view))


def documents_of(column: pyarrow.Array, file: CorpusFile, field: TextField, first: int) -> Iterator[Document]:
    """Yield a document for each non-empty text.

    Args:
        first: the number of the column's first row in its file, from 1.

    Raises:
        UsageError: there is none in a row.
        pyarrow.ArrowInvalid: the column is damaged; nothing of it was looked at.
    """
    column.validate(full=True)  # offsets and UTF-8: a damaged file must not have us read beyond its end
    for number, text in enumerate(column.to_pylist(), start=first):
        if text is None:
            raise UsageError(f'{file.path}:{number}: expected a text in the column "{field.name}", found null')
        if text:
            yield Document(f"{file.path}:{number}", (text,))


def not_whole(file: CorpusFile, what: str, done: int, error: Exception) -> UsageError:
    """Return the error for a file that the system can't read, or that its library calls damaged.

    Args:
        what: the kind of file that it should be.
        done: how many of its rows were whole.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(file.path, error)
    after, reason = f" (after row {done})" if done else "", str(error).partition("\n")[0]
    return UsageError(f"{file.path}: expected a whole {what}, found a damaged one{after}: {reason:.200}")
