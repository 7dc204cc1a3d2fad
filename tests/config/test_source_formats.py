"""The format of a directory: the one plugin that recognises it, or an error with advice."""

import json
from pathlib import Path

import pytest

from stackwise_core.config.errors import ConfigError, ConfigUnavailable
from stackwise_core.config.load import load
from stackwise_core.config.source_formats import format_of
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.registry import Registry

FORMAT = """
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.checkpoint_format import Checkpoint, CheckpointFormat

@hookimpl
def checkpoint_format():
    return [Implementation("{name}", "Of a test", "{name}:Format", "{name}:Options")]

@frozen
class Options:
    {option}

class Format(CheckpointFormat):
    def recognises(self, directory):
        {recognises}

    def describe(self, directory):
        {describe}

    def read(self, directory, checkpoint, name, into):
        pass

    def write(self, rack, tensors, tokenizer, directory):
        pass
"""


@pytest.fixture
def install_format(install):
    """Install a format that recognises a directory with a file of its name."""

    def install_format(name, recognises=None, describe="raise KeyError('sizes')", option="pass"):
        recognises = recognises or f"return (directory / '{name}.bin').is_file()"
        source = FORMAT.format(name=name, recognises=recognises, describe=describe, option=option)
        install(f"stackwise-{name}", {name: source}, {name: name})

    return install_format


@pytest.fixture
def registry():
    """Finds what a test has installed by then."""
    return lambda *select: Registry.discover(select=select, environ={})


@pytest.fixture
def found(tmp_path) -> Path:
    """A directory that is somebody's."""
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "alpha.bin").touch()
    return tmp_path / "found"


def test_the_one_format_that_knows_it(install_format, registry, found):
    """Others are asked, and don't."""
    install_format("alpha")
    install_format("beta")
    assert format_of(found, registry()).origin == 'checkpoint_format "alpha" of stackwise-alpha 1.0'


def test_none_that_knows_it(install_format, registry, found):
    """Those that are installed are named with what they are."""
    install_format("beta")
    with pytest.raises(UsageError, match=r"no plan\.json in .*found, nor does any checkpoint_format recognise it: .*"):
        format_of(found, registry())
    with pytest.raises(UsageError, match=r"beta \(Of a test\), huggingface \(Models of the Llama family"):
        format_of(found, registry())
    with pytest.raises(UsageError, match="recognise it: none is installed"):
        format_of(found, registry("no:beta", "no:huggingface"))


def test_several_that_know_it(install_format, registry, found):
    """Both are named, and how to leave one out, which helps."""
    install_format("alpha")
    install_format("gamma", "return True")
    both = r'found can be read by checkpoint_format "alpha" of stackwise-alpha 1\.0 and by checkpoint_format "gamma" of'
    with pytest.raises(UsageError, match=both + r" .*\. Leave all but one out: -p no:PLUGIN$"):
        format_of(found, registry())
    assert format_of(found, registry("no:gamma")).origin.startswith('checkpoint_format "alpha"')


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"recognises": "raise RuntimeError('no licence')"}, r"stage: recognises\): RuntimeError: no licence"),
        ({"recognises": "raise SystemExit(3)"}, r"stage: recognises\): SystemExit: 3"),
        ({"option": "size: int"}, r"stage: options\): expected a default for each: .*size"),
    ],
)
def test_a_format_that_fails_harms_only_what_nobody_else_knows(install_format, registry, found, broken, said):
    """It is named where it might have known the directory."""
    install_format("delta", **broken)
    with pytest.raises(UnavailableError, match=rf'checkpoint_format "delta" failed .*{said}'):
        format_of(found, registry())
    install_format("alpha")
    assert format_of(found, registry()).origin.startswith('checkpoint_format "alpha"')


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_directory_of_ours_without_its_plugin(tmp_path, registry, monkeypatch, file):
    """The package to install is named; or why the plugin isn't loaded, though it is."""
    (tmp_path / file).write_text("{}")
    with pytest.raises(UnavailableError, match=rf"{tmp_path} looks like a checkpoint of huggingface; .* blocked by -p"):
        format_of(tmp_path, registry("no:huggingface"))
    without = Registry([plugin for plugin in registry().plugins if plugin.name != "huggingface"])
    needs = (
        r'checkpoint_format "huggingface" needs the package stackwise-huggingface, .*: pip install stackwise-hugging'
    )
    with pytest.raises(UnavailableError, match=needs):
        format_of(tmp_path, without)


def test_it_is_located_where_the_directory_is_named(tmp_path, install_format):
    """At ``rack.init_from``: a plugin that is left out with exit code 3, a directory that is damaged with 2."""
    install_format("alpha")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    toml = tmp_path / "stackwise.toml"
    toml.write_text('[rack]\ninit_from = "source"')
    with pytest.raises(ConfigUnavailable, match=r"stackwise\.toml:2:13: rack\.init_from: .* blocked by -p") as caught:
        load(toml, environ={}, plugins=["no:huggingface"])
    assert caught.value.exit_code == 3
    (tmp_path / "source" / "config.json").rename(tmp_path / "source" / "alpha.bin")
    message = r'2:13: rack\.init_from: .*source can\'t be read by checkpoint_format "alpha" of .*: KeyError: \'sizes\''
    with pytest.raises(ConfigError, match=message):
        load(toml, environ={})


DESCRIBE = """return Checkpoint(title="alpha", blocks=2, vocab_size=258, d_model=16, n_heads=2, n_kv_heads=1, d_ff=24,
            attention="causal", tie_embeddings=True, rope_theta=7.0, norm_eps=1e-3, tokenizer="bytes", files=())"""


def test_what_is_left_out_follows_the_format_s_description(tmp_path, install_format, found):
    """Also where a checkpoint's tokenizer is the one of bytes."""
    install_format("alpha", describe=DESCRIBE)
    toml = tmp_path / "stackwise.toml"
    toml.write_text('[rack]\ninit_from = "found"\nstacks = 2\nblocks_per_stack = 1')
    config, _ = load(toml, environ={})
    assert (config.rack.d_model, config.rack.rope_theta, config.data.tokenizer) == (16, 7.0, "bytes")
    toml.write_text(toml.read_text() + f"\n[data]\ntokenizer = {json.dumps(str(tmp_path / 'own.json'))}")
    (tmp_path / "own.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(ConfigError, match=r"data\.tokenizer: expected the source's own tokenizer, bytes, found"):
        load(toml, environ={})
    assert found.is_dir()
