"""Compressed files: read as the files that they stand for, and refused where they are cut short or damaged."""

import gzip
import importlib.util
import json

import pytest
import zstandard

from stackwise_text import jsonl
from stackwise_text.reading import documents
from tests.texts import TEXTS

LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def zstd(content):
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


COMPRESS = {"gz": gzip.compress, "zst": zstd}
each_kind = pytest.mark.parametrize("ending", COMPRESS)


@each_kind
def test_lines_and_texts(tmp_path, texts, ending):
    """A compressed .jsonl or .txt has the documents of the plain one."""
    (tmp_path / f"a.jsonl.{ending}").write_bytes(COMPRESS[ending](LINES))
    (tmp_path / f"B.MD.{ending.upper()}").write_bytes(COMPRESS[ending](b"\xef\xbb\xbfone\r\n"))
    assert texts(tmp_path) == ["one\r\n", *TEXTS]


@each_kind
def test_several_members(tmp_path, texts, ending):
    """Files that were compressed by themselves and put together are read to their end."""
    half = len(LINES) // 2
    compress = COMPRESS[ending]
    (tmp_path / f"a.jsonl.{ending}").write_bytes(compress(LINES[:half]) + compress(LINES[half:]))
    assert texts(tmp_path) == TEXTS


@each_kind
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.9, -1])
def test_cut_short(tmp_path, complaint, ending, name, kept):
    """A file that ends too soon is never taken for a whole one."""
    content = COMPRESS[ending](LINES)
    file = tmp_path / f"{name}.{ending}"
    file.write_bytes(content[: int(kept * len(content)) if kept >= 0 else kept])
    code, message = complaint(file)
    kind = {"gz": "gzip", "zst": "zstd"}[ending]
    assert code == 2
    assert message.startswith(f"{file}:")
    assert message.endswith(f": expected a whole {kind} file, found one that is cut short")


@each_kind
def test_a_text_without_a_character(tmp_path, texts, ending):
    """A file that stands for no text at all is whole, and passed over."""
    (tmp_path / f"a.jsonl.{ending}").write_bytes(COMPRESS[ending](b""))
    (tmp_path / "b.txt").write_text("one")
    assert texts(tmp_path) == ["one"]


def test_a_long_window(tmp_path, texts):
    """What ``zstd --long=31`` wrote is read, though it reaches further back than its library allows unasked."""
    options = zstandard.ZstdCompressionParameters(window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()  # of a size that isn't known before
    (tmp_path / "a.jsonl.zst").write_bytes(stream.compress(LINES) + stream.flush())
    assert texts(tmp_path) == TEXTS


@each_kind
def test_damaged(tmp_path, complaint, ending):
    """What the checksum doesn't fit is refused, and the line told up to which it was read."""
    content = bytearray(COMPRESS[ending](LINES))
    content[{"gz": -8, "zst": -4}[ending]] ^= 8  # of the checksum itself: a text is rarely so lucky as to be no text
    (tmp_path / f"a.jsonl.{ending}").write_bytes(content)
    code, message = complaint(tmp_path / f"a.jsonl.{ending}")
    assert code == 2
    assert ": expected a whole " in message
    assert "found a damaged one" in message
    assert 1 <= int(message.split(f"a.jsonl.{ending}:")[1].split(":")[0]) <= len(TEXTS) + 1


@each_kind
def test_what_comes_before_the_fault_is_read(tmp_path, ending):
    """Documents are streamed: those before the place where a file is cut are there."""
    content = COMPRESS[ending](LINES * 50)
    (tmp_path / f"a.jsonl.{ending}").write_bytes(content[:-20])
    stream = documents(str(tmp_path / f"a.jsonl.{ending}"))
    assert [next(stream).text for _ in range(200)] == (TEXTS * 2)[:200]


@each_kind
def test_not_compressed_at_all(tmp_path, complaint, ending):
    """A plain file with a compressed file's name is damaged."""
    (tmp_path / f"a.jsonl.{ending}").write_bytes(LINES)
    assert "found a damaged one" in complaint(tmp_path / f"a.jsonl.{ending}")[1]


@each_kind
def test_a_bomb(tmp_path, complaint, monkeypatch, ending):
    """A line without end is given up at the longest that is allowed, whatever it would come to."""
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1 << 22)
    (tmp_path / f"a.jsonl.{ending}").write_bytes(COMPRESS[ending](b'{"text": "' + b"x" * (1 << 25)))
    code, message = complaint(tmp_path / f"a.jsonl.{ending}")
    assert code == 2
    assert message.endswith(":1: expected a JSON object of at most 4 MiB, found a longer line")


def test_other_encodings_in_compressed_files(tmp_path, complaint):
    """Offsets are those of the text, and the advice looks at that, too."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo \xe9"))
    assert complaint(tmp_path)[1] == (
        f"{tmp_path}/a.txt.gz:2: expected UTF-8, found byte 0xe9 at offset 8 of the decompressed file; if it is "
        "ISO-8859-1, convert it with: iconv -f ISO-8859-1 -t UTF-8"
    )


def test_without_zstandard(tmp_path, complaint, monkeypatch):
    """A .zst without the library is an error that says how to get it, before anything is read."""
    from stackwise_text import files

    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert complaint(tmp_path) == (
        3,
        f"{tmp_path}/a.jsonl.zst: reading it needs the package zstandard, which is not installed: "
        'pip install "stackwise-text[zstd]"',
    )
    assert importlib.util.find_spec("zstandard")
