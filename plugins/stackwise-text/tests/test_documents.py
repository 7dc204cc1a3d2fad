"""Documents of every kind of corpus, and every way in which one can be wrong."""

import json
import sys

import pytest

from stackwise_core.errors import UnavailableError, UsageError
from stackwise_text.files import EXPECTED
from stackwise_text.reading import documents


def texts(corpus, text_field="text"):
    return [document.text for document in documents(str(corpus), text_field=text_field)]


def complaint(corpus, text_field="text"):
    with pytest.raises(UsageError) as caught:
        texts(corpus, text_field)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """b.txt, a.md, deep/er/c.jsonl of two documents, a hidden file, and one that is no text."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("bee")
    (tmp_path / "a.md").write_text("ay")
    (tmp_path / "deep" / "er" / "c.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "table.csv").write_text("1,2")
    return tmp_path


def test_python_docs_are_the_topics_by_name():
    """The built-in corpus is CPython's own topics, sorted by name."""
    from pydoc_data.topics import topics

    found = list(documents("python-docs", text_field="text"))
    assert [document.name for document in found] == sorted(topics)
    assert {document.name: document.text for document in found} == topics


def test_python_without_its_docs(monkeypatch):
    """A Python built without pydoc_data gets an explanation, and exit code 3."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UnavailableError, match=r"pydoc_data\.topics, which this Python lacks"):
        texts("python-docs")


def test_directory_is_read_recursively_in_order(folder):
    """A directory gives its text files sorted by path, without hidden files and other endings."""
    assert texts(folder) == ["ay", "bee", "one", "two"]


def test_names_say_where_a_document_is(folder):
    """A document is named by its file, and by its line in a .jsonl."""
    names = [document.name for document in documents(str(folder), text_field="text")]
    assert names == [
        str(folder / "a.md"),
        str(folder / "b.txt"),
        str(folder / "deep/er/c.jsonl") + ":1",
        str(folder / "deep/er/c.jsonl") + ":3",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("b.txt", ["bee"]), ("*.md", ["ay"]), ("**/*.jsonl", ["one", "two"]), ("[ab].*", ["ay", "bee"])],
)
def test_file_and_globs(folder, pattern, expected):
    """A path is one file; a glob is all that it matches, at any depth with **."""
    assert texts(folder / pattern) == expected


def test_a_path_with_magic_characters_is_a_path_first(tmp_path):
    """An existing file or directory is itself, even if its name could be a glob."""
    (tmp_path / "[x]").mkdir()
    (tmp_path / "[x]" / "[y].TXT").write_text("found")
    assert texts(tmp_path / "[x]") == texts(tmp_path / "[x]" / "[y].TXT") == ["found"]


def test_documents_are_streamed(tmp_path):
    """The first line of a .jsonl is there before a later one is looked at."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\nnonsense\n')
    stream = documents(str(file), text_field="text")
    assert next(stream).text == "fine"
    with pytest.raises(UsageError):
        next(stream)


def test_byte_order_mark_is_dropped_and_nothing_else(tmp_path):
    """A BOM at a file's start goes; line ends, blanks and control characters stay."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\r\n x\x01\n\xef\xbb\xbf")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "line"}\r\n')
    assert texts(tmp_path) == ["\r\n x\x01\n\ufeff", "line"]


def test_empty_documents_are_passed_over(tmp_path):
    """Files and fields without a character are no documents."""
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n{"text": "x"}\n')
    assert texts(tmp_path) == ["x"]


def test_other_text_field(tmp_path):
    """The field that holds the text can be named."""
    (tmp_path / "a.jsonl").write_text('{"body": "b", "text": "t"}')
    assert texts(tmp_path, "body") == ["b"]


def test_nothing_there(folder):
    """A missing path names the nearest one, the nearest built-in, or what the folder holds."""
    assert complaint(folder / "b.text") == f"{folder}/b.text: nothing is there; the nearest name is {folder}/b.txt"
    assert (
        complaint(folder / "dep" / "er" / "c.jsonl")
        == f"{folder}/dep/er/c.jsonl: nothing is there; the nearest name is {folder}/deep"
    )
    assert complaint(folder / "python_docs").endswith('nothing is there; the built-in corpus is called "python-docs"')
    assert complaint(folder / "deep" / "qqq") == f"{folder}/deep/qqq: nothing is there; {folder}/deep holds er"
    assert (
        complaint(folder / "**" / "*.zip")
        == f"{folder}/**/*.zip: nothing is there; {folder} holds a.md, b.txt, deep, table.csv"
    )


def test_directory_without_text(tmp_path):
    """A directory with nothing to read says what it holds instead."""
    assert complaint(tmp_path) == (
        f"{tmp_path}: expected files that end in {EXPECTED}, in this directory or below it, found no files at all"
    )
    (tmp_path / "x.csv").write_text("1")
    (tmp_path / "LICENSE").write_text("1")
    assert complaint(tmp_path).endswith("found only .csv, LICENSE")


def test_empty_corpus(tmp_path):
    """Files without a single character are one error, not an empty run."""
    (tmp_path / "a.txt").write_text("")
    assert complaint(tmp_path) == f"{tmp_path}: expected text, but there is not one character in it"


def test_unknown_ending(folder):
    """A named file, or one that a glob finds, must be of a known kind."""
    known = f"expected a file that ends in {EXPECTED}, found"
    (folder / "d.json").write_text("{}")
    (folder / "README").write_text("x")
    assert complaint(folder / "d.json") == f'{folder}/d.json: {known} ".json"; the nearest is ".jsonl"'
    assert complaint(folder / "README") == f"{folder}/README: {known} no ending"
    assert complaint(folder / "t*.c*") == f'{folder}/table.csv: {known} ".csv"; narrow the glob {folder}/t*.c*'


def test_not_utf8(tmp_path):
    """A byte that isn't UTF-8 is located by line and by offset in the file, its BOM counted."""
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xe9\n")
    assert complaint(tmp_path) == (
        f"{tmp_path}/a.txt:2: expected UTF-8, found byte 0xe9 at offset 8 of the file; if it is ISO-8859-1, convert it "
        "with: iconv -f ISO-8859-1 -t UTF-8"
    )
    (tmp_path / "a.txt").write_bytes("two".encode("utf-16"))
    assert "a.txt:1: expected UTF-8, found byte 0xff at offset 0" in complaint(tmp_path)
    assert "iconv -f UTF-16 -t UTF-8" in complaint(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n{"text": "\xe9"}\n')
    assert "a.jsonl:2: expected UTF-8, found byte 0xe9 at offset 27 of" in complaint(tmp_path)


def test_offset_counts_the_byte_order_mark(tmp_path):
    """Offsets are those that a hex editor shows, after a BOM too."""
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfx\xe9")
        assert "found byte 0xe9 at offset 4 of" in complaint(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "2:13: expected a JSON object, found bad JSON: Expecting ',' delimiter"),
        ("hello", "2:1: expected a JSON object, found bad JSON: Expecting value"),
        ("9" * 5000, "2: expected a JSON object, found bad JSON: Exceeds the limit"),
        ('["x"]', '2: expected a JSON object such as {"text": "..."}, found a list'),
        ('"x"', '2: expected a JSON object such as {"text": "..."}, found a text'),
        ("{}", '2: expected a field "text" (data.text_field), found no field at all'),
        (
            '{"id": 1, "txt": "x"}',
            '2: expected a field "text" (data.text_field), found "id", "txt"; the nearest is "txt"',
        ),
        (
            '{"id": 1, "body": "x"}',
            '2: expected a field "text" (data.text_field), found "id", "body"; the nearest is "body"',
        ),
        ('{"text": 3}', '2: expected a text in the field "text", found a number'),
        ('{"text": true}', '2: expected a text in the field "text", found true or false'),
        ('{"text": null}', '2: expected a text in the field "text", found null'),
        ('{"text": {}}', '2: expected a text in the field "text", found an object'),
        (
            '{"text": "a\\ud800"}',
            '2: expected Unicode text in the field "text", found half a surrogate pair (\\ud800) at character 1',
        ),
    ],
)
def test_bad_lines(tmp_path, line, message):
    """A wrong line of a .jsonl is named with what was found and what was expected."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    assert complaint(tmp_path).startswith(f"{tmp_path}/a.jsonl:{message}")


def test_nesting_without_end(tmp_path):
    """A line nested too deep to parse is bad JSON, not a crash."""
    (tmp_path / "a.jsonl").write_text("[" * 200_000)
    assert complaint(tmp_path).startswith(f"{tmp_path}/a.jsonl:1: expected a JSON object, found bad JSON")


def test_unreadable_file(tmp_path, monkeypatch):
    """A file that the system won't give is named with the system's reason."""
    (tmp_path / "a.txt").write_text("x")

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("stackwise_text.compression._Counted.readinto", refuse)
    assert complaint(tmp_path) == f"{tmp_path}/a.txt: expected a file that can be read: Permission denied"
