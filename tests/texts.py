"""Texts for tests, and what reads them."""

from pathlib import Path
from typing import Any

from stackwise_core.config.model import Choice, DataConfig
from stackwise_core.engine.draws.sequences import Progress, TokenisedCorpus, tokenise
from stackwise_core.engine.text.sources import find_sources
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.registry import Registry
from stackwise_text.options import FilesOptions

TEXTS = [f"Document {number} é says\n" + " ".join(f"word{number * 7 + i}" for i in range(30)) for number in range(150)]
REGISTRY = Registry.discover(environ={})


def files(path: Path | str) -> Choice:
    """The corpus that a path alone is short for."""
    return Choice("files", FilesOptions(str(path)))


def prepared(
    data: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None, **options: Any
) -> TokenisedCorpus:
    """The tokens of the texts that a configuration names."""
    return tokenise(find_sources(data, REGISTRY), data, tokenizer, progress, **options)
