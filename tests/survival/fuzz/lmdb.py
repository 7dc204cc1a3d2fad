"""An environment of LMDB."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import strategies as st

from stackwise_core.testing.cache_backend import code_of, in_a_child
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import damaged
from tests.survival.fuzz.specimens import put
from tests.survival.fuzz.stores import stored, use_store
from tests.survival.fuzz.watch import Broken, watched

ALLOWANCE = 4 << 30
"""Bytes of address space that a case may take: LMDB maps a gigabyte that it doesn't use."""


@st.composite
def lmdb_files(draw: st.DrawFn) -> bytes:
    """Draw an environment with a few numbers changed, mostly in the pages that hold its tree."""
    content, page = bytearray(stored("lmdb")), 4096
    trees = [at for at in range(0, len(content), page) if struct.unpack_from("<H", content, at + 10)[0] & 0b1011]
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.sampled_from(trees)) + draw(st.integers(0, 150) | st.integers(0, page - 8))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        number = draw(
            st.integers(0, 20) | st.integers(0, 2**64 - 1) | st.sampled_from([2**15, 2**31, 2**63, 2**64 - 1])
        )
        content[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(content)


def check_lmdb(content: bytes, inside: Path) -> bool:
    """Check that it gives right entries or none, in a process of its own, which a crash would end."""
    put(inside / "store" / "data.mdb", content)

    def work() -> None:
        with watched(inside, inside.parent / "secret", ALLOWANCE):
            if use_store("lmdb", inside / "store"):
                (inside / "accepted").touch()

    code = code_of(in_a_child(work))
    if code:
        raise Broken(f"a process that read it ended with {code}; its traceback is on stderr")
    return (inside / "accepted").exists()


LMDB = Target(
    "lmdb",
    lambda: lmdb_files() | damaged(stored("lmdb")),
    check_lmdb,
    share=0.2,
    sound=lambda: stored("lmdb"),
    allowance=ALLOWANCE,
)
