"""A .parquet file: a document a row, a few rows at a time."""

from collections.abc import Iterator

from stackwise_core.interfaces.corpus import Consumed, Document, TextField
from stackwise_text.columns import ROWS, check_column, documents_of, not_whole
from stackwise_text.compression import BLOCK
from stackwise_text.files import CorpusFile


def read_parquet(file: CorpusFile, field: TextField, consumed: Consumed | None) -> Iterator[Document]:
    """Yield a document for each row with a non-empty text. Other columns aren't read."""
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
        raise not_whole(file, "parquet file", done, error) from None
