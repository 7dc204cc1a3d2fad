"""Every configuration under docs/examples is right, costs what it says, and stands in the table there."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from stackwise_core.cli import main
from stackwise_core.config.load import load
from stackwise_core.registry import Registry

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.toml"))
CHAIN = [name for name in NAMES if name.startswith("chain-")]
ROW = re.compile(r"^\| \[(.+?)\]\((.+?)\.toml\) \| `(\w+)` \| \S.*\|$", re.MULTILINE)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A working directory with a copy of the examples, where they are run from."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(EXAMPLES, folder / "docs" / "examples")
    return folder


@pytest.fixture(autouse=True)
def reader(here, monkeypatch):
    """The reader stands in the clone, in an environment that sets nothing."""
    for variable in [name for name in os.environ if name.startswith("STACKWISE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(here)


@pytest.fixture(scope="module")
def chain(here):
    """The runs of the chain, each of a step or two, from the one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name in CHAIN:
            run(name, "training.steps_per_stack=1", "evaluation.sequences=2")
    return here / "runs"


def run(name: str, *changes: str) -> str:
    """Return the output of an example."""
    changed = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(main, ["run", f"docs/examples/{name}.toml", *changed])
    assert done.exit_code == 0, done.output
    return done.output


def rows() -> dict[str, str]:
    """The mode of each example, as the table has it."""
    found = ROW.findall((EXAMPLES / "README.md").read_text())
    assert all(shown == f"{name}.toml" for shown, name, _ in found)
    return {name: mode for _, name, mode in found}


def test_the_table_is_complete():
    """Each file has its row, and no row is about a file that isn't there."""
    assert sorted(rows()) == NAMES


def test_every_mode_of_ours_has_an_example():
    """No trainer mode of stackwise-modes is without a configuration to start from."""
    modes = {
        declared.name
        for declared in Registry.discover(environ={}).implementations("trainer_mode")
        if declared.distribution == "stackwise-modes"
    }
    assert modes == set(rows().values())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_what_it_says(name, chain):
    """It loads, is named after its file, has the mode of its row, and its plan costs what its comment says."""
    from stackwise_core.engine.phases.setup import set_up
    from stackwise_core.engine.plan.plan import make_plan

    config, registry = load(f"docs/examples/{name}.toml", environ={})
    assert config.run.name == name
    assert config.trainer_mode.use == rows()[name]
    comment = (EXAMPLES / f"{name}.toml").read_text().split("\n\n")[0].splitlines()
    assert len(comment) == 3
    assert all(line.startswith("# ") for line in comment)
    said = re.fullmatch(r"# Cost: ([\d.]+) TFLOP(?: at most)?\.", comment[-1])
    assert said, comment[-1]
    # The built-in corpus differs from one version of Python to the next.
    planned = sum(phase.flops for phase in make_plan(set_up(config, registry)).phases) / 1e12
    assert float(said[1]) == pytest.approx(planned, rel=0.15)


def test_the_smallest_runs_as_it_is():
    """Whoever runs it sees a bound below that of guessing: ln 257 = 5.55 nats."""
    printed = run("smallest")
    bounds = re.findall(r"^(\d) stacks? +(\d+\.\d+) +± ", printed, re.MULTILINE)
    assert [depth for depth, _ in bounds] == ["1", "2"]
    assert all(float(bound) < 5.5 for _, bound in bounds)


def test_the_practical_regime_runs_in_small(here):
    """Over a trunk in nf4 each stack trains in bf16 and then its LoRA, on boundaries of its own time step alone."""
    small = ("rack.d_model=64", "data.seq_len=64", "training.window=64", "training.steps_per_stack=40")
    printed = run("practical", *small, "evaluation.sequences=8")
    bounds = [float(bound) for bound in re.findall(r"^\d stacks? +(\d+\.\d+) +± ", printed, re.MULTILINE)]
    assert len(bounds) == 3
    assert all(bound < math.log(257) for bound in bounds)  # and so none is nan or infinite

    run_directory = here / "runs" / "practical"
    phases = json.loads((run_directory / "finished.json").read_text())["phases"]
    assert [(phase["name"], phase["steps"]) for phase in phases] == [
        (name, steps) for stack in range(3) for name, steps in ((f"stack {stack}", 32), (f"stack {stack}, adapter", 8))
    ]
    assert all(phase["boundaries_read"] > 0 for phase in phases[2:])
    plan = json.loads((run_directory / "plan.json").read_text())["phases"]
    assert [phase["band"][0] for phase in plan] == pytest.approx([0.15, 0.15, 0.525, 0.525, 0.9, 0.9], abs=0.06)
    for stack in range(3):
        held = load_file(run_directory / f"trunk/{stack:03d}.safetensors")
        assert "layers.0.mlp.up_proj.weight.nested_absmax" in held  # nf4 with double quantisation
        lora = load_file(run_directory / f"adapters/{stack:03d}/stack/adapter_model.safetensors")
        assert all(tensor.any() for tensor in lora.values())  # B begins at zero
    assert not (run_directory / "cache").exists() or not any((run_directory / "cache").iterdir())


def test_a_rack_larger_than_memory_trains_in_small(here):
    """All stacks train, each in memory while it is at work; its plan is above what its budget would hold in memory."""
    config, _ = load("docs/examples/larger-than-memory.toml", environ={})
    state = 16 * (sum(config.rack.stack_blocks) * 12 * config.rack.d_model**2)
    assert state > config.training.memory_budget
    small = ("rack.d_model=64", "rack.n_heads=2", "rack.stacks=3", "data.seq_len=64", "evaluation.sequences=8")
    command = [sys.executable, "-m", "stackwise_core", "run", "docs/examples/larger-than-memory.toml"]
    changed = [word for change in small for word in ("--set", change)]
    subprocess.run([*command, *changed], check=True, capture_output=True)
    (phase,) = json.loads((here / "runs" / "larger-than-memory" / "plan.json").read_text())["phases"]
    assert (phase["offload"], phase["trains"], phase["steps"]) == ("disk", [0, 1, 2], 3)
    assert phase["memory"]["total"] < config.training.memory_budget


def test_the_plan_of_the_page_on_adapters_is_that_of_its_configuration(here):
    """docs/adapters.md shows the first columns of what ``stackwise plan`` prints, to the letter."""
    page = (EXAMPLES.parent / "adapters.md").read_text()
    (source,) = re.findall(r"^<!-- file: adapters.toml -->\n```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    Path("adapters.toml").write_text(source)
    printed = CliRunner().invoke(main, ["plan", "adapters.toml"]).output.splitlines()
    header = next(place for place, line in enumerate(printed) if line.startswith("phase "))
    width = printed[header].index("params")
    rows = [line[:width].rstrip() for line in printed[header : header + 8]]
    assert rows[-1].startswith("finale")
    assert "```\n" + "\n".join(rows) + "\n```" in page


def test_a_chain_goes_on_from_what_was_trained(chain):
    """The second run has the first one's stacks, to the byte; the third has changed all of them."""
    first, second, third = (chain / name / "stacks" for name in CHAIN)
    shared = sorted(file.name for file in first.iterdir())
    assert shared == ["000.safetensors", "001.safetensors"]
    for stack in shared:
        assert (second / stack).read_bytes() == (first / stack).read_bytes()
        assert (third / stack).read_bytes() != (second / stack).read_bytes()
