"""Damage to files: one function a kind, to be called with the files of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Harm = Callable[[np.random.Generator, Sequence[Path]], None]


def flip(rng: np.random.Generator, files: Sequence[Path]) -> None:
    """Flip a bit in every 4 kB of each file."""
    for path in files:
        content = bytearray(path.read_bytes())
        for place in range(0, len(content), 4096):
            content[min(len(content) - 1, place + int(rng.integers(4096)))] ^= 1 << int(rng.integers(8))
        with path.open("rb+") as file:
            file.write(content)


def cut(rng: np.random.Generator, files: Sequence[Path]) -> None:
    """Cut every third file short."""
    for path in files[::3]:
        with path.open("rb+") as file:
            file.truncate(int(rng.integers(max(1, path.stat().st_size))))


def delete(rng: np.random.Generator, files: Sequence[Path]) -> None:
    """Delete every third file."""
    for path in files[::3]:
        path.unlink()


def replace(rng: np.random.Generator, files: Sequence[Path]) -> None:
    """Replace every third file's content by that of another one."""
    for path in files[::3]:
        others = [other for other in files if other != path]
        if others:
            path.write_bytes(others[rng.integers(len(others))].read_bytes())
