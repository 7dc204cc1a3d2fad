"""AdamW of torch and of bitsandbytes: rates, decay, state, what they need, and when they are imported."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from stackwise_core.config.dump import dump
from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UnavailableError
from stackwise_core.training.optimizer import STATE_BYTES, check_optimizer, make_optimizer
from stackwise_core.training.plan import make_plan
from stackwise_core.training.setup import set_up
from tests.tiny import Ran, run_tiny, tiny_config

CPU = torch.device("cpu")
WIDE = {"stacks": 2, "blocks_per_stack": 1, "d_model": 64, "n_heads": 2}
"""Its matrices have 4096 weights or more: smaller tensors keep 32 bits."""


def groups_of(optimizer, named) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of each parameter by name."""
    return {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in named
        for group in optimizer.param_groups
        if any(parameter is member for member in group["params"])
    }


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_adapters_have_a_learning_rate_of_their_own(optimizer):
    """adapter_lr times the stack's multiplier and the phase's factor; a decay is for matrices of the rack alone."""
    training = TrainingConfig(
        optimizer=optimizer,
        block_lr=1e-3,
        embedding_lr=2e-3,
        head_lr=3e-3,
        adapter_lr=4e-4,
        stack_lr_multipliers={1: 0.5},
        weight_decay=0.1,
    )
    expected = {
        "embed_tokens.weight": (2e-2, 0.1),
        "lm_head.weight": (3e-2, 0.1),
        "stacks.0.norm.weight": (1e-2, 0.0),
        "stacks.0.layers.0.mlp.up_proj.weight": (1e-2, 0.1),
        "stacks.1.layers.0.mlp.up_proj.weight": (5e-3, 0.1),
        "adapters.0.layers.0.mlp.up_proj.lora_A.stack.weight": (4e-3, 0.0),
        "adapters.1.layers.0.mlp.up_proj.lora_B.trunk.weight": (2e-3, 0.0),
        "adapters.10.layers.0.mlp.up_proj.lora_B.stack.weight": (4e-3, 0.0),
    }
    shapes = {name: (2,) if "norm" in name else (2, 2) for name in expected}
    named = [(name, nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
    found = groups_of(make_optimizer(named, training, factor=10), named)
    assert {name: pytest.approx(pair) for name, pair in found.items()} == expected


def losses(directory, optimizer: str) -> tuple[Ran, list[float]]:
    changes = {"rack": WIDE, "training.epochs_per_stack": 2, "training.optimizer": optimizer}
    ran = run_tiny(directory, changes)
    return ran, ran.losses


def test_eight_bits_train_as_thirty_two_do(tmp_path):
    """By bitsandbytes itself, on the CPU: from the same first loss down to nearly the same last one."""
    _, in_full = losses(tmp_path / "full", "adamw")
    _, in_eight = losses(tmp_path / "eight", "adamw_8bit")
    assert in_eight[0] == in_full[0]
    assert in_eight != in_full
    assert in_full[-1] < in_full[0] - 0.5
    assert in_eight[-1] == pytest.approx(in_full[-1], abs=0.02)


def test_the_two_moments_are_in_eight_bits():
    """Of matrices of 4096 weights or more; the bytes of their state are what the plan counts with."""
    named = [(f"stacks.0.{name}", nn.Parameter(torch.randn(shape))) for name, shape in (("w", (64, 64)), ("n", (64,)))]
    optimizer = make_optimizer(named, TrainingConfig(optimizer="adamw_8bit"))
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    matrix, norm = (optimizer.state[parameter] for _, parameter in named)
    assert (matrix["state1"].dtype, matrix["state2"].dtype) == (torch.uint8, torch.uint8)
    assert norm["state1"].dtype == torch.float32
    # The table of the codes' values is one for all tensors.
    held = sum(
        value.numel() * value.element_size()
        for name, value in matrix.items()
        if isinstance(value, torch.Tensor) and not name.startswith("qmap")
    )
    assert held / 4096 == pytest.approx(STATE_BYTES["adamw_8bit"])


def test_the_state_of_adamw_is_two_moments():
    """In fp32, as the plan counts them, apart from a step counter a tensor."""
    named = [("stacks.0.w", nn.Parameter(torch.randn(64, 64)))]
    optimizer = make_optimizer(named, TrainingConfig())
    named[0][1].grad = torch.randn(64, 64)
    optimizer.step()
    state = optimizer.state[named[0][1]]
    assert sum(state[name].numel() * 4 for name in ("exp_avg", "exp_avg_sq")) / 4096 == STATE_BYTES["adamw"]


def test_the_plan_counts_the_optimizer_s_state(tmp_path):
    """By its type, for what trains in each phase, adapters among it."""
    for name in ("adamw", "adamw_8bit"):
        changes = {
            "training.optimizer": name,
            "adapter": {"stack": {"use": "lora", "rank": 4}},
            "precision": {"trunk": "nf4"},
        }
        phases = make_plan(set_up(*tiny_config(tmp_path, changes))).phases
        assert len(phases) == 6
        for planned in phases:
            assert planned.memory.optimizer == round(STATE_BYTES[name] * planned.trainable_parameters)


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paging_on_a_cpu_is_unavailable(name):
    """It says why, and what to use; the command ends with 3."""
    with pytest.raises(UnavailableError, match="this run is on the CPU") as refused:
        check_optimizer(name, CPU)
    assert f'Use "{name.removeprefix("paged_")}"' in str(refused.value)
    assert refused.value.exit_code == 3
    check_optimizer(name, torch.device("cuda"))


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_without_bitsandbytes_it_is_unavailable(name, tmp_path, monkeypatch):
    """The message names the package and how to install it, before the text is read; torch's own needs nothing."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == "bitsandbytes" else find(module, *rest)
    )
    with pytest.raises(UnavailableError, match="pip install bitsandbytes") as refused:
        set_up(*tiny_config(tmp_path, {"training.optimizer": name, "data.corpus": "not/there.txt"}))
    assert f'training.optimizer = "{name}"' in str(refused.value)
    assert refused.value.exit_code == 3
    check_optimizer("adamw", CPU)


COMMANDS = """
import sys
from click.testing import CliRunner
from stackwise_core.cli import main

for words in ("plugins", "plugins show lora", "check adapters.toml", "run plain.toml", "run eight.toml"):
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    assert "Failed" not in done.output, done.output
    print(words, [name for name in ("torch", "peft", "bitsandbytes", "transformers") if name in sys.modules])
"""


def test_bitsandbytes_and_peft_wait_until_a_run_uses_them(tmp_path):
    """Listing and checking import neither, and no torch; a run without them imports torch alone; nothing is logged."""
    short = {"training.steps_per_stack": 2, "evaluation.sequences": 2, "rack.stacks": 1}
    adapters = {"adapter": {"stack": {"use": "lora"}}, "precision": {"trunk": "nf4"}}
    for name, changes in (
        ("plain", short),
        ("eight", short | {"training.optimizer": "adamw_8bit"}),
        ("adapters", adapters | {"training.optimizer": "adamw_8bit"}),
    ):
        config, _ = tiny_config(tmp_path, changes)
        (tmp_path / f"{name}.toml").write_text(dump(config))
    done = subprocess.run([sys.executable, "-c", COMMANDS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "plugins []",
        "plugins show lora []",
        "check adapters.toml []",
        "run plain.toml ['torch']",
        "run eight.toml ['torch', 'bitsandbytes']",
    ]
