"""Splits by name, where the library ``datasets`` has no say: its own reading is compared in ``test_data_set``."""

from pathlib import PurePath

import pytest

from stackwise_text.split_names import like, split_by_shard, split_by_word


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("Train.jsonl", "train"),
        ("wiki.VAL.txt.gz", "validation"),
        ("TEST/a.txt", "test"),
        ("train/test/a.txt", "test"),
        ("eval-of-models/train/a.txt", "train"),
        ("train/dev-seat.txt", "train"),
        ("train-test-split.jsonl", "test"),
        ("train_dev.jsonl", "validation"),
        ("pretrained.txt", None),
        ("contest.txt", None),
        ("latest/devices.txt", None),
        ("test", None),
    ],
)
def test_words(path, split):
    """Whole words count, in either case; the innermost folder before the name; held-out before training."""
    assert split_by_word(PurePath(path)) == split


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train_sft-00000-of-00002.parquet", "train_sft"),
        ("data/train-00001-of-00002-0a1b2c.parquet", "train"),
        ("train-00000-of-00002.parquet", None),
        ("more/data/train-00000-of-00002.parquet", None),
        ("data/train-0-of-2.parquet", None),
    ],
)
def test_shards(path, split):
    """A shard's name may be any split's; its number has five digits."""
    assert split_by_shard(PurePath(path)) == split


def test_names_that_mean_a_split():
    """The split's own name comes before other words for it."""
    assert like("validation", ["dev", "Validation"]) == "Validation"
    assert like("validation", ["train", "dev"]) == "dev"
    assert like("test", ["train", "validation_matched"]) is None
