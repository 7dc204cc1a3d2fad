"""The files of a run are what their records say, to the key."""

import json
import subprocess
import sys

import pytest
from attrs import fields

from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.environment_file import EnvironmentFile
from stackwise_core.run_files.plan_file import PlanFile
from stackwise_core.run_files.progress_file import FinishedFile, PhaseResult, ProgressFile
from stackwise_core.run_files.records import as_json, read_record
from stackwise_core.run_files.run import COUNTS

RECORDS = {
    "plan.json": PlanFile,
    "progress.json": ProgressFile,
    "finished.json": FinishedFile,
    "environment.json": EnvironmentFile,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_run_writes_its_records(finished, name):
    """Read and written again, each file has the same keys and values."""
    content = json.loads((finished / name).read_text())
    assert as_json(read_record(RECORDS[name], content, finished / name)) == content


def test_the_tolerant_reader_counts_what_is_written():
    """A page shows every count of boundaries that a phase has."""
    counts = {field.name for field in fields(PhaseResult) if field.name.startswith("boundaries_")}
    assert {f"boundaries_{count}" for count in COUNTS} == counts


def test_they_are_read_without_torch(finished):
    """Whoever looks at a run doesn't wait for it."""
    code = (
        "import json, sys; from pathlib import Path; from stackwise_core.run_files.plan_file import PlanFile; "
        "file = Path(sys.argv[1]); plan = PlanFile.from_json(json.loads(file.read_text()), file); "
        "print(len(plan.phases), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(finished / "plan.json")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "3 False\n"


@pytest.fixture
def plan(finished):
    """A plan as JSON values."""
    return json.loads((finished / "plan.json").read_text())


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("rack", "blocks"), [], r"rack\.blocks to be whole numbers of 1 or more, found \[\]"),
        (("rack", "d_ff"), 0, r"rack\.d_ff to be 1 or more, found 0"),
        (("rack", "n_heads"), 3, r"rack\.n_heads to be a divisor of d_model, 32, found 3"),
        (("rack", "norm_eps"), float("nan"), r"rack\.norm_eps to be a finite number, found nan"),
        (("rack", "time_fractions"), [0.5, 1.5], r"rack\.time_fractions to be fractions of 0 to 1"),
        (("exits",), [0, -1], r"exits to be whole numbers of 0 or more, found \[0, -1\]"),
        (("routes",), [], r"routes to be one route or more, found \[\]"),
        (("routes", 0, "path"), [0, 3], r"routes\[0\]\.path to be stacks of 0 to 2, found \[0, 3\]"),
        (("routes", 0, "path"), [], r"routes\[0\]\.path to be stacks of 0 to 2, found \[\]"),
        (("routes", 0, "band"), [0.0, float("inf")], r"routes\[0\]\.band to be fractions of 0 to 1"),
        (("phases", 1, "band"), [float("nan"), 1.0], r"phases\[1\]\.band to be fractions of 0 to 1"),
        (("phases", 1, "masks"), "some", r'phases\[1\]\.masks to be "fixed" or "resampled", found the string "some"'),
        (("phases", 1, "memory", "total"), None, r"phases\[1\]\.memory\.total to be an integer, found nothing"),
    ],
)
def test_a_plan_that_no_rack_has_is_refused(tmp_path, plan, where, value, said):
    """The first key that is wrong is named, with what was expected."""
    *path, key = where
    table = plan
    for step in path:
        table = table[step]
    table[key] = value
    with pytest.raises(StackwiseError, match=rf"plan\.json: expected {said}"):
        PlanFile.from_json(plan, tmp_path / "plan.json")


def test_a_plan_without_later_keys_is_read(finished, plan):
    """What has a default wasn't written once."""
    for key in ("streams", "notes", "speed"):
        del plan[key]
    del plan["rack"]["time_fractions"], plan["phases"][0]["start"]
    read = PlanFile.from_json(plan, finished / "plan.json")
    assert (read.streams, read.notes, read.speed, read.rack.spec.time_fractions) == (False, (), None, ())
