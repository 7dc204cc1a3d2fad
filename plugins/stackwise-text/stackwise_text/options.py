"""Options of the corpus."""

from attrs import frozen

from stackwise_core.options import option, path_text

BUILT_IN = "python-docs"


@frozen
class FilesOptions:
    path: str = option(
        BUILT_IN,
        'The built-in "python-docs" (the reference texts that ship with CPython); or a path, directory or glob of '
        ".txt, .md, .jsonl (these also as .gz or .zst) and .parquet files; or a directory that the library datasets "
        'saved. Relative to the TOML. Of a data set with splits, train is read, or the split that "PATH#SPLIT" names; '
        '"PATH#SUBSET" names one of several subsets.',
        check=path_text,
        path=(BUILT_IN,),
    )
