"""Harm is done to the files that it says, and to no others."""

import numpy as np
import pytest

from stackwise_core.testing.damage import cut, delete, flip, replace


@pytest.fixture
def files(tmp_path):
    """Six files of 10 kB, and an empty one."""
    contents = {f"{number}": bytes([number]) * 10_000 for number in range(6)} | {"empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return sorted(tmp_path.iterdir())


def harmed(harm, files):
    """Return the files' contents before and after, by name; None: the file is gone."""
    before = {path.name: path.read_bytes() for path in files}
    harm(np.random.default_rng(1), files)
    return before, {path.name: path.read_bytes() if path.exists() else None for path in files}


def test_flip(files):
    """A bit in every 4 kB of each file."""
    before, after = harmed(flip, files)
    for name, content in before.items():
        bits = int.from_bytes(content, "big") ^ int.from_bytes(after[name], "big")
        assert bin(bits).count("1") == (0 if name == "empty" else 3)
        assert len(after[name]) == len(content)


@pytest.mark.parametrize("harm", [cut, delete, replace])
def test_every_third_file(harm, files):
    """Of seven files the first, the fourth and the last; an empty one can't be cut."""
    before, after = harmed(harm, files)
    changed = [name for name in before if after[name] != before[name]]
    assert changed == (["0", "3"] if harm is cut else ["0", "3", "empty"])
    if harm is cut:
        assert all(before[name].startswith(after[name]) for name in changed)
    if harm is delete:
        assert {after[name] for name in changed} == {None}
    if harm is replace:
        assert {after[name] for name in changed} <= {*before.values(), *after.values()}
