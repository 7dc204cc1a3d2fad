"""The optimizer of a phase: rates, decay, contract, and when its packages are imported."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from stackwise_core.builtin.options import AdamWOptions
from stackwise_core.config.dump import dump
from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.loop.adamw import AdamW
from stackwise_core.engine.loop.optimizer import make_optimizer
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.errors import UnavailableError
from stackwise_core.interfaces.component import ContractError
from tests.tiny import tiny_config


def test_adapters_have_a_learning_rate_of_their_own():
    """adapter_lr times the stack's multiplier and the phase's factor; a decay is for matrices of the rack alone."""
    training = TrainingConfig(
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
    made = make_optimizer(AdamW(AdamWOptions()), named, training, factor=10)
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in named
        for group in made.param_groups
        if any(parameter is member for member in group["params"])
    }
    assert {name: pytest.approx(pair) for name, pair in found.items()} == expected


def test_the_plan_counts_the_optimizer_s_state(tmp_path):
    """By what the optimizer says, for what trains in each phase, adapters among it."""
    for name in ("adamw", "adamw_8bit"):
        changes = {
            "optimizer": {"use": name},
            "adapter": {"stack": {"use": "lora", "rank": 4}},
            "precision": {"trunk": "nf4"},
        }
        setup = set_up(*tiny_config(tmp_path, changes))
        phases = make_plan(setup).phases
        assert len(phases) == 6
        for planned in phases:
            state_bytes = setup.implementations.optimizer.state_bytes
            assert planned.memory.optimizer == round(state_bytes * planned.trainable_parameters)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda groups: "no optimizer", "gave str, expected a torch.optim.Optimizer"),
        (lambda groups: torch.optim.SGD(groups[:1]), "gave an optimizer of other groups"),
        (lambda groups: torch.optim.SGD([{**each, "lr": 7.0} for each in groups]), "gave an optimizer of other groups"),
    ],
)
def test_an_optimizer_that_breaks_its_contract_is_named(make, said):
    """What a plugin made is looked at before a step is taken."""
    plugin = type("Strange", (AdamW,), {"make": lambda self, groups: make(groups)})(AdamWOptions())
    named = [("stacks.0.w", nn.Parameter(torch.ones(2, 2))), ("stacks.0.b", nn.Parameter(torch.ones(2)))]
    with pytest.raises(ContractError, match=rf"Strange: make\(\) {said}"):
        make_optimizer(plugin, named, TrainingConfig())


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paging_on_a_cpu_is_unavailable(name, tmp_path):
    """It says that it runs on CUDA devices; the command ends with 3."""
    with pytest.raises(UnavailableError, match=rf'optimizer "{name}".* cuda, not on cpu') as refused:
        set_up(*tiny_config(tmp_path, {"optimizer": {"use": name}, "run.device": "cpu"}))
    assert refused.value.exit_code == 3


def test_without_bitsandbytes_it_is_unavailable(tmp_path, monkeypatch):
    """The message names the package, before the text is read; torch's own needs nothing."""
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == "bitsandbytes" else find(module, *rest)
    )
    changes = {"optimizer": {"use": "adamw_8bit"}, "data.corpus": "not/there.txt"}
    with pytest.raises(UnavailableError, match=r'optimizer "adamw_8bit".*bitsandbytes') as refused:
        set_up(*tiny_config(tmp_path, changes))
    assert refused.value.exit_code == 3
    set_up(*tiny_config(tmp_path, {}))


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


@pytest.mark.slow
def test_bitsandbytes_and_peft_wait_until_a_run_uses_them(tmp_path):
    """Listing and checking import neither, and no torch; a run without them imports torch alone; nothing is logged."""
    short = {"training.steps_per_stack": 2, "evaluation.sequences": 2, "rack.stacks": 1}
    adapters = {"adapter": {"stack": {"use": "lora"}}, "precision": {"trunk": "nf4"}}
    for name, changes in (
        ("plain", short),
        ("eight", short | {"optimizer": {"use": "adamw_8bit"}}),
        ("adapters", adapters | {"optimizer": {"use": "adamw_8bit"}}),
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
