"""Texts that are tokenised in windows, against the same texts tokenised whole."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackwise_core.engine.text import token_stream
from stackwise_core.engine.text.token_stream import Text, tokenise
from stackwise_core.engine.tokenizer import cutting
from stackwise_core.engine.tokenizer.cutting import cut
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.interfaces.corpus import Document
from tests.kinds_of_tokenizers import KINDS, save_kind
from tests.tiny import TEXT

PLAIN = 2 * TEXT.read_text()
TEXTS = {
    "lines": PLAIN,
    "one line": PLAIN.replace("\n", " "),
    "no space": "".join(PLAIN.split())[:5000],
    "digits": "".join(str(number**3) for number in range(700)),
    "one letter": "a" * 5000,
    "cjk": "日本é" * 1500,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(cutting, "PIECE", 1000)
    monkeypatch.setattr(cutting, "OVERLAP", 300)
    monkeypatch.setattr(token_stream, "BATCH", 2500)


def stream_of(texts, tokenizer, folder):
    """The ids of each text, and the bytes of all, as they are written."""
    folder.mkdir(exist_ok=True)
    documents = [Document("", [text]) for text in texts]
    stream = tokenise([Text(documents)], tokenizer, 16, folder, None)
    bounds = [*stream.document_starts.tolist(), stream.tokens]
    ids = [stream.ids(start, end).tolist() for start, end in pairwise(bounds)]
    units = np.concatenate([np.arange(0, end - start, 16) + start for start, end in pairwise(bounds)])
    counted = int(stream.bytes_from(np.arange(units.size)).sum())
    stream.remove()
    return ids, counted, stream.coverage


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_text_has_the_ids_of_the_whole(kind, folder, tmp_path, small_windows, caplog):
    """Whatever a tokenizer puts before a text, strips at its ends or counts from its beginning."""
    tokenizer = load_tokenizer(str(save_kind(kind, folder)), mask_token=None)
    for name, text in TEXTS.items():
        assert sum(1 for _ in cut([text], 300)) > 3
        (ids,), counted, coverage = stream_of([text], tokenizer, tmp_path / "out")
        whole = tokenizer.encode_joined([text])
        assert ids == whole.ids.tolist(), name
        known = ~np.isin(whole.ids, sorted(tokenizer.special_ids))
        assert counted == whole.widths[known].sum()
        assert coverage.bytes == len(text.encode())
        assert coverage.dropped == coverage.bytes - whole.widths.sum()
    assert not caplog.records


def test_a_word_that_is_too_long_is_cut_with_a_warning(folder, tmp_path, small_windows, monkeypatch, caplog):
    """Memory has a bound: beyond it the word is cut, which is said, and each of its bytes is still there once."""
    monkeypatch.setattr(cutting, "MOST_JOINED", 3)
    tokenizer = load_tokenizer(str(save_kind("words", folder)), mask_token=None)
    text = f"and the {'x' * 5000} and the God"
    (ids,), counted, coverage = stream_of([text], tokenizer, tmp_path / "out")
    whole = tokenizer.encode(["and the x and the God"])[0][0].tolist()
    assert (ids[:2], ids[-3:]) == (whole[:2], whole[-3:])
    assert set(ids[2:-3]) == tokenizer.unknown_ids
    assert 1 < len(ids[2:-3]) < 5
    assert counted == len("andtheandtheGod")
    assert (coverage.unknown, coverage.dropped) == (5000, 5)
    assert "its tokens depend on more than the 3000 characters" in caplog.text


def test_documents_keep_their_order_and_bounds(folder, tmp_path, small_windows):
    """Short documents between long ones, and empty ones, begin where they began."""
    tokenizer = load_tokenizer(str(save_kind("prepend", folder)), mask_token=None)
    texts = ["short", PLAIN, "", "a", PLAIN[100:], TEXTS["one letter"], "the end"]
    ids, _, coverage = stream_of(texts, tokenizer, tmp_path / "out")
    assert ids == [each.tolist() for each, _ in tokenizer.encode([text for text in texts if text])]
    assert coverage.bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("text", ["word " * 300, "\n\n  x" * 300, "日本" * 800, "x" * 1000])
def test_pieces_of_any_text(text, monkeypatch):
    """Text without lines is cut before spaces, text without spaces anywhere; nothing is lost or longer than allowed."""
    monkeypatch.setattr(cutting, "PIECE", 64)
    pieces = [window.text for window in cut([text], 0)]
    assert "".join(pieces) == text
    assert max(len(piece) for piece in pieces) <= 64
    if text.startswith("word"):
        assert all(piece.startswith(" word") for piece in pieces[1:])


def test_windows_share_text_with_their_neighbours(monkeypatch):
    """Each has the text on either side of its own, and its own texts are the whole, whatever parts it comes in."""
    monkeypatch.setattr(cutting, "PIECE", 64)
    text = "日x word é " * 40
    windows = list(cut([text], 10))
    assert windows == list(cut([text[:7], text[7:90], text[90:]], 10))
    own = [window.text[window.before : len(window.text) - window.after] for window in windows]
    assert "".join(own) == text
    assert [window.before for window in windows] == [0] + [10] * (len(windows) - 1)
    assert [window.after for window in windows] == [10] * (len(windows) - 1) + [0]
    for window, before, after in zip(windows[1:-1], own, own[2:], strict=False):
        assert window.text == before[-10:] + window.without_before().without_after().text + after[:10]
        assert window.text.encode()[window.begin : window.end] == window.without_before().without_after().text.encode()


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.text("ab \n", max_size=300), part=st.integers(1, 70))
def test_windows_do_not_depend_on_parts(monkeypatch, content, part):
    """What is tokenised at once is decided by the text alone."""
    monkeypatch.setattr(cutting, "PIECE", 32)
    parts = [content[start : start + part] for start in range(0, len(content), part)]
    windows = list(cut(parts, 8))
    assert windows == list(cut([content], 8))
    assert "".join(window.without_before().without_after().text for window in windows) == content
    assert all(0 < len(window.text) <= 32 + 2 * 8 for window in windows)
