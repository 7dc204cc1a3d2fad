"""Event files of runs, read by TensorBoard's own reader."""

import errno
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.engine.events.events import StepDone
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_tensorboard import event_files
from stackwise_tensorboard.event_files import EventFiles
from tests.interrupted_runs import Broken, break_everywhere, engine
from tests.run_bits import bits
from tests.tiny import Ran, run_tiny

CHANGES = {
    "rack.stacks": 2,
    "training.steps_per_stack": 4,
    "training.stack_lr_multipliers": {1: 0.5},
    "evaluation": {"every": 2, "sequences": 4},
    "tracker.board": "tensorboard",
}


@contextmanager
def opened(directory: Path) -> Iterator[EventFiles]:
    with closing(EventFiles(directory)) as files:
        yield files


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard would draw them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def drawn(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    return {folder.name: scalars(folder) for folder in sorted((run / "tensorboard").iterdir())}


def without_the_clock(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """All curves but those that two runs can't share."""
    return {
        folder: {tag: curve for tag, curve in curves.items() if tag not in ("tokens_per_second", "peak_bytes")}
        for folder, curves in drawn(run).items()
    }


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    return run_tiny(tmp_path_factory.mktemp("whole"), CHANGES)


def test_curves_are_those_of_the_metrics(ran):
    """Every number of metrics.jsonl that is a curve's, by phase, on an axis on which phases follow one another."""
    found, expected = drawn(ran.directory), defaultdict(lambda: defaultdict(list))
    before = {"stack 0": ("1 stack 0", 0), "stack 1": ("2 stack 1", 4)}
    for line in lines(ran.directory):
        if line["kind"] == "step":
            folder, offset = before[line["phase"]]
            for tag in ("loss", "grad_norm", "tokens_per_second", "peak_bytes", "masked"):
                expected[folder][tag].append((offset + line["step"], pytest.approx(line[tag], rel=1e-6)))
            for part, rate in line["learning_rates"].items():
                value = pytest.approx(rate, rel=1e-6)
                expected[folder][f"learning_rate/{part}"].append((offset + line["step"], value))
        elif line["kind"] == "validation":
            folder, offset = before[line["phase"]]
            expected[folder]["validation_loss"].append((offset + line["step"], pytest.approx(line["loss"], rel=1e-6)))
        elif line["kind"] == "likelihood":
            curves = expected["evaluation"]
            for tag in ("nats_per_token", "bits_per_byte"):
                curves[tag].append((line["depth"], pytest.approx(line[tag], rel=1e-6)))
            for name, band in zip(("0-25 %", "25-50 %", "50-75 %", "75-100 %"), line["bands"], strict=True):
                value = pytest.approx(band["nats_per_token"], rel=1e-6)
                curves[f"nats_per_token/{name}"].append((line["depth"], value))
    assert found == {folder: dict(curves) for folder, curves in expected.items()}
    assert [step for step, _ in found["2 stack 1"]["loss"]] == [5, 6, 7, 8]
    assert [step for step, _ in found["2 stack 1"]["validation_loss"]] == [6, 8]


def test_a_stack_has_the_learning_rate_that_is_its_own(ran):
    """A multiplier shows, and parts that don't train have no curve."""
    steps = [line for line in lines(ran.directory) if line["kind"] == "step"]
    assert [set(line["learning_rates"]) for line in steps] == 4 * [{"stacks", "embedding"}] + 4 * [{"stack 1"}]
    assert all(line["learning_rates"]["stack 1"] == pytest.approx(line["learning_rate"] / 2) for line in steps[4:])
    assert max(line["learning_rate"] for line in steps) == pytest.approx(3e-3)


def test_the_masked_share_is_that_of_the_draws(tmp_path):
    """Of one fraction it is near that fraction; of causal language modelling there is none."""
    schedule = {"mask_schedule": {"use": "linear", "min_fraction": 0.4, "max_fraction": 0.4}}
    changes = {"rack.stacks": 1, "training.steps_per_stack": 8, "training.weighting": "mean", **schedule}
    shares = [line["masked"] for line in lines(run_tiny(tmp_path, changes).directory) if line["kind"] == "step"]
    assert len(shares) == 8
    assert all(0.25 < share < 0.55 for share in shares)
    assert sum(shares) / 8 == pytest.approx(0.4, abs=0.04)
    causal = {"rack.attention": "causal", "objective": "clm", "mask_schedule": None}
    directory = run_tiny(tmp_path, {"rack.stacks": 1, "training.steps_per_stack": 2, **causal}).directory
    assert [line["masked"] for line in lines(directory) if line["kind"] == "step"] == [None, None]


def test_no_bit_of_the_weights_depends_on_it(tmp_path, ran):
    """A run without TensorBoard ends with the same files, but for the key in its configuration."""
    without = run_tiny(tmp_path, {**CHANGES, "tracker": None}).directory
    assert not (without / "tensorboard").exists()
    ours, theirs = (
        {name: digest for name, digest in bits(run).items() if name.endswith(".safetensors")}
        for run in (ran.directory, without)
    )
    assert len(ours) == 3
    assert ours == theirs
    assert ran.losses == [line["loss"] for line in lines(without) if line["kind"] == "step"]


@pytest.mark.slow
def test_a_run_that_breaks_off_everywhere_has_each_step_once(tmp_path, ran):
    """Its curves are an undisturbed run's, though each phase was begun by one process and ended by another."""
    directory, lives, _ = break_everywhere(tmp_path, {**CHANGES, "checkpoint.steps": 1})
    assert len(lives) == 5
    assert len(list((directory / "tensorboard" / "1 stack 0").iterdir())) == 2
    assert without_the_clock(directory) == without_the_clock(ran.directory)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """What SIGKILL would leave of a run, a step after its last checkpoint: the files as others see them just then."""
    here, left = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("left") / "tiny"

    def look(event) -> None:
        if isinstance(event, StepDone) and (event.planned.phase.name, event.step) == ("stack 1", 3):
            shutil.copytree(here / "runs" / "tiny", left)
            raise Broken

    with pytest.raises(Broken):
        engine(here, {**CHANGES, "checkpoint.steps": 2}, look).run()
    return left


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["between records", "within a record"])
def test_a_killed_run_has_each_step_once(tmp_path, ran, killed, torn):
    """Its last step is taken again; the clock may go backwards meanwhile."""
    directory = Path(shutil.copytree(killed, tmp_path / "runs" / "tiny"))
    (file,) = (directory / "tensorboard" / "2 stack 1").iterdir()
    assert [step for step, _ in scalars(file.parent)["loss"]] == [5, 6, 7]
    if torn:
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_files.time, "time", lambda: 1.0)
        engine(tmp_path, {**CHANGES, "checkpoint.steps": 2}, lambda event: None, directory).run()
    assert without_the_clock(directory) == without_the_clock(ran.directory)


def test_a_broken_off_run_would_show_points_twice(tmp_path):
    """Without the mark that a later process sets, the same points are there twice: the tests above can fail."""
    for mark in (False, True):
        folder = tmp_path / str(mark)
        for first in (1, 2):
            with opened(folder) as board:
                board.begin("phase", first if mark else 9)
                for step in range(first, 4):
                    board.write(step, {"loss": 1.0})
    assert [step for step, _ in scalars(tmp_path / "False" / "phase")["loss"]] == [1, 2, 3, 2, 3]
    assert [step for step, _ in scalars(tmp_path / "True" / "phase")["loss"]] == [1, 2, 3]


def test_verify_does_not_mind(ran):
    """The files grow while the run goes on, as metrics.jsonl does, and are in no manifest."""
    result = CliRunner().invoke(main, ["verify", str(ran.directory)])
    assert result.exit_code == 0, result.output
    assert not any("tensorboard" in name for name in RunDirectory(ran.directory).manifest)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a/../b", "a_.._b"), ("..", "_"), ("", "_"), ("x" * 300, "x" * 80), ("cycle 1, stack 0", "cycle 1, stack 0")],
)
def test_a_phase_s_name_leads_nowhere(tmp_path, name, folder):
    """A plugin may call its phases what it likes."""
    with opened(tmp_path / "board") as board:
        board.begin(name, 1)
        board.write(1, {"loss": 1.0})
    assert [path.name for path in (tmp_path / "board").iterdir()] == [folder]
    assert list(tmp_path.iterdir()) == [tmp_path / "board"]


@pytest.mark.parametrize("link", ["board", "board/phase"])
def test_nothing_is_written_through_a_link(tmp_path, link):
    """A run's directory may be somebody else's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "mine")
    with opened(tmp_path / "board") as board:
        board.begin("phase", 1)
        with pytest.raises(OSError, match="a link, expected a directory"):
            board.write(1, {"loss": 1.0})
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_the_run_goes_on(tmp_path, ran, monkeypatch):
    """The disk takes a part of a record; the error names the file, and nothing is lost once there is room."""

    class Full(io.FileIO):
        left = 600

        def write(self, record):
            part = record[: self.left]
            if not part:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= len(part)
            return super().write(part)

    monkeypatch.setattr(event_files, "FileIO", Full)
    with pytest.raises(OSError, match="No space left") as error:
        engine(tmp_path, CHANGES, lambda event: None).run()
    directory = tmp_path / "runs" / "tiny"
    (file,) = (directory / "tensorboard" / "1 stack 0").iterdir()
    assert error.value.filename == str(file)
    assert file.stat().st_size == 600
    monkeypatch.undo()
    engine(tmp_path, CHANGES, lambda event: None, directory).run()
    assert without_the_clock(directory) == without_the_clock(ran.directory)


@pytest.mark.slow
def test_a_removed_directory_is_one_error(tmp_path, ran):
    """The system would go on taking what is written to a deleted file; the run can go on afterwards."""
    directory = tmp_path / "runs" / "tiny"

    def remove(event) -> None:
        if isinstance(event, StepDone) and event.planned.phase.name == "stack 1" and event.step == 2:
            shutil.rmtree(directory / "tensorboard")

    with pytest.raises(FileNotFoundError, match="deleted while the run writes to it") as error:
        engine(tmp_path, CHANGES, remove).run()
    assert error.value.filename.startswith(str(directory / "tensorboard" / "2 stack 1"))
    engine(tmp_path, CHANGES, lambda event: None, directory).run()
    assert set(without_the_clock(directory)["2 stack 1"]) == set(drawn(ran.directory)["2 stack 1"]) - {
        "tokens_per_second",
        "peak_bytes",
    }


def test_event_files_may_be_elsewhere(tmp_path):
    """``directory`` has a folder for each run, and the run's own has none."""
    tracker = {"board": {"use": "tensorboard", "directory": str(tmp_path / "boards")}}
    ran = run_tiny(tmp_path, {"rack.stacks": 1, "training.steps_per_stack": 2, "tracker": tracker})
    assert not (ran.directory / "tensorboard").exists()
    assert set(scalars(tmp_path / "boards" / "tiny" / "1 stack 0")) >= {"loss", "masked"}


def test_the_key_of_before_says_where_it_went(tmp_path):
    """``run.tensorboard`` is refused with its line and what to write."""
    (tmp_path / "a.toml").write_text("[run]\ntensorboard = true\n")
    result = CliRunner().invoke(main, ["check", str(tmp_path / "a.toml")])
    assert result.exit_code == 2
    assert "a.toml:2:1: run.tensorboard: unknown key" in result.stderr
    assert '[tracker] board = "tensorboard" does that now' in result.stderr
