"""Columns of texts, in .parquet files and in directories that the library datasets saved."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from stackwise_core.interfaces.corpus import TextField
from stackwise_text import columns
from stackwise_text.finding import find_files
from stackwise_text.parquet import read_parquet
from stackwise_text.reading import documents
from tests.texts import TEXTS

datasets.disable_progress_bars()
COLUMNS = {"id": list(range(len(TEXTS))), "text": TEXTS, "tags": [["a"]] * len(TEXTS)}


@pytest.fixture
def table(tmp_path):
    """A .parquet file of several row groups."""
    parquet.write_table(pa.table(COLUMNS), tmp_path / "a.parquet", row_group_size=40)
    return tmp_path / "a.parquet"


@pytest.fixture
def saved(tmp_path):
    """A saved data set of three files."""
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(tmp_path / "saved", num_shards=3)
    return tmp_path / "saved"


@pytest.fixture(params=["table", "saved"])
def either(request):
    """Both, one after the other."""
    return request.getfixturevalue(request.param)


def test_rows_are_documents(either, texts):
    """Each row is a document, in order, across row groups and files."""
    assert texts(either) == TEXTS


def test_names_say_the_row(table):
    """A document is named by its file and row, counted from 1."""
    names = [document.name for document in documents(str(table))]
    assert names == [f"{table}:{row}" for row in range(1, len(TEXTS) + 1)]


def test_indices_of_a_selection_are_heeded(tmp_path, texts):
    """What was selected and shuffled before it was saved is read as it was then."""
    chosen = [7, 3, 140, 3]
    datasets.Dataset.from_dict(COLUMNS).select(chosen).save_to_disk(tmp_path / "few")
    assert texts(tmp_path / "few") == [TEXTS[row] for row in chosen]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_kinds_of_text(tmp_path, texts, kind):
    """All of Arrow's types of text will do."""
    column = pa.array(TEXTS).cast(kind) if kind != pa.string_view() else pa.array(TEXTS, kind)
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert texts(tmp_path) == TEXTS


def test_a_column_beside_a_field_of_its_name(tmp_path, texts):
    """A column is taken by its name, though a field of another column is called the same."""
    parquet.write_table(pa.table({"a": [{"b": "field"}], "a.b": ["column"]}), tmp_path / "a.parquet")
    assert texts(tmp_path, "a.b") == ["column"]


def test_few_rows_are_in_memory(table, monkeypatch):
    """A row group is read in batches, and progress comes with each; in the end it is the file's size."""
    monkeypatch.setattr("stackwise_text.parquet.ROWS", 8)
    told = []
    stream = read_parquet(find_files(str(table))[0], TextField(), told.append)
    for _ in range(20):
        next(stream)
    assert len(told) == 2  # of five row groups' 19 batches
    list(stream)
    assert sum(told) == table.stat().st_size


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("txt", 'expected a column "txt" (data.text_field), found "id", "text", "tags"; the nearest is "text"'),
        ("zzz", 'expected a column "zzz" (data.text_field), found "id", "text", "tags"; the nearest is "text"'),
        ("id", 'expected texts in the column "id" (data.text_field), found int64'),
        ("tags", 'expected texts in the column "tags" (data.text_field), found list<'),
    ],
)
def test_wrong_column(either, complaint, field, said):
    """A column that isn't there, or holds no text, is named with what is there."""
    code, message = complaint(either, field)
    assert code == 2
    assert said in message


def test_a_row_without_text(tmp_path, complaint, texts):
    """An empty text is passed over, a null is an error that names the row."""
    parquet.write_table(pa.table({"text": ["a", "", "b"]}), tmp_path / "a.parquet")
    assert texts(tmp_path) == ["a", "b"]
    parquet.write_table(pa.table({"text": ["a"] * 70 + [None]}), tmp_path / "a.parquet")
    assert complaint(tmp_path)[1] == f'{tmp_path}/a.parquet:71: expected a text in the column "text", found null'


@pytest.mark.parametrize("size", [0, 3, 500, -50])
def test_cut_short(either, complaint, size):
    """A file that ends too soon is one error that names it."""
    file = either if either.is_file() else either / "data-00001-of-00003.arrow"
    file.write_bytes(file.read_bytes()[:size])
    code, message = complaint(either)
    assert code == 2
    assert message.startswith(f"{file}: expected a whole ")
    assert "found a damaged one" in message


def test_text_that_is_no_utf8(tmp_path, complaint):
    """Bytes that claim to be text are looked at before they are believed."""
    column = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "Invalid UTF8" in complaint(tmp_path)[1]


def test_splits_of_a_saved_dict(tmp_path, complaint, texts):
    """Of a DatasetDict train is read; others are named, by their directory too; one that isn't there is refused."""
    dataset = datasets.Dataset.from_dict(COLUMNS)
    datasets.DatasetDict(train=dataset, test=dataset.select([1, 2])).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both") == TEXTS
    assert texts(f"{tmp_path}/both#test") == texts(tmp_path / "both" / "test") == TEXTS[1:3]
    shutil.rmtree(tmp_path / "both" / "test")
    assert texts(tmp_path / "both") == TEXTS
    assert "expected files of split test" in complaint(f"{tmp_path}/both#test")[1]
    assert complaint(f"{tmp_path}/both#tests") == (
        2,
        f'{tmp_path}/both: expected one of its splits (train, test), found "tests"; the nearest is '
        f'"{tmp_path}/both#test"',
    )


@pytest.mark.parametrize("splits", ["train", [3], ["../train"], [""]])
def test_splits_inside_it_only(tmp_path, complaint, splits):
    """A list of splits that names anything but directories inside is refused."""
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    assert complaint(tmp_path)[1].startswith(f"{tmp_path}/dataset_dict.json: expected a list of names, splits")


@pytest.mark.parametrize("name", ["../a.arrow", "/etc/passwd", "..", "", 3, None, "a\0b"])
def test_files_beside_it_only(saved, complaint, name):
    """state.json can't have a file elsewhere read."""
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"][1]["filename"] = name
    (saved / "state.json").write_text(json.dumps(state))
    code, message = complaint(saved)
    assert code == 2
    assert message.startswith(f"{saved}/state.json: expected the names of files beside it, found ")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"_data_files": []}', '{"_data_files": 3}', '{"_data_files": [3]}']
)
def test_broken_state(saved, complaint, content):
    """A state.json of another shape is one error."""
    (saved / "state.json").write_text(content)
    assert complaint(saved)[1].startswith(f"{saved}/state.json: expected ")


def test_a_file_that_was_not_copied(saved, complaint):
    """A file that state.json names and that isn't there is told before anything is read."""
    (saved / "data-00002-of-00003.arrow").unlink()
    assert complaint(saved)[1].endswith("state.json names it, but nothing is there; was all of it copied?")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["text", "other"])
def test_nothing_is_unpickled(tmp_path, saved, where):
    """The extension type that Arrow once unpickled does nothing in either format, in any column."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(tmp_path / "bang")),
    }
    fields = [pa.field(name, pa.string(), metadata=metadata if name == where else None) for name in ("text", "other")]
    bad = pa.table({"text": TEXTS, "other": TEXTS}, schema=pa.schema(fields))
    parquet.write_table(bad, tmp_path / "a.parquet")
    with pa.OSFile(str(saved / "data-00000-of-00003.arrow"), "wb") as out, pa.ipc.new_stream(out, bad.schema) as stream:
        stream.write_table(bad)
    for corpus in (tmp_path / "a.parquet", saved):
        next(documents(str(corpus)))
    assert not (tmp_path / "bang").exists()


@pytest.mark.slow
def test_nothing_else_is_imported_or_asked(saved, tmp_path):
    """state.json can't have a library imported, and no connection is tried."""
    state = json.loads((saved / "state.json").read_text()) | {"_format_type": "torch"}
    (saved / "state.json").write_text(json.dumps(state))
    code = (
        "import socket, sys\n"
        "def refuse(*arguments): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from stackwise_text.reading import documents\n"
        f"print(len(list(documents({str(saved)!r}))), 'torch' in sys.modules)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{len(TEXTS)} False\n"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("kind", "package"), [("table", "pyarrow"), ("saved", "datasets")])
def test_without_the_extra(request, kind, package, complaint, monkeypatch):
    """Without the library the error says how to get it."""
    from stackwise_text import files

    corpus = request.getfixturevalue(kind)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    code, message = complaint(corpus)
    assert code == 3
    assert f"needs the package {package}, which is not installed: pip install" in message
    assert message.endswith('"stackwise-text[datasets]"')


def test_rows_at_once_are_few():
    """A batch of books must fit in memory."""
    assert columns.ROWS <= 64
