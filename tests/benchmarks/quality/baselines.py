"""Baselines without a network: the cross entropy of models without context, which is their NELBO."""

import numpy as np

from stackwise_core.engine.draws.sequences import Split, TokenisedCorpus
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer

ROWS_AT_ONCE = 4096


def token_counts(split: Split, vocab_size: int) -> np.ndarray:
    """Count each token at places that can be scored, int [vocab_size]."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(split), ROWS_AT_ONCE):
        rows = split.rows(np.arange(start, min(start + ROWS_AT_ONCE, len(split))))
        counts += np.bincount(rows.tokens[rows.scorable], minlength=vocab_size)
    return counts


def baselines(corpus: TokenisedCorpus, tokenizer: Tokenizer) -> dict[str, float]:
    """Nats a byte on the validation split: of uniform noise, and of the training split's token frequencies.

    Both are over the tokens that can be masked at all. Each frequency has one added, so that none is zero.
    """
    real = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
    seen = token_counts(corpus.train, tokenizer.vocab_size)[real] + 1
    expected = token_counts(corpus.validation, tokenizer.vocab_size)[real]
    unigram = -(expected * np.log(seen / seen.sum())).sum() / expected.sum()
    tokens_per_byte = corpus.validation.tokens / corpus.validation.bytes
    return {
        "uniform noise": float(np.log(len(real))) * tokens_per_byte,
        "unigram": float(unigram) * tokens_per_byte,
    }
