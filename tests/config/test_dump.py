import string
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackwise_core.config.dump import dump
from stackwise_core.config.load import load, structure
from stackwise_core.config.model import Config

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1).filter(
    lambda text: not text.startswith(".")
)
SIZES = st.integers(1, 2**62)


def reloaded(config: Config, folder: Path) -> Config:
    path = folder / "config.toml"
    path.write_bytes(dump(config).encode())
    return load(path, environ={})[0]


def test_what_is_dumped_is_loaded_again(registry, tmp_path):
    """Options, sizes, paths and what is left out come back as they were."""
    config = structure(
        {
            "data": {"corpus": "texts/*.md"},
            "rack": {"n_kv_heads": 4},
            "precision": {"active": "bf16", "trunk": {"use": "fp16", "initial_scale": 3}},
            "cache_backend": {"use": "disk", "capacity": "1.5 GiB"},
        },
        registry,
    )
    assert reloaded(config, tmp_path) == config


@pytest.mark.parametrize("fractions", [[], [0.15, 0.9], {}, {"0": 0.15, "1": 0.9}])
@pytest.mark.parametrize("multipliers", [{}, {"0": 0.5, "12": 2}])
def test_tables_by_whole_number(registry, tmp_path, fractions, multipliers):
    """Keys that are whole numbers come back as such, and what is empty stays an empty array or table."""
    training = {"time_steps": 2, "time_step_fractions": fractions, "stack_lr_multipliers": multipliers}
    config = structure({"training": training}, registry)
    assert config.training.stack_lr_multipliers == {int(stack): factor for stack, factor in multipliers.items()}
    assert reloaded(config, tmp_path) == config


@pytest.mark.parametrize("stacks", [{}, {"0": "bf16", "12": {"use": "stackwise-precision:fp16", "initial_scale": 3}}])
def test_tables_of_choices(registry, tmp_path, stacks):
    """Each choice comes back under its number, its ``use`` as it was written."""
    config = structure({"precision": {"stacks": stacks}}, registry)
    assert {str(number): choice.use for number, choice in config.precision.stacks.items()} == {
        number: choice if isinstance(choice, str) else choice["use"] for number, choice in stacks.items()
    }
    assert reloaded(config, tmp_path) == config


def test_use_comes_first(registry):
    """A hook's table begins with the choice that its other keys depend on, and None isn't written."""
    text = dump(structure({"cache_backend": {"use": "disk"}}, registry))
    assert '[cache_backend]\nuse = "disk"\n' in text
    assert "capacity" not in text
    assert '[precision.active]\nuse = "fp32"\n' in text


@pytest.mark.slow
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=NAMES,
    seed=st.integers(0, 2**63 - 1),
    lr=st.floats(0, allow_infinity=False, allow_nan=False),
    mask_token=st.none() | st.text(st.characters(codec="utf-8")),
    capacity=st.none() | SIZES,
    corpus=st.text(string.ascii_letters + "\"\\ '\t", min_size=1).filter(str.strip),
)
def test_any_values_survive(registry, tmp_path, name, seed, lr, mask_token, capacity, corpus):
    """Whatever strings, floats and integers a configuration holds, its dump holds them exactly."""
    config = structure(
        {
            "run": {"seed": seed},
            "data": {"corpus": "/" + corpus, "tokenizer": "/tokenizer.json"},
            "training": {"block_lr": lr},
            "cache_backend": {"use": "memory"} | ({} if capacity is None else {"capacity": capacity}),
        },
        registry,
    )
    run, data = evolve(config.run, name=name), evolve(config.data, mask_token=mask_token)
    config = evolve(config, run=run, data=data)
    assert reloaded(config, tmp_path) == config
