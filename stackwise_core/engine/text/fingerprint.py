"""The name of a tokenised corpus: a hash of all that decides its rows, and of nothing else."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from stackwise_core.config.model import DataConfig
from stackwise_core.engine.text.sources import share_held_out
from stackwise_core.engine.text.text_source import Source
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer

FORMAT = 3
"""Version of the files; part of the directory's name, so that a change of it prepares every corpus anew."""
COUNTING = 2
"""Version of how long texts are cut for a tokenizer.json, and of the bytes that tokens stand for; part of the name
likewise."""


def fingerprint(sources: Sequence[Source], hashes: Mapping[Path, str], data: DataConfig, tokenizer: Tokenizer) -> str:
    """Return the hash of all that decides the rows; names of files and sources don't.

    Args:
        hashes: of the content of every file of the sources.
    """
    texts = [(source.content(hashes), source.named.weight, source.named.is_validation) for source in sources]
    version = () if tokenizer.is_bytewise else (COUNTING,)
    held_out = share_held_out(sources, data)
    decisive = (FORMAT, texts, tokenizer.fingerprint, data.seq_len, held_out, *version)
    return hashlib.blake2b(repr(decisive).encode(), digest_size=16).hexdigest()
