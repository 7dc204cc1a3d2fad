"""The record of files: enough not to read them again, and never wrong."""

import json
import os
import time

import pytest

from stackwise_core.engine.text import content_index
from stackwise_core.engine.text.content_index import ContentIndex
from stackwise_core.errors import StackwiseError


@pytest.fixture
def files(tmp_path):
    """Three files that were last changed an hour ago, as far as the index can tell."""
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in paths:
        path.write_text(path.name)
    return paths


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read, in order."""
    names = []
    original = content_index._read

    def noting(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(content_index, "_read", noting)
    return names


@pytest.fixture
def later(monkeypatch):
    """Has all that was written until now be old."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + content_index.SETTLED_AFTER + 10**9)


def hashes(tmp_path, files):
    index = ContentIndex.open(tmp_path / "tokens" / "index.json")
    found = index.hash_all(files)
    index.save()
    return found


def test_unchanged_files_are_not_read(tmp_path, files, read, later):
    """A second look at files that are as they were reads none of them, and has the same hashes."""
    first = hashes(tmp_path, files)
    assert read == ["a.txt", "b.txt", "c.txt"]
    assert len(set(first)) == 3
    assert hashes(tmp_path, files) == first
    assert hashes(tmp_path, files[::-1]) == first[::-1]
    assert read == ["a.txt", "b.txt", "c.txt"]


def rewritten(path):
    path.write_text("B.TXT")


def time_set_back(path):
    before = path.stat()
    path.write_text("B.TXT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path):
    path.with_name("new").write_text("B.TXT")
    os.replace(path.with_name("new"), path)


def grown(path):
    with path.open("a") as file:
        file.write("!")


@pytest.mark.parametrize("change", [rewritten, time_set_back, replaced, grown], ids=lambda change: change.__name__)
def test_changed_files_are_read(tmp_path, files, read, later, change):
    """A file that was written to, or another of its name, is read again, and it alone."""
    first = hashes(tmp_path, files)
    read.clear()
    change(files[1])
    second = hashes(tmp_path, files)
    assert read == ["b.txt"]
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, False, True]


def test_what_was_just_written_is_read_again(tmp_path, files, read):
    """A file whose time stamp is too new to tell of the next change isn't remembered."""
    first = hashes(tmp_path, files)
    assert hashes(tmp_path, files) == first
    assert read == ["a.txt", "b.txt", "c.txt"] * 2
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "list"])
def test_a_damaged_index_knows_nothing(tmp_path, files, read, later, damage):
    """An index that isn't what was written is not believed, and written anew."""
    first = hashes(tmp_path, files)
    path = tmp_path / "tokens" / "index.json"
    whole = path.read_text()
    changed = {
        "flip": whole.replace(first[1], first[0]),
        "cut": whole[:-9],
        "other": json.dumps({"files": {}}),
        "list": "[]",
    }
    path.write_text(changed[damage])
    assert hashes(tmp_path, files) == first
    assert read == ["a.txt", "b.txt", "c.txt"] * 2
    assert path.read_text() == whole


def test_an_index_that_can_not_be_written(tmp_path, files):
    """Where nothing can be kept the hashes are the same."""
    (tmp_path / "tokens").write_text("a file")
    assert len(set(hashes(tmp_path, files))) == 3


def test_a_file_that_changes_while_it_is_read(tmp_path, files, monkeypatch):
    """A hash of half of one content and half of another is never given."""
    stamp = content_index.stamp_of
    calls = []

    def growing(path):
        calls.append(path)
        if len(calls) == 2:
            grown(path)
        return stamp(path)

    monkeypatch.setattr(content_index, "stamp_of", growing)
    with pytest.raises(StackwiseError, match=r"a\.txt: the file changed while it was being read"):
        hashes(tmp_path, files)
