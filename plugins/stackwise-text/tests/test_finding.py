"""The splits of a data set that are read, and their purposes."""

import pytest

from stackwise_text.finding import find_corpus, splits_in_glob

CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: dev
    path: en/dev-*
  - split: test
    path: en/test-*
- config_name: test
  data_files: odd/*
---
"""


@pytest.fixture
def snapshot(tmp_path):
    """A data set of two subsets, of which one is called as a split of the other is."""
    for name in ("en/train-0.jsonl", "en/train-1.jsonl", "en/dev-0.jsonl", "en/test-0.jsonl", "odd/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


def found(corpus, use="training"):
    return [file.path.name for file in find_corpus(str(corpus), use).files]


@pytest.mark.parametrize(
    ("part", "use", "files"),
    [
        ("en", "training", ["train-0.jsonl", "train-1.jsonl"]),
        ("en", "measuring", ["dev-0.jsonl"]),
        ("en/test", "measuring", ["test-0.jsonl"]),
        ("en/test", "training", ["test-0.jsonl"]),
        ("test", "training", ["a.txt"]),
        ("test/train", "measuring", ["a.txt"]),
    ],
)
def test_subset_and_split(snapshot, part, use, files):
    """A subset alone is its train split where it is trained on, and its validation split where it is measured on."""
    assert found(f"{snapshot}#{part}", use) == files


def test_several_subsets(snapshot, complaint):
    """Where none is the default one must be named, and the message lists them."""
    for part in ("", "#de"):
        code, message = complaint(f"{snapshot}{part}")
        assert code == 2
        assert f"expected one subset, found 2 in {snapshot}/README.md: en, test." in message
        assert f'Name one, such as "{snapshot}#en"' in message


def test_what_is_left_out(snapshot):
    """All that isn't read is told, and the validation split apart."""
    all_of_it = find_corpus(f"{snapshot}#en")
    assert [file.path.name for file in all_of_it.validation] == ["dev-0.jsonl"]
    assert (all_of_it.split, all_of_it.validation_split) == ("en/train", "en/dev")
    assert all_of_it.left_out == ("split test", "subsets test")


def test_a_download_of_parts(snapshot, complaint):
    """Files of splits that aren't read need not be there; of those that are they must."""
    (snapshot / "en/dev-0.jsonl").unlink()
    part = find_corpus(f"{snapshot}#en")
    assert (part.validation, part.validation_split) == ((), "")
    assert "split dev, of which no file is here" in part.left_out
    for file in (snapshot / "en").glob("train-*"):
        file.unlink()
    assert "expected files of split train" in complaint(f"{snapshot}#en")[1]
    assert "was all of it downloaded?" in complaint(f"{snapshot}#en")[1]


def test_splits_of_other_kinds(tmp_path, complaint):
    """A split of files that nothing reads is no error unless it is to be read."""
    card = "configs:\n- config_name: x\n  data_files:\n  - {split: train, path: a*}\n  - {split: test, path: b*}\n"
    (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).touch()
    assert find_corpus(str(tmp_path)).left_out == ("split test", "README.md, b.csv")
    assert "found none among .csv, .md" in complaint(f"{tmp_path}#test")[1]


def test_a_card_whose_splits_overlap(tmp_path, complaint):
    """A file that is for testing by the same card isn't trained on."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    splits = "  - {split: train, path: '*.jsonl'}\n  - {split: test, path: %s}\n"
    card = "---\nconfigs:\n- config_name: x\n  data_files:\n" + splits + "---\n"
    (tmp_path / "README.md").write_text(card % "b.jsonl")
    assert found(tmp_path) == ["a.jsonl"]
    assert "b.jsonl (in split test too)" in find_corpus(str(tmp_path)).left_out
    (tmp_path / "README.md").write_text(card % "'*.jsonl'")
    assert "expected files of split train that are for training alone" in complaint(tmp_path)[1]


def test_test_text_alone_is_not_trained_on(tmp_path, complaint):
    """A folder of nothing but a test split is measured on, and trained on only if that is said."""
    (tmp_path / "test.jsonl").touch()
    assert (
        'expected a split train, found test, by the names of its files. Name the one to train on, such as "'
        in (complaint(tmp_path)[1])
    )
    assert found(tmp_path, "measuring") == found(f"{tmp_path}#test") == ["test.jsonl"]


def test_a_data_set_to_measure_on_has_one_split(tmp_path):
    """Of several none of which is for validation one must be named."""
    from stackwise_core.errors import UsageError

    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="expected a split validation, found test, train"):
        find_corpus(str(tmp_path), "measuring")
    assert found(f"{tmp_path}#test", "measuring") == ["test.jsonl"]


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("plain#test", 'plain: expected a data set with a split "test", found one without splits'),
        ("plain/a.txt#test", "plain/a.txt is a file, and has no splits to choose from"),
        ("plane#test", "plane#test: nothing is there"),
    ],
)
def test_no_splits(tmp_path, complaint, corpus, said):
    """A split of what has none is a mistake."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/a.txt").touch()
    assert said in complaint(tmp_path / corpus)[1]


def test_a_path_with_its_mark(tmp_path):
    """What exists by that name is taken as a path."""
    (tmp_path / "notes#test").mkdir()
    (tmp_path / "notes#test" / "a.txt").touch()
    (tmp_path / "notes").mkdir()
    assert found(f"{tmp_path}/notes#test") == ["a.txt"]


def test_a_glob_of_several_splits(tmp_path):
    """A glob is all files that it matches; the splits that they are named for are known, to be told."""
    (tmp_path / "test").mkdir()
    for name in ("train.txt", "test.txt", "a.txt"):
        (tmp_path / "test" / name).touch()
    (tmp_path / "test" / "#b.txt").touch()
    assert found(f"{tmp_path}/test/#*.txt") == ["#b.txt"]
    for pattern, splits in (("*", ["test", "train"]), ("t*n.txt", []), ("[at]*.txt", ["test", "train"])):
        corpus = f"{tmp_path}/test/{pattern}"
        assert splits_in_glob(corpus, find_corpus(corpus).files) == splits
