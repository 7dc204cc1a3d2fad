import errno
import hashlib
import os
from pathlib import Path

import pytest

from stackwise_core.system.hashed_file import HASHED_BESIDE, copy_hashed, hashed_file

PIECES = [b"abc", os.urandom(3 * HASHED_BESIDE), b"", os.urandom(HASHED_BESIDE - 1), os.urandom(HASHED_BESIDE)]


def test_the_checksum_is_that_of_the_file(tmp_path):
    """Of small and large pieces, in their order."""
    with hashed_file(tmp_path / "new") as written:
        for piece in PIECES:
            written.write(memoryview(piece))
        digest = written.sha256
    assert (tmp_path / "new").read_bytes() == b"".join(PIECES)
    assert digest == hashlib.sha256(b"".join(PIECES)).hexdigest()


def test_a_copy_is_hashed(tmp_path):
    """Of several blocks, and of an empty file."""
    for content in (os.urandom((1 << 21) + 5), b""):
        (tmp_path / "source").write_bytes(content)
        assert copy_hashed(tmp_path / "source", tmp_path / "copy") == hashlib.sha256(content).hexdigest()
        assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error():
    """The system's own, though another thread hashes."""
    with pytest.raises(OSError) as caught, hashed_file(Path("/dev/full")) as written:
        written.write(bytes(4 * HASHED_BESIDE))
    assert caught.value.errno == errno.ENOSPC
