import json

import pytest
from attrs import evolve

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.run_files.stored_boundaries import StoredBoundary, drop_record, read_records, write_record
from stackwise_core.testing.fresh import heavy_imports

LAYOUT = Layout(tokens=8, d_model=32, dtype="bf16")
MADE_OF = {"torch": "2.13.0", "precisions": [["fp32", {}], ["nf4", {"double_quant": True}]], "seed": None}
BOUNDARY = StoredBoundary("00ff00ff00ff00ff00ff00ff00ff00ff", "/runs/first", "stack 1", (0,), LAYOUT, MADE_OF)


def test_what_is_written_is_read(tmp_path):
    """Every field comes back, and the file stands beside the store's directory."""
    write_record(tmp_path / "cache", BOUNDARY)
    assert read_records(tmp_path / "cache") == [BOUNDARY]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["00ff00ff00ff00ff00ff00ff00ff00ff.json"]


def test_a_record_takes_the_place_of_an_older_one(tmp_path):
    """A name has one record, the last that was written."""
    write_record(tmp_path, BOUNDARY)
    write_record(tmp_path, evolve(BOUNDARY, run="/runs/second"))
    assert [each.run for each in read_records(tmp_path)] == ["/runs/second"]


def test_the_lowest_boundary_comes_first(tmp_path):
    """By the length of the trunk, which isn't that of names or phases, and then by phase."""
    for name, phase, trunk in (("a", "c", (0, 1, 2)), ("b", "b", (1, 0)), ("c", "a", (0, 1)), ("d", "d", (7,))):
        write_record(tmp_path, evolve(BOUNDARY, namespace=name * 32, phase=phase, trunk=trunk))
    assert [each.namespace for each in read_records(tmp_path)] == ["d" * 32, "c" * 32, "b" * 32, "a" * 32]


def test_stores_and_files_on_their_way_are_no_records(tmp_path):
    """Directories, files of other names, what a killed writer left, and a directory that isn't there."""
    assert read_records(tmp_path / "nowhere") == []
    (tmp_path / "00ff00ff00ff00ff00ff00ff00ff00ff").mkdir()
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / ".00ff00ff00ff00ff00ff00ff00ff00ff.json.99.tmp").write_text("half")
    assert read_records(tmp_path) == []


def test_a_record_is_dropped(tmp_path):
    """It is gone, the others stay, and dropping it again is no error."""
    write_record(tmp_path, BOUNDARY)
    write_record(tmp_path, evolve(BOUNDARY, namespace="01" * 16))
    drop_record(tmp_path, "00ff00ff00ff00ff00ff00ff00ff00ff")
    drop_record(tmp_path, "00ff00ff00ff00ff00ff00ff00ff00ff")
    assert [each.namespace for each in read_records(tmp_path)] == ["01" * 16]


def record(**changes: object) -> str:
    layout = {"tokens": 8, "d_model": 32, "dtype": "bf16"}
    fields = {"format": 1, "run": "/r", "phase": "p", "trunk": [0], "layout": layout, "made_of": {}}
    return json.dumps({**fields, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a boundary's record: JSONDecodeError: "),
        ("[]", "not a boundary's record: TypeError: "),
        ("{}", "not a boundary's record: KeyError: 'format'"),
        (record(format=2), "expected a boundary's record of format 1, found format 2"),
        (record(run=3), "not a boundary's record: expected its run, "),
        (record(phase=None), "not a boundary's record: expected its run, "),
        (record(trunk=[]), "not a boundary's record: expected its run, "),
        (record(trunk=["0"]), "not a boundary's record: expected its run, "),
        (record(trunk=[-1]), "not a boundary's record: expected its run, "),
        (record(trunk="12"), "not a boundary's record: expected its run, "),
        (record(layout={"tokens": 8, "d_model": 32}), "not a boundary's record: TypeError: "),
        (record(layout={"tokens": 0, "d_model": 32, "dtype": "bf16"}), "not a boundary's record: expected its run, "),
        (record(layout={"tokens": 8, "d_model": True, "dtype": "bf16"}), "not a boundary's record: expected its run, "),
        (record(layout={"tokens": 8, "d_model": 32, "dtype": "fp7"}), "not a boundary's record: expected its run, "),
        (record(layout={"tokens": 8, "d_model": 32, "dtype": ["bf16"]}), "not a boundary's record: expected its run, "),
        (record(made_of=[]), "not a boundary's record: expected its run, "),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text, message):
    """With what is wrong with it; ``record()`` by itself is one."""
    (tmp_path / "00ff00ff00ff00ff00ff00ff00ff00ff.json").write_text(record())
    assert len(read_records(tmp_path)) == 1
    (tmp_path / "00ff00ff00ff00ff00ff00ff00ff00ff.json").write_text(text)
    with pytest.raises(StackwiseError) as caught:
        read_records(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / '00ff00ff00ff00ff00ff00ff00ff00ff.json'}: {message}")


def test_torch_is_not_imported_for_it():
    """Records are read before anything heavy is."""
    assert heavy_imports("import stackwise_core.run_files.stored_boundaries", ("torch", "numpy", "safetensors")) == []
