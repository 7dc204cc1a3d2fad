"""Baselines of the quality benchmark."""

import math
from collections import Counter

import pytest

from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from tests.benchmarks.quality.baselines import baselines
from tests.texts import prepared
from tests.tiny import tiny_config


def test_the_baselines_are_what_a_loop_over_the_bytes_gives(tmp_path):
    """Uniform noise costs ln 256; the unigram model is fitted on the one split and measured on the other."""
    config, _ = tiny_config(tmp_path)
    tokenizer = load_tokenizer("bytes", mask_token=None)
    corpus = prepared(config.data, tokenizer)

    def tokens(split):
        rows = split.rows(list(range(len(split))))
        return [int(token) for token in rows.tokens.ravel() if token < 256]

    seen, expected = Counter(tokens(corpus.train)), tokens(corpus.validation)
    whole = sum(seen.values()) + 256
    unigram = -sum(math.log((seen[token] + 1) / whole) for token in expected) / len(expected)
    found = baselines(corpus, tokenizer)
    assert found == {"uniform noise": pytest.approx(math.log(256)), "unigram": pytest.approx(unigram)}
    assert found["unigram"] < found["uniform noise"]
