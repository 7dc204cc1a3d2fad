"""The files of a corpus."""

import pytest

from stackwise_text.files import EXPECTED
from stackwise_text.finding import find_files


def found(corpus):
    return [(file.path.name, file.format, file.compression) for file in find_files(str(corpus))]


def test_formats_by_name(tmp_path):
    """A file's name says its format and its compression, in either case; others in a directory are passed over."""
    names = [
        "a.txt",
        "b.MD",
        "c.jsonl",
        "d.jsonl.gz",
        "e.TXT.ZST",
        "f.parquet",
        "g.parquet.gz",
        "h.gz",
        "i.csv.gz",
        "j",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert found(tmp_path) == [
        ("a.txt", "text", ""),
        ("b.MD", "text", ""),
        ("c.jsonl", "jsonl", ""),
        ("d.jsonl.gz", "jsonl", ".gz"),
        ("e.TXT.ZST", "text", ".zst"),
        ("f.parquet", "parquet", ""),
    ]


@pytest.mark.slow
def test_thousands_of_files(tmp_path):
    """A glob or a directory of many files is all of them, by path."""
    names = [f"{number % 7}/{number:05}.jsonl.gz" for number in range(3000)]
    for folder in range(7):
        (tmp_path / str(folder)).mkdir()
    for name in names:
        (tmp_path / name).touch()
    for corpus in (tmp_path, tmp_path / "**" / "*.jsonl.gz"):
        assert [str(file.path.relative_to(tmp_path)) for file in find_files(str(corpus))] == sorted(names)


@pytest.mark.parametrize("pattern", [".", "**/*.txt"])
def test_a_folder_that_holds_itself(tmp_path, pattern):
    """However many ways links lead to a folder its files are read once; those of a folder elsewhere are read."""
    for folder, name in [("corpus", "z.txt"), ("corpus/v2", "a.txt"), ("elsewhere", "b.txt")]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    for link, target in [("itself", "."), ("latest", "v2"), ("shards", "../elsewhere")]:
        (tmp_path / "corpus" / link).symlink_to(target)
    files = find_files(str(tmp_path / "corpus" / pattern))
    assert [str(file.path.relative_to(tmp_path / "corpus")) for file in files] == [
        "latest/a.txt",
        "shards/b.txt",
        "z.txt",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.parquet.gz", '".parquet.gz"; the nearest is ".parquet"'),
        ("a.gz", '".gz"'),
        ("a.jsnl", '".jsnl"; the nearest is ".jsonl"'),
        ("a", "no ending"),
    ],
)
def test_other_files(tmp_path, complaint, name, said):
    """A file of another kind is refused with the nearest right ending."""
    (tmp_path / name).touch()
    expected = f"{tmp_path / name}: expected a file that ends in {EXPECTED}, found {said}"
    assert complaint(tmp_path / name) == (2, expected)


def test_a_saved_data_set_further_down(tmp_path, complaint):
    """Where a directory's only text is in a data set that was saved below it, that is named."""
    (tmp_path / "saved").mkdir()
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        (tmp_path / "saved" / name).write_text("{}")
    assert complaint(tmp_path)[1].endswith(f"{tmp_path}/saved was saved by the library datasets: name it")
