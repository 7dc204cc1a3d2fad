"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def corpus() -> list[Implementation]:
    factory, options = "stackwise_text.corpus:Files", "stackwise_text.options:FilesOptions"
    summary = "Text files, directories, globs and data sets; the built-in python-docs"
    return [Implementation("files", summary, factory, options)]
