import pytest
from attrs import frozen

from stackwise_core.builtin.options import CLMOptions, MaskDiffusionOptions, MLMOptions
from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load, structure
from stackwise_core.hookspecs import Implementation
from stackwise_core.registry import Declared, Registry


@frozen
class NoOptions:
    pass


class EveryName:
    """A registry in which every name means an implementation without options, but for objectives."""

    def resolve(self, hook, use):
        return Declared(hook, Implementation(use, "", "a:B", "a:C"), "fake", "fake", "1")

    def options_class(self, declared):
        own = {"mlm": MLMOptions, "clm": CLMOptions}.get(declared.implementation.name, MaskDiffusionOptions)
        return own if declared.hook == "objective" else NoOptions

    def names(self, hook):
        return ["any"]


LORA = {"use": "lora"}


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"training": {"window": 15}}, "training.window"),
        ({"training": {"head": "trains"}}, "training.head"),
        ({"training": {"boundaries": "cache"}}, "training.boundaries"),
        ({"training": {"boundaries": "never"}}, "training.boundaries"),
        ({"training": {"chunk_tokens": 0}}, "training.chunk_tokens"),
        ({"data": {"workers": -1}}, "data.workers"),
        ({"run": {"compile": "always"}}, "run.compile"),
        ({"data": {"special_ids": {"eos": 7}}}, "data.special_ids"),
        ({"data": {"special_ids": {"eos": -1}, "tokenizer": "t.json"}}, "data.special_ids"),
        ({"data": {"special_ids": {"mask": 3, "pad": 3}, "tokenizer": "t.json"}}, "data.special_ids"),
        ({"training": {"over": "depth", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"time": "depth", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"time": "depth", "over": "time"}}, "training.over"),
        ({"training": {"time_encoding": "learned", "time_steps": 8}}, "training.time_encoding"),
        ({"training": {"time_encoding": "learned", "time": "input"}}, "training.time_encoding"),
        ({"training": {"time_step_fractions": {"0": 0.15}}}, "training.time_step_fractions"),
        ({"training": {"time_step_fractions": {"0": 0.15, "2": 0.9}, "time_steps": 2}}, "training.time_step_fractions"),
        ({"training": {"time_step_fractions": {"-1": 0.15}, "time_steps": 2}}, "training.time_step_fractions"),
        ({"training": {"time_step_fractions": [0.15, 0.9], "time_steps": 3}}, "training.time_step_fractions"),
        ({"training": {"patience": 2}}, "training.patience"),
        ({"evaluation": {"every": 5}, "data": {"validation_fraction": 0}}, "data.validation_fraction"),
        ({"objective": {"use": "mlm", "random": 0.5, "keep": 0.75}}, "objective.keep"),
        ({"objective": {"use": "clm", "keep": 0.1}}, "objective.keep"),
        ({"objective": "mlm", "training": {"weighting": "nelbo"}}, "training.weighting"),
        ({"objective": "clm", "training": {"weighting": "nelbo"}}, "training.weighting"),
        ({"objective": "clm", "training": {"weighting": "mean"}}, "training.weighting"),
        ({"objective": "clm", "training": {"time": "input"}}, "training.time"),
        ({"objective": "clm", "training": {"over": "both"}}, "training.over"),
        ({"objective": "clm", "training": {"time_steps": 8}}, "training.time_steps"),
        ({"objective": "clm", "training": {"time_step_fractions": [0.5]}}, "training.time_step_fractions"),
        ({"objective": "clm", "training": {"masks": "resampled"}}, "training.masks"),
        ({"training": {"warmup": 0.75, "decay": 0.5}}, "training.decay"),
        ({"data": {"mask_token": "[MASK]"}}, "data.mask_token"),
        ({"adapter": {"attach": "birth"}}, "adapter.attach"),
        ({"adapter": {"attach": "birth", "trunk": LORA}}, "adapter.attach"),
        ({"adapter": {"share": 0.25}}, "adapter.share"),
        ({"adapter": {"share": 0.25, "trunk": "lora"}}, "adapter.share"),
        ({"adapter": {"share": 0.25, "attach": "birth", "stack": LORA}}, "adapter.share"),
        ({"adapter": {"active": "adapters"}}, "adapter.active"),
        ({"adapter": {"active": "adapters", "trunk": LORA}}, "adapter.active"),
        ({"adapter": {"growth": "merge"}}, "adapter.growth"),
        ({"adapter": {"growth": "merge", "stack": LORA}}, "adapter.growth"),
        ({"training": {"adapter_lr": 1e-3}}, "training.adapter_lr"),
        ({"precision": {"trunk": "qlora"}}, "precision.trunk.use"),
        ({"precision": {"trunk": {"use": "Stackwise_BitsAndBytes:qlora"}}}, "precision.trunk.use"),
        ({"precision": {"stacks": {"0": "nf4", "3": "qlora"}}}, "precision.stacks.3.use"),
    ],
)
def test_keys_that_do_not_fit_together(data, key):
    """Each combination is refused at the key that is the likeliest culprit."""
    with pytest.raises(ConfigError) as caught:
        structure(data, EveryName())
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize(
    "data",
    [
        {"training": {"window": 16}},
        {"training": {"head": "trains"}, "rack": {"tie_embeddings": False}},
        {"training": {"over": "both", "weighting": "nelbo"}},
        {"training": {"over": "depth"}},
        {"training": {"time": "depth", "over": "both", "weighting": "nelbo"}},
        {"training": {"time": "depth"}},
        {"training": {"time_encoding": "learned", "time": "input", "time_steps": 8}},
        {"training": {"time_encoding": "learned", "time": "input", "time_step_fractions": [0.15, 0.9]}},
        {"training": {"time_step_fractions": {"0": 0.15, "1": 0.9}, "time_steps": 2}},
        {"training": {"time_step_fractions": {}}},
        {"training": {"time_step_fractions": [0.15, 0.9], "time_steps": 2}},
        {"training": {"patience": 2}, "evaluation": {"every": 5}},
        {"data": {"validation_fraction": 0}},
        {"objective": {"use": "mlm", "random": 0.25, "keep": 0.75}, "training": {"weighting": "mean"}},
        {"objective": "clm", "training": {"over": "time", "masks": "fixed"}},
        {"training": {"warmup": 0.75, "decay": 0.25}},
        {"training": {"warmup": 0.75, "decay": 0.5, "lr_schedule": "cosine"}},
        {"data": {"mask_token": "[MASK]", "tokenizer": "tokenizer.json"}},
        {"adapter": {"attach": "freeze", "share": 0.2, "active": "full", "growth": "continue"}},
        {"adapter": {"attach": "birth", "stack": LORA}},
        {"adapter": {"share": 0.25, "active": "adapters", "stack": LORA}},
        {"adapter": {"growth": "merge", "trunk": LORA}},
        {"training": {"adapter_lr": 1e-4}},
        {"training": {"adapter_lr": 1e-3}, "adapter": {"stack": LORA}},
        {"training": {"adapter_lr": 1e-3}, "adapter": {"trunk": LORA}},
        {"precision": {"trunk": "nf4"}},
        {"precision": {"trunk": "somebody:qlora"}},
        {"precision": {"trunk": "qlora", "stacks": {"3": "qlora"}}, "adapter": {"stack": LORA}},
        {"precision": {"trunk": "qlora"}, "adapter": {"trunk": LORA}},
    ],
)
def test_keys_that_fit(data):
    """The nearest right combination passes."""
    structure(data, EveryName())


@pytest.mark.parametrize(("time", "over"), [("none", '"time" or "both"'), ("depth", '"both"')])
def test_a_way_out_that_is_one(time, over):
    """What a bound over depth is told to set instead isn't refused by another check."""
    with pytest.raises(ConfigError, match=f"or set over = {over}\n"):
        structure({"training": {"time": time, "over": "depth", "weighting": "nelbo"}}, EveryName())


def test_refused_adapters_are_not_missed():
    """Where an adapter's own table is refused, the keys that need it aren't refused as well."""
    with pytest.raises(ConfigError) as caught:
        structure({"adapter": {"stack": {}, "attach": "birth"}, "training": {"adapter_lr": 1e-3}}, EveryName())
    assert [problem.key for problem in caught.value.problems] == ["adapter.stack.use"]


def test_qlora_without_adapters_is_located(install, hook_source, tmp_path):
    """The alias of nf4 is blamed where it stands, in a table of choices too."""
    where = {"hook": "precision", "module": "four_bits", "aliases": ("qlora",)}
    modules = {
        "four_hooks": hook_source("nf4", **where),
        "four_bits": "from attrs import frozen\n@frozen\nclass Options: pass",
    }
    install("stackwise-bitsandbytes", modules, {"bitsandbytes": "four_hooks"})
    path = tmp_path / "stackwise.toml"
    path.write_text('[precision]\ntrunk = "qlora"\nstacks = { 0 = "nf4", 3 = "stackwise-bitsandbytes:qlora" }\n')
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    places = [(problem.place.line, problem.place.column, problem.key) for problem in caught.value.problems]
    assert places == [(2, 9, "precision.trunk.use"), (3, 27, "precision.stacks.3.use")]


def test_int4_needs_whole_groups():
    """Its groups of 32 features divide d_model; the other formats take any."""
    data = {"cache_backend": {"use": "memory", "dtype": "int4"}, "rack": {"d_model": 48, "n_heads": 4}}
    with pytest.raises(ConfigError, match=r"cache_backend\.dtype: .*multiple of 32, found 48"):
        structure(data, Registry.discover())
    structure({**data, "rack": {"d_model": 96, "n_heads": 4}}, Registry.discover())
    structure({**data, "cache_backend": {"use": "memory", "dtype": "int8"}}, Registry.discover())
