"""Predictable tokens of a row, compared with a plain loop over its tokens."""

import itertools

import numpy as np

from stackwise_core.engine.draws.draws import shifted
from stackwise_core.engine.draws.sequences import Rows
from stackwise_core.engine.tokenizer.predictable import predictable

ROWS = np.array(list(itertools.product(range(3), repeat=4)), dtype=np.int32)
"""Every row of four tokens that are special or of one of two documents."""


def test_masked_tokens_are_those_of_documents():
    """With masks, whatever belongs to a document is to be predicted."""
    expected = [[number > 0 for number in row] for row in ROWS.tolist()]
    assert predictable(ROWS, causal=False).tolist() == expected


def test_causally_a_token_needs_one_of_its_document_before_it():
    """Neither a document's first token, nor one after a special token, nor a row's first is predicted."""
    expected = [[at > 0 and row[at] == row[at - 1] > 0 for at in range(4)] for row in ROWS.tolist()]
    assert predictable(ROWS, causal=True).tolist() == expected


def test_draws_ask_for_just_these_tokens():
    """The targets of ``clm`` are the tokens that are to be predicted, each asked for at the position before it."""
    tokens = np.arange(ROWS.size, dtype=np.int32).reshape(ROWS.shape)
    draws = shifted(Rows(tokens, ROWS), np.arange(len(ROWS)))
    expected = [
        int(tokens[row, at])
        for row, at in itertools.product(range(len(ROWS)), range(1, 4))
        if ROWS[row, at - 1] == ROWS[row, at] > 0
    ]
    assert draws.targets.tolist() == expected
    assert draws.masked.tolist() == [target - 1 for target in expected]
    assert draws.scored == len(expected)


def test_causal_samples_are_the_rows_with_something_to_predict(prepared, masked_bpe):
    """Of rows in which documents have one token, or special tokens stand between all, none is a sample of ``clm``."""
    texts = ["x", "y", "zzzz", "x[MASK]x", "y", "x[MASK]", "zz"]
    both = [
        prepared(texts, masked_bpe, seq_len=2, validation_fraction=0.0, causal=causal).train for causal in (False, True)
    ]
    rows = [split.rows(np.arange(len(split))) for split in both]
    some = predictable(rows[0].segments, causal=True).any(axis=1)
    assert 0 < some.sum() < len(some)
    assert rows[1].tokens.tolist() == rows[0].tokens[some].tolist()
    assert rows[1].segments.tolist() == rows[0].segments[some].tolist()
