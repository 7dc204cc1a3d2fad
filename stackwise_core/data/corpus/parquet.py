"""A .parquet file: a document a row, a few rows at a time."""

from collections.abc import Iterator

from stackwise_core.data.corpus.columns import ROWS, check_column, documents_of
from stackwise_core.data.corpus.compression import BLOCK, Consumed
from stackwise_core.data.corpus.document import Document, TextField
from stackwise_core.data.corpus.files import CorpusFile
from stackwise_core.data.corpus.utf8 import unreadable
from stackwise_core.errors import UsageError


def read_parquet(file: CorpusFile, field: TextField, consumed: Consumed | None) -> Iterator[Document]:
    """A document for each row whose text isn't empty. Other columns aren't read."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    size, done = file.path.stat().st_size, 0
    try:
        # With a buffer, a column of a row group is read page by page; without, whole.
        with ParquetFile(file.path, buffer_size=BLOCK, pre_buffer=False, page_checksum_verification=True) as table:
            check_column(table.schema_arrow, file, field)
            batches = table.iter_batches(batch_size=ROWS, columns=[field.name], use_threads=False)
            for batch in batches:
                yield from documents_of(batch.column(field.name), file, field, done + 1)
                if consumed:
                    rows = table.metadata.num_rows
                    consumed(size * (done + batch.num_rows) // rows - size * done // rows)
                done += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(file.path, error) from None
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{file.path}: expected a whole parquet file, found a damaged one"
            + (f" (after row {done})" if done else "")
            + f": {reason:.200}"
        ) from None
