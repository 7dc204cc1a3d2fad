"""A packed ternary precision from elsewhere: it holds the contract, and any adapter stands on it."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from stackwise_core.cli import main
from stackwise_core.testing.adapter import AdapterContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.precision import PrecisionContract
from stackwise_peft.ia3 import Ia3
from stackwise_peft.lora import Dora, Lora
from stackwise_peft.options import Ia3Options, LoraOptions
from tests.tiny import run_tiny

pytestmark = pytest.mark.usefixtures("packages")


def ternary(dtype=torch.bfloat16):
    from stackwise_ternary.options import TernaryOptions
    from stackwise_ternary.ternary import Ternary

    class Computed(Ternary):
        pass

    Computed.dtype = dtype
    return Computed(TernaryOptions())


class TestPlugin(PluginContract):
    hooks = "stackwise_ternary.hooks"


class TestTernary(PrecisionContract):
    largest_error = 0.9  # of normally distributed weights, three levels miss 0.44 a layer

    @pytest.fixture
    def precision(self):
        return ternary()


def test_four_weights_are_in_a_byte():
    """Each is a sign or zero, times the mean of the large magnitudes of its row; worked out by hand."""
    from stackwise_ternary.ternary import TernaryRows

    held = TernaryRows(0.7)
    tensors = held.encode(torch.tensor([[3.0, -1.0, 0.1, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    # By row: the mean magnitude is 1.22 and the threshold 0.854; the large ones are 3, 1 and 2.
    assert tensors["row_scales"].tolist() == [[2.0], [0.0]]
    assert tensors["codes_ternary"].tolist() == [[2 | 0 << 2 | 1 << 4 | 1 << 6, 0], [0b01010101, 1]]
    decoded = held.decode(tuple(tensors.values()), 5, torch.float32)
    assert decoded.tolist() == [[2.0, -2.0, 0.0, 0.0, -2.0], [0.0] * 5]


class OnTernary(AdapterContract):
    tolerance = 1e-4
    test_merging_keeps_the_output = test_each_stack_s_part_is_exported = None  # on no precision in particular

    @pytest.fixture(autouse=True)
    def _on_ternary(self, packages):
        self.precision = ternary(torch.float32)


class TestLora(OnTernary):
    @pytest.fixture
    def adapter(self):
        return Lora(LoraOptions(target_modules=("k_proj", "down_proj")))


class TestIa3(OnTernary):
    @pytest.fixture
    def adapter(self):
        return Ia3(Ia3Options())


class TestDora(OnTernary):
    @pytest.fixture
    def adapter(self):
        return Dora(LoraOptions(target_modules=("k_proj", "down_proj")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapters", [{"stack": {"use": "dora", "rank": 2}, "trunk": {"use": "lora", "rank": 2}}, {"stack": {"use": "ia3"}}]
)
def test_adapters_train_and_are_read_back_over_it(tmp_path, adapters):
    """Over a trunk of 2 bits a weight; what is read from its files gives the run's own bound, to the bit."""
    changes = {
        "precision": {"active": "bf16", "trunk": "ternary"},
        "adapter": adapters,
        "trainer_mode": {"use": "progressive"} | ({"trunk": "adapters"} if "trunk" in adapters else {}),
        "training.adapter_lr": 0.01,
        "training.steps_per_stack": 4,
        "rack.stacks": 2,
        "evaluation": {"sequences": 4, "draws": 1},
    }
    ran = run_tiny(tmp_path, changes)
    masters, held = (load_file(ran.directory / name / "000.safetensors") for name in ("stacks", "trunk"))
    weights = sum(tensor.numel() for tensor in masters.values() if tensor.ndim == 2)
    assert sum(each.numel() for name, each in held.items() if name.endswith("codes_ternary")) == weights / 4
    for name in adapters:
        written = load_file(ran.directory / f"adapters/000/{name}/adapter_model.safetensors")
        begun = {key: 0.0 if "lora_B" in key else 1.0 for key in written if "lora_B" in key or "ia3" in key}
        assert begun
        assert all((written[key] != value).any() for key, value in begun.items())
    told = CliRunner().invoke(main, ["evaluate", str(ran.directory), "--json"])
    assert told.exit_code == 0, told.output
    found = [each["nats_per_token"] for each in json.loads(told.stdout)["likelihoods"]]
    assert found == [each.nats_per_token for each in ran.result.likelihoods]


def test_it_is_listed():
    """With its package, as ours are."""
    listed = CliRunner().invoke(main, ["plugins", "--json"])
    found = {each["name"]: each for each in json.loads(listed.stdout)["implementations"]}
    for name in ("ternary", "bottleneck", "ladder"):
        assert (found[name]["distribution"], found[name]["state"]) == (f"stackwise-{name}", "ready")
