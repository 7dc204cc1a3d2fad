import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import structure
from stackwise_core.config.source_checkpoint import read_source
from stackwise_core.errors import UsageError
from stackwise_huggingface.checkpoint import read_checkpoint
from tests.checkpoints import save_checkpoint

BLOCK = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.lm_head.lora_A.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A Llama of three blocks in several files."""
    path = tmp_path_factory.mktemp("source") / "llama"
    save_checkpoint(path, shard="60kB")
    return path


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def put_adapter(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if names:
        save_file({name: np.zeros((2, 32), np.float32) for name in names}, directory / "adapter_model.safetensors")


def start(registry, directory: Path, **rack: object):
    return structure({"rack": {"init_from": str(directory), "stacks": 3, "blocks_per_stack": 1, **rack}}, registry)


@pytest.mark.parametrize(
    ("where", "help"),
    [("", "move its files into a directory of their own"), ("adapters/trunk", '"stackwise merge" of the run')],
)
def test_an_adapter_is_not_left_behind(copy, registry, where, help):
    """Beside the weights, where transformers loads it, or where an export of ours has it; the help says what to do."""
    start(registry, copy)
    put_adapter(copy / where, BLOCK)
    with pytest.raises(ConfigError) as caught:
        start(registry, copy)
    (problem,) = caught.value.problems
    place = copy / where
    assert problem.message == f"expected a checkpoint without adapters; {place} has one that belongs over its weights"
    assert problem.help.startswith(help)


def test_the_embedding_alone_has_no_adapters_unless_they_change_it(copy, registry):
    """What an adapter has for blocks doesn't matter to it; what can't be read may be for anything."""
    put_adapter(copy, BLOCK)
    start(registry, copy, init="embedding")
    for names in ((BLOCK, HEAD), ()):
        (copy / "adapter_model.safetensors").unlink(missing_ok=True)
        put_adapter(copy, *names)
        with pytest.raises(ConfigError, match="expected a checkpoint without adapters"):
            start(registry, copy, init="embedding")


def test_an_adapter_without_its_model(tmp_path, registry):
    """Said as what it is."""
    put_adapter(tmp_path, BLOCK)
    with pytest.raises(UsageError, match=r"no config\.json, but the adapter_config\.json of an adapter, whose model"):
        read_source(tmp_path, registry)


def test_a_tokenizer_with_code_of_its_own_is_refused(copy):
    """Its ids may be others than those of tokenizer.json."""
    (copy / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.Y", None]}}))
    with pytest.raises(UsageError, match=r"tokenizer_config\.json: expected auto_map to be nothing, .* none is run"):
        read_checkpoint(copy)


def test_two_models_in_one_directory_are_refused(copy):
    """A whole file beside all shards of an index: which one is meant?"""
    shutil.copy(next(copy.glob("model-*")), copy / "model.safetensors")
    with pytest.raises(UsageError, match=r"found model\.safetensors and all files of model\.safetensors\.index\.json"):
        read_checkpoint(copy)


def test_what_an_earlier_save_left_is_left_alone_and_named(tmp_path):
    """Shards that no index has all of, as transformers has it; and other weights that aren't read."""
    save_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path).notes == ()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    for name in ("model-00002-of-00002", "model.fp16", "consolidated"):
        (tmp_path / f"{name}.safetensors").touch()
    found = read_checkpoint(tmp_path)
    assert found.files == ("config.json", "tokenizer.json", "model.safetensors")
    names = ("consolidated.safetensors", "model-00002-of-00002.safetensors", "model.fp16.safetensors")
    assert found.notes == (f"Left alone beside its weights, as transformers does: {', '.join(names)}.",)


def test_settings_of_generation_change_nothing(copy):
    """Of generation_config.json only ids of mask and padding are read."""
    before = read_checkpoint(copy)
    (copy / "generation_config.json").write_text(
        json.dumps({"temperature": 0.1, "do_sample": True, "eos_token_id": [1, 2], "max_new_tokens": 3})
    )
    assert read_checkpoint(copy) == before
