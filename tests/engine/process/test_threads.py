"""The number of threads, and equal bits however they wait."""

import json
import os
import subprocess
import sys

import pytest
import torch

import stackwise_core as sw
from stackwise_core.engine.process import threads
from stackwise_core.engine.process.threads import SAID_OUTSIDE, computing_threads
from stackwise_core.system.openmp import WAITING
from tests.command_line import CONFIG
from tests.tiny import run_tiny, telling


def test_threads_are_as_asked_and_as_they_were_afterwards():
    """Also when what is computed fails."""
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), computing_threads(before + 2):
        assert 1 / (torch.get_num_threads() - before - 2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("outside", "count"), [(None, 2), ("5", 5)])
def test_left_open_they_are_as_many_as_processors(monkeypatch, outside, count):
    """Of a quota of two, torch knows nothing; OMP_NUM_THREADS wins over it."""
    monkeypatch.setattr(threads, "processors", lambda: 2)
    monkeypatch.delenv(SAID_OUTSIDE, raising=False)
    if outside:
        monkeypatch.setenv(SAID_OUTSIDE, outside)
    with computing_threads(5), computing_threads(None):
        assert torch.get_num_threads() == count
    with computing_threads(1), computing_threads(None):
        assert torch.get_num_threads() == 1


def test_a_run_has_its_threads(tmp_path):
    """They are in its environment.json, in every step, and gone when it is over."""
    before, seen = torch.get_num_threads(), set()
    short = {"run.threads": before + 1, "training.steps_per_stack": 1, "evaluation": {"sequences": 2}}
    ran = run_tiny(tmp_path, short, before=telling(lambda *_: seen.add(torch.get_num_threads())))
    assert seen == {before + 1}
    assert json.loads((ran.directory / "environment.json").read_text())["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_bits_do_not_depend_on_how_threads_wait(tmp_path, monkeypatch):
    """Two threads that spin, in a process of their own, write the weights of two that sleep."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    short = {"run.threads": 2, "training.steps_per_stack": 2, "evaluation.sequences": 2}
    changes = [word for key, value in short.items() for word in ("--set", f"{key}={value}")]
    clean = {key: value for key, value in os.environ.items() if key not in WAITING}
    command = [sys.executable, "-m", "stackwise_core.cli", "run", "small.toml", *changes]
    subprocess.run(command, env=clean | {"GOMP_SPINCOUNT": "300000"}, check=True, capture_output=True)
    ran = sw.run(sw.load_config("small.toml", overrides=short))
    spun, slept = (
        {file.name: file.read_bytes() for file in each.rglob("*.safetensors")}
        for each in (tmp_path / "runs" / "small", ran.directory)
    )
    assert ran.directory.name == "small-2"
    assert spun == slept
    assert len(spun) == 3
