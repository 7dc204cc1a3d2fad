import numpy as np
import pytest
import torch

from stackwise_core.engine.rack.attention_context import SHORTEST, Documents

CPU = torch.device("cpu")


def seen_of(documents: Documents, rows: int) -> np.ndarray:
    """Who sees whom in the packed sequence that documents describe, put back to flat positions: bool [B T, B T]."""
    packed = documents.on(CPU)
    count = rows * documents.tokens
    order = np.arange(count) if packed.order is None else packed.order.numpy()
    assert packed.back is None or np.array_equal(order[packed.back.numpy()], np.arange(count))
    document = np.searchsorted(packed.bounds.numpy(), np.arange(count), side="right")
    seen = np.zeros((count, count), dtype=bool)
    seen[np.ix_(order, order)] = document[:, None] == document[None]
    return seen


@pytest.mark.parametrize(
    "segments",
    [
        [[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]],
        [[1, 1, 2, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 1, 1, 0, 2], [1, 0, 1, 1, 0], [2, 1, 2, 0, 1]],
    ],
)
def test_a_token_sees_its_own_document(segments):
    """In its row, and no token of segment 0 but itself."""
    rows = np.array(segments, dtype=np.int32)
    row, flat = np.arange(rows.size) // rows.shape[1], rows.reshape(-1)
    expected = (row[:, None] == row) & (flat[:, None] == flat) & (flat > 0) | np.eye(rows.size, dtype=bool)
    assert np.array_equal(seen_of(Documents.of(rows), len(rows)), expected)
    assert np.array_equal(seen_of(Documents.of(torch.from_numpy(rows)), len(rows)), expected)


def test_rows_of_one_document_need_nothing():
    """No tensor goes to the device."""
    assert Documents.of(np.array([[1, 1, 1], [2, 2, 2]])).on(CPU) is None


def test_tokens_stay_where_they_are_unless_a_document_goes_on_behind_a_special_token():
    """Documents between special tokens and padding aren't gathered; within their documents, order is kept."""
    assert Documents.of(np.array([[0, 1, 1, 0, 2, 2, 0, 0]])).on(CPU).order is None
    inside = Documents.of(np.array([[1, 0, 1, 2], [1, 1, 0, 1]])).on(CPU)
    assert inside.order.tolist() == [0, 2, 1, 3, 4, 5, 7, 6]
    assert inside.bounds.tolist() == [0, 2, 3, 4, 7, 8]


def test_the_longest_document_is_one_of_few_numbers():
    """A power of two at least as long, so that kernels and compiled blocks meet few."""
    found = {
        length: Documents.of(np.array([[1] * length + [2] * (700 - length)])).longest for length in (350, 512, 513, 699)
    }
    assert found == {350: 512, 512: 512, 513: 1024, 699: 1024}
    assert Documents.of(np.array([[1, 2]])).longest == SHORTEST


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", [[[1, 1, 2, 0, 0], [0, 0, 0, 0, 0]], [[0, 1, 1, 0, 2], [1, 0, 1, 1, 0]]])
def test_a_mask_shows_who_sees_whom(segments, causal):
    """The mask agrees with the packed documents, row by row, up to the token itself where the order is causal."""
    documents = Documents.of(np.array(segments))
    rows, tokens = len(segments), documents.tokens
    expected = seen_of(documents, rows).reshape(rows, tokens, rows, tokens)
    expected = np.stack([expected[row, :, row] for row in range(rows)])
    mask = documents.mask(causal=causal)
    assert mask.shape == (rows, 1, tokens, tokens)
    assert np.array_equal(mask[:, 0].numpy(), np.tril(expected) if causal else expected)
