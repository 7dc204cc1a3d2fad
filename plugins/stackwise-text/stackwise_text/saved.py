"""A file of a data set that the library ``datasets`` saved with ``save_to_disk``: a document a row.

Only its Arrow file is handed to the library. ``state.json`` could have it import other libraries (``_format_type``),
and a column's feature could have it open files and addresses as rows are decoded; here rows stay as Arrow has them.
"""

from collections.abc import Iterator

from stackwise_core.interfaces.corpus import Consumed, Document, TextField
from stackwise_core.system.quiet_imports import importing_quietly
from stackwise_text.columns import ROWS, check_column, documents_of, not_whole
from stackwise_text.files import CorpusFile


def read_saved(file: CorpusFile, field: TextField, consumed: Consumed | None) -> Iterator[Document]:
    """Yield a document for each row with a non-empty text. The file is mapped into memory, not read whole."""
    with importing_quietly():
        import datasets
        import pyarrow
    size, done = file.path.stat().st_size, 0
    try:
        table = datasets.Dataset.from_file(str(file.path)).with_format("arrow")
        check_column(table.data.schema, file, field)
        for batch in table.select_columns([field.name]).iter(batch_size=ROWS):
            for chunk in batch.column(0).chunks:
                yield from documents_of(chunk, file, field, done + 1)
                if consumed:
                    consumed(size * (done + len(chunk)) // len(table) - size * done // len(table))
                done += len(chunk)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise not_whole(file, "Arrow file of the library datasets", done, error) from None
