import json
from pathlib import Path

import pytest

from stackwise_core.config.source_run import SourceRun, finished_run, nearest_run, read_source_run
from stackwise_core.errors import UsageError
from stackwise_core.run_files.plan_file import PlanFile

RUN = Path(__file__).parent / "golden/files/a_run"
DATA = json.loads((RUN / "plan.json").read_text())


def test_a_run():
    """Blocks, exits and the tokenizer are those of its plan."""
    run = read_source_run(str(RUN))
    assert run == SourceRun(RUN, PlanFile.from_json(DATA, RUN / "plan.json"))
    assert (run.blocks, run.exits, run.tokenizer) == ((2, 2, 2, 2), (0, 1, 2, 3), "8f2c0d5a")
    assert run.rack["n_kv_heads"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ("\xff", "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("1" * 5000, "can't be read"),
        ("3", "expected a table, found 3"),
        ("{}", "expected rack to be a table, found nothing"),
        (json.dumps(DATA | {"rack": []}), "expected rack to be a table, found an array"),
        *(
            (json.dumps(DATA | {"rack": DATA["rack"] | changes}), f"expected rack.{next(iter(changes))} to be {rest}")
            for changes, rest in (
                ({"d_model": True}, "an integer, found true"),
                ({"d_ff": 704.0}, "an integer, found 704.0"),
                ({"tie_embeddings": 1}, "a boolean, found 1"),
                ({"rope_theta": "1"}, 'a number, found the string "1"'),
                ({"attention": None}, '"bidirectional" or "causal", found nothing'),
                ({"blocks": 2}, "an array of integers, found 2"),
                ({"blocks": []}, r"whole numbers of 1 or more, found \[\]"),
                ({"blocks": [2, 0]}, r"whole numbers of 1 or more, found \[2, 0\]"),
            )
        ),
        (
            json.dumps(DATA | {"rack": DATA["rack"] | {"blocks": [2, True]}}),
            r"expected rack.blocks\[1\] to be an integer",
        ),
        (json.dumps(DATA | {"exits": [-1]}), r"expected exits to be whole numbers of 0 or more, found \[-1\]"),
        (json.dumps(DATA | {"exits": ["0"]}), r'expected exits\[0\] to be an integer, found the string "0"'),
        (json.dumps({key: DATA[key] for key in ("rack", "exits")}), "expected tokenizer to be a string, found nothing"),
    ],
)
def test_a_plan_that_no_run_wrote(tmp_path, content, message):
    """Whatever the file holds, one message names it and what is wrong first."""
    plan = tmp_path / "plan.json"
    plan.write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=message) as caught:
        read_source_run(tmp_path)
    assert str(plan) in str(caught.value)


def test_a_run_that_never_finished(tmp_path):
    """The mark that a run sets at its end tells it from one that wrote all its stacks and broke off."""
    (tmp_path / "plan.json").write_text(json.dumps(DATA))
    with pytest.raises(UsageError, match=r"never finished: there is no finished\.json"):
        read_source_run(tmp_path)


def test_a_number_may_be_written_as_an_integer(tmp_path):
    """JSON doesn't tell 10000.0 from 10000 everywhere."""
    (tmp_path / "finished.json").touch()
    (tmp_path / "plan.json").write_text(json.dumps(DATA | {"rack": DATA["rack"] | {"rope_theta": 10000}}))
    assert read_source_run(tmp_path).rack["rope_theta"] == 10000


@pytest.mark.parametrize("name", ["no/such/run", "\0", "a" * 5000])
def test_a_directory_that_is_not_there(name):
    """Also names that no file can have are just not there."""
    with pytest.raises(UsageError, match="no such directory"):
        read_source_run(name)


def test_a_directory_without_a_plan(tmp_path):
    """A directory that isn't a run's is refused with what is missing."""
    with pytest.raises(UsageError, match=r"there is no plan\.json in"):
        read_source_run(tmp_path)


def test_the_nearest_run(tmp_path):
    """A like name beside it, or the only run within, is what was meant; several runs within are no hint."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs/first/plan.json").touch()
    assert nearest_run(tmp_path / "runs/frist") == str(tmp_path / "runs/first")
    assert nearest_run(tmp_path / "runs") == str(tmp_path / "runs/first")
    assert nearest_run(tmp_path / "runs/secnod") is None
    assert nearest_run(tmp_path / "runs/first") is None
    (tmp_path / "runs/second/plan.json").touch()
    assert nearest_run(tmp_path / "runs") is None


def test_a_run_that_was_meant(tmp_path):
    """Whoever wants a finished run is told of the one with a like name."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first/plan.json").touch()
    with pytest.raises(UsageError, match=r"no such directory: .*frist\. Did you mean .*first\?"):
        finished_run(tmp_path / "frist")
