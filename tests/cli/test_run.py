import hashlib
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.engine.runs.directory import RunDirectory
from tests.command_line import CONFIG, interruptible
from tests.tiny import TEXT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a small configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def stackwise(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "stackwise_core.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=cwd, check=False)


def test_a_run_prints_plan_progress_and_results(here):
    """In a pipe a run is plain lines: the plan, the phases, and two tables."""
    result = CliRunner().invoke(main, ["run", "small.toml"])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    for pattern in (
        r"^rack: 2 stacks, 2 blocks, d_model 32",
        r"^phase +starts at +trains",
        r"^run directory: runs/small$",
        r"^stack 1: \d+ steps from boundary above stack 0$",
        r"^stack 1: done in 0:0\d  loss \d\.\d+  [\d.]+k? tokens/s  peak \d+ MB$",
        r"^validation NELBO at +nats/token +std\. error +change +perplexity +bits/byte$",
        r"^2 stacks +\d\.\d{4} +± \d\.\d{4} +[+-]\d\.\d{4} +[\d.]+ +\d\.\d{4}$",
        r"^50-75 % +\d\.\d{4} +± \d\.\d{4} +\d\d\.\d%$",
    ):
        assert re.search(pattern, result.output, re.MULTILINE), (pattern, result.output)


def test_compiled_blocks_without_a_compiler_are_an_error(here, monkeypatch):
    """Before any work starts; nothing is written, and the exit code is that of what isn't there."""
    monkeypatch.setattr("stackwise_core.engine.phases.setup.missing_for_compiling", lambda device: "there is no g++")
    result = CliRunner().invoke(main, ["run", "small.toml", "--set", "run.compile=true"])
    assert result.exit_code == 3
    assert "run.compile = true, and there is no g++" in result.stderr
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_a_second_run_of_one_name_gets_a_directory_of_its_own(here):
    """Nothing that a run wrote is ever overwritten; the second one says why it isn't where it was asked to be."""
    first, second = (CliRunner().invoke(main, ["run", "small.toml"]) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "\nrun directory: runs/small-2 (runs/small is another run's)\n" in second.output
    assert {path.name for path in (here / "runs").iterdir()} == {"small", "small-2"}


@pytest.mark.slow
def test_json_is_all_that_a_machine_reads(here):
    """With --json stdout is one JSON document, and progress goes to stderr."""
    result = stackwise("run", "small.toml", "--json")
    assert result.returncode == 0, result.stderr
    read = json.loads(result.stdout)
    assert read["directory"] == "runs/small"
    assert [phase["name"] for phase in read["phases"]] == ["stack 0", "stack 1"]
    assert [likelihood["depth"] for likelihood in read["likelihoods"]] == [1, 2]
    assert "stack 0: done" in result.stderr


def test_plan_prints_a_table_or_json_and_trains_nothing(here):
    """A plan makes no run directory."""
    table = CliRunner().invoke(main, ["plan", "small.toml"])
    assert table.exit_code == 0, table.output
    assert re.search(r"^stack 1 +boundary above stack 0 +stack 1 ", table.output, re.MULTILINE)
    assert re.search(r"^phase .* FLOPs +time\n.* (s|min)\n", table.output, re.MULTILINE)
    assert re.search(r"^time: about [\d.]+ (s|min) in all on this machine", table.output, re.MULTILINE)
    plan = json.loads(CliRunner().invoke(main, ["plan", "small.toml", "--json"]).stdout)
    assert [phase["entry"] for phase in plan["phases"]] == ["tokens", "boundary above stack 0"]
    assert plan["phases"][1]["disk"] > 0
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "smal.toml"], 2, "small.toml"),
        (["run", "small.toml", "--set", "trainer_mode.use=blokwise"], 2, "blockwise"),
        (["run", "small.toml", "--set", "training.batch_sise=3"], 2, "batch_size"),
        (["run", "small.toml", "--set", "data.corpus=nowhere.txt"], 2, "nowhere.txt"),
        (
            ["run", "small.toml", "--set", "trainer_mode.use=end_to_end", "--set", "training.over=depth"],
            2,
            "training.over",
        ),
        (["plan", "small.toml", "--set", "precision.active=nf4"], 2, "Use it for precision.trunk"),
        (["run", "small.toml", "--set", "run.directory=small.toml"], 2, "small.toml"),
    ],
)
def test_mistakes_get_one_message_and_their_exit_code(here, arguments, code, message):
    """Usage is 2, what isn't installed is 3, and no traceback is shown."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_too_large_a_model_says_so(here):
    """What doesn't fit into memory is no defect, and the message names the keys that need less."""
    wide = ("--set", "rack.d_model=100000", "--set", "rack.d_ff=100000000")
    result = stackwise("run", "small.toml", "--beyond-machine", *wide)
    assert result.returncode == 1
    assert "out of memory. In training a smaller training.batch_size" in result.stderr


def test_weights_are_as_readable_as_other_files(here):
    """All files of a run have the permissions that the umask gives."""
    assert CliRunner().invoke(main, ["run", "small.toml"]).exit_code == 0
    modes = {path.stat().st_mode & 0o777 for path in (here / "runs/small").rglob("*") if path.is_file()}
    assert len(modes) == 1


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_130(here):
    """An interrupted run says so, and how to resume it."""
    process = interruptible(["run", "small.toml", "--set", "training.steps_per_stack=100000"], stderr=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stack 0"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = list(filter(None, errors.split("\n")))
    assert lines == ['"stackwise run runs/small" resumes this run.', "interrupted"]


def site_without(distribution: str, directory: Path) -> Path:
    """A site-packages directory that has all of this environment's packages but one distribution."""
    module, directory = distribution.replace("-", "_"), directory / "site"
    directory.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if module not in entry.name:
            (directory / entry.name).symlink_to(entry)
    return directory


def in_site(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line with this directory as the only site-packages."""
    code = f"import site, sys; site.addsitedir({str(directory)!r}); from stackwise_core.cli import main; main()"
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_without_stackwise_cache_what_needs_no_cache_works_on(here):
    """Listing and cacheless runs go on; a run that wants the cache exits 3 and names the package."""
    directory = site_without("stackwise-cache", here)
    listed = in_site(directory, "plugins")
    assert listed.returncode == 0, listed.stderr
    assert "blockwise" in listed.stdout
    assert "stackwise-cache" not in listed.stdout
    refused = in_site(directory, "run", "small.toml")
    assert refused.returncode == 3
    assert "pip install stackwise-cache" in refused.stderr
    (here / "small.toml").write_text(CONFIG.replace('[cache_backend]\nuse = "disk"', ""))
    ran = in_site(directory, "run", "small.toml")
    assert ran.returncode == 0, ran.stderr
    assert "2 stacks" in ran.stdout


@pytest.mark.slow
def test_a_third_party_schedule_trains(here):
    """A package from outside the repository, installed by pip, is listed and used by name."""
    directory = here / "third-party"
    source = ROOT / "tests" / "third_party" / "stackwise-sine"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(directory), str(source)], check=True, capture_output=True)
    listed = stackwise("plugins", PYTHONPATH=str(directory))
    assert re.search(r"mask_schedule +sine +stackwise-sine", listed.stdout), listed.stdout
    ran = stackwise("run", "small.toml", "--set", "mask_schedule.use=sine", PYTHONPATH=str(directory))
    assert ran.returncode == 0, ran.stderr
    environment = json.loads((here / "runs/small/environment.json").read_text())
    assert environment["plugins"]["mask_schedule"]["distribution"] == "stackwise-sine"


def test_a_broken_plugin_is_listed_and_harms_no_run(here, install):
    """A plugin whose module raises is reported with its exception, and a run that doesn't use it works."""
    install("stackwise-broken", {"broken_hooks": "raise RuntimeError('no such luck')\n"}, {"broken": "broken_hooks"})
    listed = CliRunner().invoke(main, ["plugins"])
    assert re.search(r"broken .*stackwise-broken.*broken.*no such luck", listed.output)
    assert CliRunner().invoke(main, ["run", "small.toml"]).exit_code == 0


@pytest.mark.slow
def test_a_local_plugin_file_trains_and_is_remembered(here):
    """A schedule in a file beside the TOML works without packaging, and the run's own config.toml finds it again."""
    (here / "mine.py").write_text(
        "from attrs import frozen\n"
        "from stackwise_core.hookspecs import Implementation, hookimpl\n"
        "from stackwise_core.interfaces.mask_schedule import MaskSchedule\n\n"
        "@frozen\nclass Options:\n    pass\n\n"
        "class Square(MaskSchedule):\n    def fraction(self, progress):\n        return progress**2\n\n"
        "@hookimpl\ndef mask_schedule():\n"
        "    return [Implementation('square', 'p squared', 'mine:Square', 'mine:Options')]\n"
    )
    ran = stackwise("run", "small.toml", "-p", "mine.py", "--set", "mask_schedule.use=square")
    assert ran.returncode == 0, ran.stderr
    assert stackwise("check", "runs/small/config.toml").returncode == 0


def test_checking_a_file_with_six_mistakes_shows_all_six(here):
    """Six located errors, one message each, exit 2, and nothing was run."""
    (here / "six.toml").write_text(
        '[run]\nseed = "seventeen"\n[rack]\nstackz = 4\nd_model = 0\n[training]\nbatch_size = 1.5\n'
        'masks = "random"\n[trainer_mode]\nuse = "blokwise"\n'
    )
    result = CliRunner().invoke(main, ["check", "six.toml"])
    assert result.exit_code == 2
    assert re.findall(r"six\.toml:(\d+):\d+", result.output) == ["2", "4", "5", "7", "8", "10"]
    assert "6 errors. Nothing was run." in result.output
    assert '"blockwise"' in result.output


def test_site_packages_are_where_the_test_looks():
    """The copy of site-packages that other tests make is of this environment's own."""
    assert sysconfig.get_paths()["purelib"] in site.getsitepackages()


MORTAL = """
import os
import signal
from pathlib import Path

from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_precision.floats import Fp32
from stackwise_precision.nvfp4 import Nvfp4


@hookimpl
def precision():
    options = "stackwise_precision.options"
    return [
        Implementation("mortal32", "fp32 that may die computing", "mortal:Mortal32", f"{options}:Fp32Options"),
        Implementation("mortal4", "nvfp4 that may die quantising", "mortal:Mortal4", f"{options}:Nvfp4Options"),
    ]


def die_if_asked(name):
    file = Path(__file__).with_name(name)
    if file.exists():
        left = int(file.read_text())
        file.write_text(str(left - 1))
        if left == 0:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal32(Fp32):
    def autocast(self, device):
        die_if_asked("die-when-computing")
        return super().autocast(device)


class Mortal4(Nvfp4):
    def prepare(self, stack, *, trainable):
        die_if_asked("die-when-quantising")
        super().prepare(stack, trainable=trainable)
"""
KILLED = """
extends = "small.toml"
[run]
name = "killed"
log_every = 1
plugins = ["mortal.py"]
[rack]
stacks = 3
[precision]
active = "mortal32"
trunk = "mortal4"
[training]
steps_per_stack = 6
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Where a run with a quantising plugin ended; the plugin and its configuration stand beside."""
    here: Path = tmp_path_factory.mktemp("killed")
    (here / "mortal.py").write_text(MORTAL)
    (here / "killed.toml").write_text(KILLED)
    (here / "small.toml").write_text(CONFIG.replace('"tokens"', f'"{here}/tokens"'))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        ran = CliRunner().invoke(main, ["run", "killed.toml"])
    assert ran.exit_code == 0, ran.output
    return here


def bits(run: Path) -> dict[str, str]:
    """A hash of every file with weights, by name."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.suffix == ".safetensors"
    }


def kill(here: Path, file: str, after: int) -> Path:
    """Run it until it is killed with SIGKILL, and verify what it left."""
    (here / file).write_text(str(after))
    before = set((here / "runs").iterdir())
    ran = stackwise("run", "killed.toml", cwd=here)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    (directory,) = set((here / "runs").iterdir()) - before
    verified = CliRunner().invoke(main, ["verify", str(directory)])
    assert verified.exit_code == 0, verified.output
    return directory


def resumes(directory: Path, phase: str, undisturbed: Path) -> None:
    """Check that the run resumes with a phase, and ends with an undisturbed run's bits."""
    result = CliRunner().invoke(main, ["run", str(directory)])
    assert result.exit_code == 0, result.output
    began = re.findall(r"^(stack [^:]*): \d+ steps", result.output, re.MULTILINE)
    assert began[0] == phase
    assert bits(directory) == bits(undisturbed / "runs" / "killed")
    assert CliRunner().invoke(main, ["verify", str(directory)]).exit_code == 0


@pytest.mark.slow
def test_a_run_that_is_killed_before_a_finished_stack_is_quantised_loses_nothing(undisturbed):
    """Its master is whole on disk, and the run resumes with the phase that needs it quantised."""
    directory = kill(undisturbed, "die-when-quantising", after=0)
    assert sorted(bits(directory)) == ["embedding.safetensors", "stacks/000.safetensors"]
    for name in ("embedding.safetensors", "stacks/000.safetensors"):
        assert bits(directory)[name] == bits(undisturbed / "runs" / "killed")[name]
    resumes(directory, "stack 1", undisturbed)


@pytest.mark.slow
def test_a_run_that_is_killed_in_the_middle_of_a_phase_begins_the_phase_anew(undisturbed):
    """What was done before stays done, and what the phase had learnt by then leaves no trace."""
    directory = kill(undisturbed, "die-when-computing", after=17)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines if line["kind"] == "phase"] == ["stack 0"]
    assert [line["step"] for line in lines if line.get("phase") == "stack 1"] == [1, 2]
    resumes(directory, "stack 1", undisturbed)


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed run that may be changed."""
    return Path(shutil.copytree(undisturbed / "runs/killed", tmp_path / "runs/first"))


@pytest.fixture
def unmarked(finished) -> Path:
    """The finished run, without the mark that it has finished, as if killed before."""
    RunDirectory(finished).manifest.drop("finished.json")
    return finished


def test_a_finished_run_says_so_and_does_nothing(finished):
    """Exit code 0, and not a file is touched."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = CliRunner().invoke(main, ["run", str(finished)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f'{finished} is finished. "stackwise evaluate {finished}" measures it.\n'
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_run_with_all_phases_behind_it_is_measured_and_finished(unmarked, undisturbed):
    """Nothing trains; the likelihoods are those of the undisturbed run."""
    result = CliRunner().invoke(main, ["run", str(unmarked), "--json"])
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    assert read["directory"] == str(unmarked)
    lines = [json.loads(line) for line in (undisturbed / "runs/killed/metrics.jsonl").read_text().splitlines()]
    theirs = [line["nats_per_token"] for line in lines if line["kind"] == "likelihood"]
    assert [likelihood["nats_per_token"] for likelihood in read["likelihoods"]] == theirs
    assert [phase["name"] for phase in read["phases"]] == [line["name"] for line in lines if line["kind"] == "phase"]
    assert not re.search(r"^stack .* steps from", result.stderr, re.MULTILINE)
    assert (unmarked / "finished.json").is_file()


def test_a_finished_run_takes_no_changes(finished):
    """--set is refused, since there is nothing left to do."""
    result = CliRunner().invoke(main, ["run", str(finished), "--set", "training.batch_size=4"])
    assert result.exit_code == 2
    assert result.stderr == f"--set: the run in {finished} is finished. With --fresh a new one begins.\n"


def test_what_the_environment_says_is_for_new_runs(unmarked, monkeypatch):
    """A variable that was set since doesn't change a resumed run."""
    monkeypatch.setenv("STACKWISE_TRAINING__BATCH_SIZE", "0")
    assert CliRunner().invoke(main, ["run", str(unmarked)]).exit_code == 0


@pytest.mark.parametrize(
    ("path", "guess"), [("runs", ". Did you mean {here}/runs/first?"), ("runs/frist", None), ("empty", "")]
)
def test_a_directory_that_is_no_run_is_refused(tmp_path, finished, path, guess):
    """With the run that was probably meant."""
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(main, ["run", str(tmp_path / path)])
    assert result.exit_code == 2
    if guess is not None:
        expected = "expected a configuration, or the directory of a run; there is no progress.json"
        assert result.stderr == f"{tmp_path / path}: {expected}{guess.format(here=tmp_path)}\n"


def test_a_run_does_not_go_on_with_another_text(here):
    """Not even with one of equal length, whose plan has the same numbers."""
    (here / "text.txt").write_text(TEXT.read_text())
    ran = CliRunner().invoke(main, ["run", "small.toml", "--set", "data.corpus=text.txt"])
    assert ran.exit_code == 0, ran.output
    RunDirectory(here / "runs/small").manifest.drop("finished.json")
    (here / "text.txt").write_text(TEXT.read_text().replace("light", "night"))
    result = CliRunner().invoke(main, ["run", "runs/small"])
    assert result.exit_code == 2
    said = f"runs/small can't be resumed: what it was trained on is no longer the text of {here / 'text.txt'}."
    assert said in result.stderr


def test_a_run_killed_between_its_first_commit_and_the_renames_goes_on(here):
    """Its files are found beside their places, the configuration among them."""
    assert CliRunner().invoke(main, ["run", "small.toml"]).exit_code == 0
    directory = here / "runs/small"
    manifest = directory / "manifest.json"
    said = json.loads(manifest.read_text())
    first = ["config.toml", "embedding.safetensors", "environment.json", "plan.json", "progress.json"]
    del said["files"]["finished.json"]
    manifest.write_text(json.dumps(said | {"pending": first, "dropped": ["finished.json"]}))
    for name in first:
        (directory / name).rename(directory / f"{name}.{said['commit']}.new")
    result = CliRunner().invoke(main, ["run", "runs/small"])
    assert result.exit_code == 0, result.output
    assert (directory / "finished.json").is_file()
