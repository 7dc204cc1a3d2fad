"""Options of the corpus."""

from attrs import frozen

from stackwise_core.options import option, path_text

BUILT_IN = "python-docs"


@frozen
class FilesOptions:
    path: str = option(
        BUILT_IN,
        'The built-in "python-docs" (the reference texts that ship with CPython), or a path, directory or glob of '
        ".txt, .md, .jsonl (these also as .gz or .zst) and .parquet files, or a directory that the library datasets "
        'saved; relative to the TOML. Of a data set with splits train is read, or "PATH#SPLIT"; "PATH#SUBSET" is one '
        "of several.",
        check=path_text,
        path=(BUILT_IN,),
    )
