"""Texts that are read in parts: the same as read whole, whatever the parts."""

import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackwise_text import text
from stackwise_text.reading import documents

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)


@relaxed
@given(content=st.text("aé日🙂\n ", max_size=60), part=st.integers(1, 9))
def test_any_parts(tmp_path, monkeypatch, content, part):
    """Characters that lie across two parts come out whole, and no part is empty."""
    monkeypatch.setattr(text, "PART", part)
    (tmp_path / "a.txt").write_bytes(content.encode())
    if content:
        (parts,) = [list(document.parts) for document in documents(str(tmp_path / "a.txt"))]
        assert "".join(parts) == content
        assert all(parts)


@relaxed
@given(
    before=st.text("aé🙂\n", max_size=12),
    fault=st.sampled_from([b"\xff", b"\xc3", b"\xe6\x97", b"\xf0\x9f\x99", b"\x80", b"\xed\xa0\x80", b"\0"]),
    after=st.text("a\n", max_size=5),
    part=st.integers(1, 9),
)
def test_faults_in_any_part(tmp_path, monkeypatch, before, fault, after, part):
    """A byte that isn't UTF-8 has the same line and offset as in a file that is read at once."""
    from stackwise_core.errors import UsageError

    (tmp_path / "a.txt").write_bytes(before.encode() + fault + after.encode())
    said = []
    for size in (1 << 20, part):
        monkeypatch.setattr(text, "PART", size)
        with pytest.raises(UsageError) as caught:
            "".join(part for document in documents(str(tmp_path)) for part in document.parts)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_parts_are_read_as_they_are_asked_for(tmp_path, monkeypatch):
    """Of a long file a part is in memory, and the next is read after it is done with."""
    monkeypatch.setattr(text, "PART", 100)
    (tmp_path / "a.txt").write_bytes(b"x" * 1000 + b"\xff")
    stream = documents(str(tmp_path))
    parts = iter(next(stream).parts)
    assert [len(next(parts)) for _ in range(10)] == [100] * 10
    with pytest.raises(Exception, match="offset 1000"):
        next(parts)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_a_pointer_is_no_text(tmp_path, complaint, name):
    """A data set that was cloned without Git LFS has pointers in place of its files."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (tmp_path / name).write_bytes(gzip.compress(pointer) if name.endswith("gz") else pointer)
    code, message = complaint(tmp_path / name)
    assert code == 2
    assert "found a pointer of Git LFS" in message
    assert "git lfs pull" in message
