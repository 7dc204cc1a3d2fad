"""``import stackwise_core as sw``: the functions that the command line is made of."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

import stackwise_core as sw
from stackwise_core.cli import main
from stackwise_core.engine.events.events import PhaseResumed, StepDone
from stackwise_sampling import sample
from tests.command_line import CONFIG


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a small configuration in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def test_reading_a_configuration_takes_no_torch(here):
    """Nor does the import."""
    code = (
        "import sys, stackwise_core as sw; sw.load_config('small.toml'); "
        "print(*sw.__all__, [name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*sw.__all__, "[]"]


def test_there_is_no_other_name():
    """A name that isn't there is an AttributeError, as of any module."""
    assert {"load_config", "load_rack", "plan", "run"} <= set(dir(sw))
    with pytest.raises(AttributeError, match="'stackwise_core' has no attribute 'train'"):
        sw.train  # noqa: B018


def test_overrides_by_key(here):
    """Values have their own types, and paths and tuples become what TOML has for them."""
    overrides = {"training.batch_size": 4, "data.tokens_directory": here / "t", "optimizer.betas": (0.5, 0.6)}
    config = sw.load_config("small.toml", overrides=overrides).config
    assert (config.training.batch_size, config.optimizer.options.betas) == (4, (0.5, 0.6))
    assert config.data.tokens_directory == str(here / "t")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training.batch_sise": 4}, r'overrides\["training.batch_sise"\]: training.batch_sise: unknown key'),
        ({"training.batch_size": "4"}, r'overrides\["training.batch_size"\]: training.batch_size: expected'),
        ({"training batch": 4}, r'overrides\["training batch"\]: expected a dotted key, such as'),
    ],
)
def test_an_override_that_is_wrong_is_named(here, overrides, said):
    """The message says which key of the mapping it was."""
    with pytest.raises(sw.ConfigError, match=said):
        sw.load_config("small.toml", overrides=overrides)


def test_a_plan_is_what_the_command_line_prints(here):
    """Phases, memory, disk and operations; nothing is trained."""
    printed = json.loads(CliRunner().invoke(main, ["plan", "small.toml", "--json"]).stdout)
    made = json.loads(json.dumps(sw.plan("small.toml").to_json()))
    for phase in made["phases"] + printed["phases"]:
        assert phase.pop("memory")["total"] > 0  # it has what this process takes now, and so has the boundary
        phase.pop("boundary")
    assert made == printed
    assert not (here / "runs" / "small").exists()


def test_a_run_and_its_rack(here):
    """A listener sees every step; the rack measures what the run did, from anywhere; it isn't run again."""
    events = []
    result = sw.run(sw.load_config("small.toml"), listener=events.append)
    assert result.directory == here / "runs" / "small"
    steps = [event for event in events if isinstance(event, StepDone)]
    assert len(steps) == sum(phase.steps for phase in result.phases)
    rack = sw.load_rack(Path("runs/small"))
    (here / "elsewhere").mkdir()
    os.chdir(here / "elsewhere")
    assert rack.evaluate() == list(result.likelihoods)
    assert not os.listdir()
    os.chdir(here)
    with pytest.raises(sw.Finished, match="small is finished"):
        sw.run(result.directory)


@pytest.mark.slow
def test_it_goes_on_with_a_run_that_broke_off(here):
    """From its last checkpoint, unless a fresh one is asked for; another configuration is refused."""

    def stop(event):
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    every_step = {"checkpoint.steps": 1}
    with pytest.raises(KeyboardInterrupt):
        sw.run(sw.load_config("small.toml", overrides=every_step), listener=stop)
    with pytest.raises(sw.UsageError, match=r"training\.block_lr"):
        sw.run(sw.load_config("small.toml", overrides={**every_step, "training.block_lr": 0.5}))
    fresh = sw.run(sw.load_config("small.toml", overrides=every_step), fresh=True)
    events = []
    resumed = sw.run(sw.load_config(here / "runs" / "small"), listener=events.append)
    assert [event.step for event in events if isinstance(event, PhaseResumed)] == [2]
    assert fresh.directory.name == "small-2"
    assert resumed.likelihoods == fresh.likelihoods


@pytest.mark.parametrize("name", ["nothing", "small.toml"])
def test_a_rack_that_is_not_there(here, name):
    """What isn't a run's directory is refused in one line."""
    with pytest.raises(sw.StackwiseError, match=name):
        sw.load_rack(name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_leaves_a_checkpoint(here, number):
    """Ctrl-C in a notebook finishes the step, as on the command line; the same call goes on after it."""
    seen: list[object] = []

    def interrupt(event: object) -> None:
        seen.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="the same call resumes from there"):
            sw.run("small.toml", listener=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [event.step for event in seen if isinstance(event, StepDone)] == [1, 2]
    sw.run("small.toml", listener=seen.append)
    (resumed,) = [event.step for event in seen if isinstance(event, PhaseResumed)]
    assert resumed == 2


def test_a_run_in_another_thread_leaves_signals_alone(here):
    """Python handles them in the main thread only."""
    with ThreadPoolExecutor(1) as other:
        assert other.submit(sw.run, "small.toml").result().likelihoods


def test_a_listener_may_change_the_working_directory(here, monkeypatch):
    """All of a run is in one place, and its result stays valid."""
    (here / "elsewhere").mkdir()

    def wander(event: object) -> None:
        if isinstance(event, StepDone):
            os.chdir(here / "elsewhere")

    tokens: list[float] = []

    def tokenised(done: int, share: float) -> None:
        tokens.append(share)
        os.chdir(here / "elsewhere")

    result = sw.run("small.toml", listener=wander, tokenised=tokenised)
    assert tokens
    assert Path.cwd() == here / "elsewhere"
    assert os.listdir(here / "elsewhere") == []
    assert result.directory == here / "runs" / "small"
    assert {"metrics.jsonl", "finished.json", "stacks"} <= set(os.listdir(result.directory))
    rack = sw.load_rack(os.path.relpath(result.directory), stream=True)
    monkeypatch.chdir("/")
    assert sample(rack, length=3)


def test_a_plugin_may_change_the_working_directory(here, monkeypatch):
    """At import, as its options are read, and as it is made: paths on the command line stay what they are."""
    (here / "elsewhere").mkdir()
    source = (
        f"import os\nos.chdir({str(here / 'elsewhere')!r})\n"
        "from attrs import frozen\n"
        "from stackwise_core.hookspecs import Implementation, hookimpl\n"
        "from stackwise_core.interfaces.mask_schedule import MaskSchedule\n\n"
        "@frozen\nclass Options:\n    pass\n\n"
        "class Wandering(MaskSchedule):\n"
        "    def __init__(self, options):\n        super().__init__(options)\n"
        f"        os.chdir({str(here / 'elsewhere')!r})\n\n"
        "    def fraction(self, progress):\n        return progress\n\n"
        "@hookimpl\ndef mask_schedule():\n"
        "    return [Implementation('wandering', 'moves', 'wandering_plugin:Wandering', 'wandering_plugin:Options')]\n"
    )
    (here / "wandering_plugin.py").write_text(source)
    overrides = {"mask_schedule.use": "wandering", "training.steps_per_stack": 1}
    result = sw.run(sw.load_config("small.toml", plugins=["wandering_plugin.py"], overrides=overrides))
    monkeypatch.delitem(sys.modules, "wandering_plugin")
    assert Path.cwd() == here
    assert result.directory == here / "runs" / "small"
    assert os.listdir(here / "elsewhere") == []
