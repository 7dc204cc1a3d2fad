"""Files that peft reads without Stackwise, and files that nobody should trust."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from stackwise_bitsandbytes.four_bit import Nf4
from stackwise_bitsandbytes.options import FourBitOptions
from stackwise_core.errors import StackwiseError
from stackwise_core.testing.adapter import fill
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states
from stackwise_peft.ia3 import Ia3
from stackwise_peft.lora import Dora, Lora, Olora, Pissa, RsLora
from stackwise_peft.options import Ia3Options, LoraOptions, PissaOptions

# Above 32 a rank is capped on keys and values, so that the files hold two ranks.
KINDS = {
    "lora": Lora(LoraOptions(rank=40, alpha=20.0)),
    "dora": Dora(LoraOptions(rank=40, alpha=20.0)),
    "rslora": RsLora(LoraOptions(rank=40, alpha=3.0)),
    "pissa": Pissa(PissaOptions(rank=40, alpha=20.0)),
    "olora": Olora(LoraOptions(rank=40, alpha=20.0)),
    "ia3": Ia3(Ia3Options()),
    "ia3 of attention": Ia3(Ia3Options(target_modules=("q_proj", "o_proj"))),
}


def nf4_stack():
    stack = frozen_stack()
    Nf4(FourBitOptions(compute="fp32")).prepare(stack, trainable=False)
    return stack


@torch.no_grad()
def output(model):
    return model.eval()(hidden_states(), everything_visible())


def saved(adapter, directory, *, stack=None, name="first", seed=1):
    """Files of an adapter with weights, and the output of the stack with it."""
    stack = stack or frozen_stack()
    adapter.attach(stack, name, 0, 1)
    fill(adapter.trainable(stack, [name]), seed)
    adapter.save(stack, name, directory)
    return stack, output(stack)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_it(kind, tmp_path):
    """peft's own loader gives the same output on a plain stack with the original weights."""
    _, expected = saved(KINDS[kind], tmp_path)
    loaded = PeftModel.from_pretrained(frozen_stack(), tmp_path)
    assert torch.allclose(output(loaded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "ia3", "ia3 of attention"])
def test_peft_loads_it_over_nf4(kind, tmp_path):
    """It gives the same output on quantised weights."""
    _, expected = saved(KINDS[kind], tmp_path, stack=nf4_stack())
    loaded = PeftModel.from_pretrained(nf4_stack(), tmp_path)
    assert torch.allclose(output(loaded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("new_stack", [frozen_stack, nf4_stack])
def test_peft_loads_both_of_a_dual_lora(new_stack, tmp_path):
    """Two adapters of different ranks and projections give the same output together."""
    stack, _ = saved(Lora(LoraOptions(rank=8)), tmp_path / "stack", stack=new_stack(), name="stack")
    trunk = Lora(LoraOptions(rank=3, target_modules=("q_proj", "down_proj")))
    _, expected = saved(trunk, tmp_path / "trunk", stack=stack, name="trunk", seed=2)
    loaded = PeftModel.from_pretrained(new_stack(), tmp_path / "stack", adapter_name="stack")
    loaded.load_adapter(tmp_path / "trunk", adapter_name="trunk")
    loaded.base_model.set_adapter(["stack", "trunk"])
    assert torch.allclose(output(loaded), expected, rtol=1e-4, atol=1e-4)


def test_what_peft_saves_loads_here(tmp_path):
    """An adapter that peft trained on and saved comes back with its weights."""
    _, expected = saved(KINDS["lora"], tmp_path / "ours")
    PeftModel.from_pretrained(frozen_stack(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    stack = frozen_stack()
    KINDS["lora"].load(stack, "first", tmp_path / "theirs")
    assert torch.equal(output(stack), expected)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_an_initialisation_is_saved_as_twice_the_rank(kind, tmp_path):
    """B A - B0 A0 is a plain LoRA, on weights that nothing was taken from; untrained, it is no change at all."""
    stack, adapter = frozen_stack(), KINDS[kind]
    original = output(stack)
    adapter.attach(stack, "first", 0, 1)
    changed = {name for name, weight in frozen_stack().named_parameters() if "proj" in name}
    assert not any(
        torch.equal(stack.get_parameter(name.replace("_proj", "_proj.base_layer")), frozen_stack().get_parameter(name))
        for name in changed
    )
    adapter.save(stack, "first", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == 80
    assert set(config["rank_pattern"].values()) == {64}
    loaded = frozen_stack()
    adapter.load(loaded, "first", tmp_path)
    assert loaded.layers[0].self_attn.k_proj.lora_A["first"].weight.shape == (64, 64)
    assert torch.allclose(output(loaded), original, rtol=1e-4, atol=1e-4)
    own = dict(frozen_stack().named_parameters())
    assert all(
        torch.equal(weight, own[name.replace(".base_layer", "")])
        for name, weight in loaded.named_parameters()
        if "lora" not in name
    )


def test_saving_again_gives_the_same_bytes(tmp_path):
    """Also after loading, so that a checksum of an adapter that didn't train stays."""
    saved(KINDS["dora"], tmp_path / "first")
    fresh = frozen_stack()
    KINDS["dora"].load(fresh, "other", tmp_path / "first")
    KINDS["dora"].save(fresh, "other", tmp_path / "second")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    targets = json.loads((tmp_path / "first" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_loading_draws_nothing(tmp_path):
    """The run's random numbers go on as if nothing had been loaded."""
    saved(KINDS["lora"], tmp_path)
    torch.manual_seed(5)
    expected, stack = torch.rand(3), frozen_stack()
    torch.manual_seed(5)
    KINDS["lora"].load(stack, "first", tmp_path)
    assert torch.equal(torch.rand(3), expected)


def edited(directory, **changes):
    """Change keys of an adapter's config."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "XLORA"}, '`peft_type`: expected "LORA", found "XLORA"'),
        ({"peft_type": "IA3"}, '`peft_type`: expected "LORA", found "IA3"'),
        ({"peft_type": None}, "`peft_type`"),
        ({"r": True}, "`r`: expected an integer"),
        ({"r": 0}, "`r`: expected an integer of at least 1, found 0"),
        ({"r": 10**12}, r"lora_A.weight: expected floats \[1000000000000, 64\], found torch.float32 \[40, 64\]"),
        ({"lora_alpha": "32"}, "`lora_alpha`: expected a number"),
        ({"lora_alpha": float("nan")}, "`lora_alpha`: expected a number"),
        ({"lora_dropout": 1}, "`lora_dropout`"),
        ({"target_modules": "(a+)+$"}, "`target_modules`: expected names of projections"),
        ({"target_modules": ["q_proj", "lm_head"]}, "`target_modules`"),
        ({"target_modules": [["q_proj"]]}, "`target_modules`"),
        ({"target_modules": ["q_proj"], "rank_pattern": {}}, "it has base_model.model.layers.0.mlp.down_proj.lora_A"),
        ({"rank_pattern": {"(.*a){25}": 4}}, "`rank_pattern`: expected ranks by a projection's full name"),
        ({"rank_pattern": []}, "`rank_pattern`"),
        ({"use_dora": True}, "`use_dora`: expected false for this adapter, found true"),
        ({"use_rslora": True}, "`use_rslora`: expected false"),
        ({"init_lora_weights": "pissa"}, '`init_lora_weights` = "pissa" isn\'t supported'),
        ({"modules_to_save": ["norm"]}, "`modules_to_save`"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "`megatron_co"),
        ({"layer_replication": [[0, 9]]}, "`layer_replication`"),
        ({"corda_config": {"cache_file": "cache.pt"}}, "`corda_config`"),
        ({"trainable_token_indices": [1]}, "`trainable_token_indices`"),
        ({"a_new_key": 1}, "`a_new_key` = 1 isn't supported"),
    ],
)
def test_a_config_that_is_refused(changes, message, tmp_path):
    """What an adapter here can't be is refused before anything is built from it, and the file is named."""
    saved(KINDS["lora"], tmp_path)
    edited(tmp_path, **changes)
    stack = frozen_stack()
    with pytest.raises(StackwiseError, match=message) as refused:
        KINDS["lora"].load(stack, "first", tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert {name for name, _ in stack.named_parameters()} == {name for name, _ in frozen_stack().named_parameters()}


def test_an_ia3_config_that_is_refused(tmp_path):
    """Which projections it scales the input of follows from their names."""
    saved(KINDS["ia3"], tmp_path)
    edited(tmp_path, feedforward_modules=["k_proj"])
    with pytest.raises(StackwiseError, match=r"`feedforward_modules`: expected \['down_proj'\]"):
        KINDS["ia3"].load(frozen_stack(), "first", tmp_path)


def test_what_a_config_names_is_not_looked_up(tmp_path, monkeypatch):
    """A base model and a class to import are never asked for, nor is a pickle beside the weights."""
    _, expected = saved(KINDS["lora"], tmp_path)
    edited(
        tmp_path,
        base_model_name_or_path="nobody/nothing",
        revision="main",
        auto_mapping={"base_model_class": "Popen", "parent_library": "subprocess"},
        task_type="CAUSAL_LM",
    )
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    def refuse(*args, **kwargs):
        raise AssertionError("it was looked up")

    for target in (
        "torch.load",
        "huggingface_hub.hf_hub_download",
        "peft.utils.save_and_load.check_file_exists_on_hf_hub",
    ):
        monkeypatch.setattr(target, refuse)
    stack = frozen_stack()
    KINDS["lora"].load(stack, "first", tmp_path)
    config = stack.peft_config["first"]
    assert config.base_model_name_or_path is config.auto_mapping is config.revision is None
    assert torch.equal(output(stack), expected)


def test_a_config_that_is_no_config(tmp_path):
    """Missing, cut short, or no object: the file is named."""
    saved(KINDS["lora"], tmp_path)
    path = tmp_path / "adapter_config.json"
    for content in (path.read_text()[:-9], "[1]", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass"), None):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(StackwiseError, match=path.name):
            KINDS["lora"].load(frozen_stack(), "first", tmp_path)


def test_weights_that_are_refused(tmp_path):
    """Missing, too few, too many, of another shape or type, cut short: the file is named."""
    saved(KINDS["lora"], tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    some = "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for wrong, message in (
        ({name: tensor for name, tensor in tensors.items() if name != some}, f"it doesn't have {some}"),
        ({**tensors, "norm.weight": torch.zeros(64)}, "it has base_model.model.norm.weight"),
        ({**tensors, some: tensors[some][:, 1:].contiguous()}, r"expected floats \[40, 64\]"),
        ({**tensors, some: tensors[some].int()}, "found torch.int32"),
    ):
        save_file(wrong, path)
        with pytest.raises(StackwiseError, match=message):
            KINDS["lora"].load(frozen_stack(), "first", tmp_path)
    path.write_bytes(whole[:-4])
    with pytest.raises(StackwiseError, match=f"{path.name} can't be read"):
        KINDS["lora"].load(frozen_stack(), "first", tmp_path)
    path.unlink()
    with pytest.raises(StackwiseError, match=f"{path.name} can't be read"):
        KINDS["lora"].load(frozen_stack(), "first", tmp_path)
