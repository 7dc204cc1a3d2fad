import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load
from stackwise_core.config.source_checkpoint import SourceCheckpoint
from stackwise_core.config.source_checkpoint import read_source as read_any
from stackwise_core.errors import UsageError
from stackwise_core.registry import Registry
from tests.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A Llama of three blocks."""
    path = tmp_path_factory.mktemp("source") / "llama"
    save_checkpoint(path, shard="60kB")
    return path


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def read_source(directory: Path) -> SourceCheckpoint:
    """A directory as a rack that starts from it is checked with it."""
    source = read_any(directory, Registry.discover(environ={}))
    assert isinstance(source, SourceCheckpoint)
    return source


def change(directory: Path, file: str = "config.json", **keys: object) -> None:
    """Set keys of a JSON file; ... takes one out."""
    path = directory / file
    content = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_a_checkpoint(llama):
    """Its shape by our names, its blocks, the one exit, and where each tensor is."""
    found = read_source(llama)
    assert found.rack == {
        "vocab_size": 300,
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 64,
        "attention": "causal",
        "tie_embeddings": False,
        "norm_eps": 1e-6,
        "rope_theta": 5000.0,
    }
    assert (found.blocks, found.exits, found.tokens, found.rows) == ((1, 1, 1), (2,), 300, 300)
    stored = found.described.stored
    assert stored["layers.2.mlp.up_proj.weight"][1] == "model.layers.2.mlp.up_proj.weight"
    assert len({name for name, _ in stored.values()}) > 2
    assert set(found.described.files) == {"config.json", "tokenizer.json", *(name for name, _ in stored.values())}


def test_the_config_of_transformers_4(copy):
    """rope_theta had a key of its own, and what was left out its default."""
    change(copy, rope_parameters=..., rope_theta=70, head_dim=..., hidden_act=..., rms_norm_eps=..., layer_types=None)
    found = read_source(copy).rack
    assert (found["rope_theta"], found["norm_eps"]) == (70, 1e-6)
    change(copy, rope_theta=..., rope_scaling={"type": "default"}, is_causal=False)
    change(copy, sliding_window=4096, use_sliding_window=False)  # as of a Qwen that was made a Llama
    found = read_source(copy).rack
    assert (found["rope_theta"], found["attention"]) == (10_000, "bidirectional")


CONFIGS = {
    "another model": (
        {"model_type": "gpt2"},
        'expected model_type to be one of llama, eurobert, mistral, found "gpt2"',
    ),
    "no model": ({"model_type": ...}, "expected model_type to be one of llama, eurobert, mistral, found nothing"),
    "another head": (
        {"architectures": ["LlamaForSequenceClassification"]},
        'expected architectures to be LlamaForCausalLM or LlamaModel, found ["LlamaForSequenceClassification"]',
    ),
    "biases": ({"attention_bias": True}, "expected attention_bias to be false, found true"),
    "biases of the feed-forward layer": ({"mlp_bias": True}, "expected mlp_bias to be false, found true"),
    "another activation": ({"hidden_act": "gelu"}, 'expected hidden_act to be "silu", found "gelu"'),
    "scaled positions": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
        'expected rotary positions without scaling, found rope_parameters = { rope_type = "llama3"',
    ),
    "scaled positions in transformers 4": (
        {"rope_scaling": {"type": "linear", "factor": 2}},
        'expected rotary positions without scaling, found rope_scaling = { type = "linear"',
    ),
    "positions of a part": ({"partial_rotary_factor": 0.5}, "expected rotary positions without scaling"),
    "no base": ({"rope_parameters": {"rope_theta": "x"}}, 'expected rope_theta to be a number above 0, found "x"'),
    "windows": ({"sliding_window": 4096}, "expected sliding_window to be nothing, found 4096"),
    "Mistral's own windows": (
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
        "expected sliding_window to be nothing, found 4096",
    ),
    "Mistral's windows, which nothing switches off": (
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "use_sliding_window": False},
        "expected sliding_window to be nothing, found 4096",
    ),
    "windows in some": ({"layer_types": ["full_attention", "sliding_attention"]}, 'to be "full_attention" throughout'),
    "wide heads": ({"head_dim": 16}, "expected head_dim to be hidden_size / num_attention_heads = 8, found 16"),
    "odd heads": ({"num_attention_heads": 3}, "expected num_attention_heads to divide hidden_size = 32"),
    "odd groups": ({"num_key_value_heads": 3}, "num_key_value_heads to divide it, found 4 and 3"),
    "foreign code": ({"auto_map": {"AutoModel": "x.Y"}}, "it asks for code of its own, and none is run"),
    "quantised": (
        {"quantization_config": {"bits": 4}},
        "its weights are quantised; start from the full-precision ones",
    ),
    "no width": ({"hidden_size": None}, "expected hidden_size to be an integer of 1 or more, found nothing"),
    "a strange width": (
        {"hidden_size": "32"},
        'expected hidden_size to be an integer of 1 or more, found the string "32"',
    ),
    "no blocks": ({"num_hidden_layers": 0}, "expected num_hidden_layers to be an integer of 1 or more, found 0"),
    "no boolean": ({"tie_word_embeddings": 1}, "expected tie_word_embeddings to be a boolean, found 1"),
    "no epsilon": ({"rms_norm_eps": 0}, "expected rms_norm_eps to be a number above 0, found 0"),
    "a strange length": (
        {"max_position_embeddings": "long"},
        'expected max_position_embeddings to be an integer of 1 or more, found the string "long"',
    ),
    "more blocks than any file has": (
        {"num_hidden_layers": 1 << 39},
        "expected tensors of 549755813888 blocks, as config.json says, found 30 tensors in all",
    ),
    "too few blocks": (
        {"num_hidden_layers": 2},
        "found layers.2.input_layernorm.weight, layers.2.mlp.down_proj.weight, layers.2.mlp.gate_proj.weight and 6 "
        "more",
    ),
    "too many blocks": (
        {"num_hidden_layers": 4},
        "expected the tensor layers.3.input_layernorm.weight, layers.3.self_attn.q_proj.weight, "
        "layers.3.self_attn.k_proj.weight and 6 more, as config.json says, and there is none",
    ),
    "another width": ({"intermediate_size": 96}, "expected [32, 96] in F32, BF16 or F16, found [32, 64] in F32"),
    "a smaller vocabulary": ({"vocab_size": 299}, "expected [299, 32] in F32, BF16 or F16, found [300, 32] in F32"),
}


@pytest.mark.parametrize(("keys", "message"), CONFIGS.values(), ids=CONFIGS)
def test_what_is_no_rack_of_ours_is_refused(copy, keys, message):
    """With what was found and what was expected, and the file that says so."""
    change(copy, **keys)
    with pytest.raises(UsageError) as caught:
        read_source(copy)
    assert message in str(caught.value)
    assert str(copy) in str(caught.value)


def test_all_of_it_is_said_at_once(copy):
    """Several keys of config.json, each with its line."""
    change(copy, hidden_act="gelu", attention_bias=True, num_hidden_layers=0, head_dim=16)
    with pytest.raises(ConfigError) as caught:
        load_with(copy)
    assert [problem.key for problem in caught.value.problems] == ["rack.init_from"] * 3


def load_with(directory: Path, **rack: object):
    """The configuration of a rack that starts from a checkpoint."""
    toml = directory.parent / "stackwise.toml"
    lines = [
        f"{key} = {json.dumps(value)}" for key, value in {"init_from": str(directory), "stacks": 3, **rack}.items()
    ]
    toml.write_text("\n".join(["[rack]", "blocks_per_stack = 1", *lines]))
    return load(toml, environ={})[0]


def test_what_the_configuration_leaves_out_follows(copy):
    """Also its tokenizer; and the run's own config.toml says all of it."""
    from stackwise_core.config.dump import dump

    config = load_with(copy)
    rack = config.rack
    assert (rack.d_model, rack.n_heads, rack.n_kv_heads, rack.d_ff) == (32, 4, 2, 64)
    assert (rack.tie_embeddings, rack.rope_theta, rack.norm_eps, rack.attention) == (False, 5000, 1e-6, "bidirectional")
    assert config.data.tokenizer == str(copy / "tokenizer.json")
    again = copy.parent / "config.toml"
    again.write_text(dump(config))
    assert load(again, environ={}, check_source=False)[0] == config


def test_what_it_sets_must_be_the_checkpoint_s(copy):
    """Every key that isn't, at once; causal or not is its own affair."""
    with pytest.raises(ConfigError) as caught:
        load_with(copy, d_ff=48, rope_theta=10_000.0, tie_embeddings=True, n_heads=2, stacks=2, attention="causal")
    said = {problem.key: problem.message for problem in caught.value.problems}
    assert said["rack.d_ff"] == f"expected 64, as {copy} has, found 48"
    assert said.keys() == {f"rack.{key}" for key in ("d_ff", "rope_theta", "tie_embeddings", "n_heads", "stacks")}


def test_the_mask_must_be_the_checkpoint_s(copy):
    """Its row is trained; left out it follows, and another one is refused with what the checkpoint has."""
    change(copy, mask_token_id=299)
    toml = copy.parent / "stackwise.toml"
    start = f'[rack]\ninit_from = "{copy}"\nstacks = 3\nblocks_per_stack = 1\n'

    def complaint(data: str) -> tuple[str, str]:
        toml.write_text(f"{start}[data]\n{data}")
        with pytest.raises(ConfigError) as caught:
            load(toml, environ={})
        (problem,) = caught.value.problems
        return problem.key, problem.message

    toml.write_text(start)
    assert load(toml, environ={})[0].data.special_ids == {"mask": 299}
    found = f"expected the mask 299, as {copy} has, found"
    assert complaint('mask_token = "<|end|>"') == ("data.mask_token", f'{found} "<|end|>", which is 0')
    message = f"expected 299, as {copy} has, found 7"
    assert complaint("special_ids = { mask = 7 }") == ("data.special_ids.mask", message)


def test_bytes_have_the_mask_that_they_have(copy):
    """A vocabulary of bytes with another mask isn't the built-in one's."""
    from stackwise_core.config.source_vocabulary import byte_characters

    model = {"type": "BPE", "vocab": byte_characters(), "merges": []}
    (copy / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    toml = copy.parent / "stackwise.toml"
    toml.write_text(f'[rack]\ninit_from = "{copy}"\nstacks = 3\nblocks_per_stack = 1\n[data]\ntokenizer = "bytes"')
    change(copy, mask_token_id=256, pad_token_id=270)
    assert load(toml, environ={})[0].rack.vocab_size == 300
    change(copy, mask_token_id=299)
    with pytest.raises(ConfigError, match=r'data\.tokenizer: expected the mask 299, .*; with "bytes" it is 256'):
        load(toml, environ={})


def test_contradictions_of_its_files_are_located_at_the_path(copy):
    """Each is a problem of rack.init_from."""
    change(copy, mask_token_id=299)
    (copy / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<|end|>"}))
    with pytest.raises(ConfigError, match=r"stackwise\.toml:3:13: rack\.init_from: .*: mask has two ids: "):
        load_with(copy)


def test_rows_follow_where_there_are_more_than_ids(tmp_path):
    """The tokenizer needs 302 with mask and padding; more rows may be asked for, fewer not."""
    save_checkpoint(tmp_path / "source", vocab_size=320)
    assert load_with(tmp_path / "source").rack.vocab_size == 320
    assert load_with(tmp_path / "source", vocab_size=384).rack.vocab_size == 384
    with pytest.raises(ConfigError, match=r"rack\.vocab_size: expected 320, as .* has, found 310"):
        load_with(tmp_path / "source", vocab_size=310)
    save_checkpoint(tmp_path / "source", vocab_size=301)
    assert load_with(tmp_path / "source").rack.vocab_size is None


@pytest.mark.parametrize("right", [{"n_kv_heads": 3}, {"d_model": 72}, {"n_heads": 9}])
def test_what_is_right_is_not_blamed_for_what_is_wrong(tmp_path, right):
    """Nine heads fit neither the default of any other key nor what is set wrongly."""
    nine = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
    save_checkpoint(tmp_path / "source", **nine)
    load_with(tmp_path / "source", **right)
    for wrong in ({"d_ff": 1000}, {"d_ff": 1000, "rope_theta": 7}):
        with pytest.raises(ConfigError) as caught:
            load_with(tmp_path / "source", **right, **wrong)
        assert [problem.key for problem in caught.value.problems] == [f"rack.{key}" for key in wrong]


def test_a_base_of_which_nothing_but_the_embedding_is_taken(copy):
    """A width that is set must still be its."""
    assert load_with(copy, init="embedding", n_heads=2, tie_embeddings=True).rack.d_model == 32
    with pytest.raises(ConfigError, match=r"rack\.d_model: expected 32, as .* has, found 64"):
        load_with(copy, init="embedding", d_model=64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors.index.json", "expected model.safetensors or model.safetensors.index.json, found neither"),
        ("tokenizer.json", "expected a tokenizer.json beside config.json"),
        ("model-00001-of-00003.safetensors", "and there is no such file"),
        (
            "config.json",
            "expected the directory of a run or of a checkpoint, and there is no plan.json in",
        ),
    ],
)
def test_a_file_that_is_missing(copy, name, message):
    """Each is named."""
    names = sorted(path.name for path in copy.glob("model-*"))
    (copy / (names[0] if name.startswith("model-") else name)).unlink()
    with pytest.raises(UsageError, match="^.*" + message.replace(".", r"\.")):
        read_source(copy)


def test_pickled_weights_are_not_read(copy):
    """They could run anything."""
    for path in copy.glob("model*"):
        path.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"found pytorch_model\.bin, which is pickled, and none is read"):
        read_source(copy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../secret"}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "%s"}}' % (b"x" * 300)),
        ("model.safetensors.index.json", b'{"weight_map": []}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": -1}}}'),
        ("tokenizer.json", b'{"model": {"type": "WordLevel", "vocab": {"a": 300}, "unk_token": "a"}}'),
        ("tokenizer.json", b'{"model": {"vocab": [[1]]}}'),
        ("tokenizer.json", b"\xff"),
    ],
)
def test_a_file_that_nobody_wrote(copy, file, content):
    """One message with the file, and no traceback."""
    (copy / file).write_bytes(content)
    with pytest.raises(UsageError, match=file.replace(".", r"\.")):
        read_source(copy)


def test_weights_cut_short_or_of_other_numbers(copy):
    """Seen in the header, before anything is read."""
    file = sorted(copy.glob("model-*"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(UsageError, match=f"{file}: not a whole safetensors file"):
        read_source(copy)
    file.write_bytes(whole)
    weights = load_file(file)
    save_file({name: tensor.to(torch.float64) for name, tensor in weights.items()}, file)
    with pytest.raises(UsageError, match=r"in F32, BF16 or F16, found \[.*\] in F64"):
        read_source(copy)


def test_checking_needs_no_torch(copy):
    """A configuration with a checkpoint is checked without it, its tokenizer by the library that is light."""
    load_with(copy)
    code = (
        "import sys\nfrom stackwise_core.config.load import load\n"
        f"load({str(copy.parent / 'stackwise.toml')!r}, environ={{}})\n"
        "print([name for name in ('torch', 'transformers', 'bitsandbytes', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
