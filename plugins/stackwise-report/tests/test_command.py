"""``stackwise report``."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.system import files
from stackwise_core.testing.fresh import heavy_imports
from stackwise_report import page as page_module
from stackwise_report import samples
from tests.tiny import run_tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    changes = {"rack.stacks": 2, "training.steps_per_stack": 3}
    return run_tiny(tmp_path_factory.mktemp("whole"), changes).directory


@pytest.fixture
def run(tmp_path, whole, monkeypatch) -> Path:
    """A copy that may be changed, beside which the command runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "runs" / "first")
    return Path("runs/first")


def report(*arguments: object):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.mark.slow
def test_a_run_s_page_is_written_into_its_directory(run):
    """Its path is printed, and the run is as whole as before."""
    result = report(run)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "runs/first/report.html\n", "")
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not any(Manifest(run).problem(name) for name in Manifest(run))
    assert not list(run.glob(".*"))


@pytest.mark.slow
def test_that_of_several_is_written_here(run, tmp_path):
    """Or where --output says."""
    shutil.copytree(run, "runs/second")
    result = report(run, "runs/second")
    assert (result.exit_code, result.stdout) == (0, "report.html\n")
    assert "2 runs" in Path("report.html").read_text()
    result = report(run, "runs/second", "--output", tmp_path / "both.html")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'both.html'}\n")
    assert (tmp_path / "both.html").read_text() == Path("report.html").read_text()
    assert not (run / "report.html").exists()


def test_json_prints_the_numbers_and_writes_nothing(run):
    """They are those of finished.json."""
    before = sorted(run.rglob("*"))
    result = report(run, "--json")
    (found,) = json.loads(result.stdout)["runs"]
    ending = json.loads((run / "finished.json").read_text())
    assert result.exit_code == 0
    assert [phase["last_loss"] for phase in found["phases"]] == [phase["last_loss"] for phase in ending["phases"]]
    assert (found["run"], found["finished"], found["samples"]) == ("runs/first", True, [])
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_samples_are_those_of_the_rack(run):
    """As many as are asked for, the same each time, on the page and as JSON."""
    (found,) = json.loads(report(run, "--samples", "2", "--json").stdout)["runs"]
    assert len(found["samples"]) == 2
    assert json.loads(report(run, "--samples", "2", "--json").stdout)["runs"] == [found]
    assert report(run, "--samples", "2").exit_code == 0
    assert '<h2 id="samples">' in (run / "report.html").read_text()
    assert (run / "report.html").read_text().count('<pre class="sample">') == 2


def test_samples_need_a_finished_run(run):
    """The page isn't written without what was asked for."""
    (run / "finished.json").unlink()
    result = report(run, "--samples", "2")
    assert result.exit_code == 2
    assert result.stderr.startswith("the run in runs/first never finished: there is no finished.json")
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "expected the directory of a run, and there is no manifest.json in runs. Did you mean runs/first?"),
        (["runs/frist"], "there is no manifest.json in runs/frist. Did you mean runs/first?"),
        (["runs/first", "nowhere"], 'no run is called "nowhere"'),
        (["runs/first", "--output", "runs"], "--output runs: expected a file to write, found a directory."),
        (["runs/first", "--output", "no/a.html"], "expected a file to write, found in no, which is no directory."),
        (["runs/first", "--json", "--output", "a.html"], "--json prints, and --output names a page to write"),
        (["runs/first", "--samples", "0"], "0 is not in the range x>=1"),
        ([], "Missing argument 'RUN [RUN ...]'"),
    ],
)
def test_what_can_not_be_is_one_error(run, arguments, message):
    """With the exit code of a wrong use, and nothing written."""
    result = report(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (run / "report.html").exists()


def test_missing_packages_are_found_first(run, monkeypatch):
    """Exit code 3, with what is missing."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = report(run)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == 'command "report" of stackwise-report 0.1.0 needs jinja2, which is not installed\n'


def test_samples_need_the_package_that_samples(run, monkeypatch):
    """All else goes without it."""
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    result = report(run, "--samples", 2)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "--samples needs the package stackwise-sampling, which is not installed: pip install stackwise-sampling\n"
    )
    assert report(run).exit_code == 0


def test_json_loads_nothing_that_draws(run):
    """Numbers are there at once."""
    code = f"from stackwise_core.cli import main; main(['report', {str(run)!r}, '--json'], standalone_mode=False)"
    assert heavy_imports(code, ("jinja2", "matplotlib", "torch", "safetensors", "peft", "transformers")) == []


def test_json_does_not_mind_what_is_in_a_page_s_place(run):
    """No page is written, so it isn't in the way."""
    Path("report.html").mkdir()
    assert report(run, run, "--json").exit_code == 0


def test_a_page_is_replaced_as_a_whole_or_not_at_all(run, monkeypatch):
    """A full disk leaves the old one; a link in its place is replaced, and what it leads to is not."""
    Path("mine").write_text("mine")
    (run / "report.html").symlink_to(Path("mine").absolute())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module, "page", lambda *_: "<!DOCTYPE html>")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        result = report(run)
    assert (result.exit_code, result.stderr) == (1, "No space left on device: runs/first/report.html\n")
    assert (run / "report.html").is_symlink()
    assert report(run).exit_code == 0
    assert not (run / "report.html").is_symlink()
    assert Path("mine").read_text() == "mine"
    assert sorted(os.listdir()) == ["mine", "runs"]


def test_a_damaged_run_has_a_page_that_says_so(run):
    """One gap and the rest, and no traceback."""
    (run / "plan.json").write_text('{"phases": [')
    result = report(run)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "plan.json: not JSON" in (run / "report.html").read_text()


@pytest.mark.slow
def test_torch_is_not_imported_for_it(run):
    """Only samples need it."""
    code = f"from stackwise_core.cli import main; main(['report', {str(run)!r}], standalone_mode=False)"
    assert heavy_imports(code, ("torch", "safetensors", "peft", "transformers")) == []
