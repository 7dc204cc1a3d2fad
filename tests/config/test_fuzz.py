"""No input, however odd, ends in anything but a configuration or an error that explains itself."""

from contextlib import suppress

import pytest
import tomlkit
from attrs import fields, has
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stackwise_core.config.load import load, structure
from stackwise_core.config.model import Config
from stackwise_core.errors import StackwiseError

FEW = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
KNOWN = sorted(
    {"use", "extends", "active", "capacity", "initial_scale", "cpu_compute", "min_fraction", "0", "3"}
    | {attribute.name for attribute in fields(Config)}
    | {inner.name for outer in fields(Config) if has(outer.type) for inner in fields(outer.type)}
)
KEYS = st.sampled_from(KNOWN) | st.text(st.characters(codec="utf-8"), max_size=5)
LEAVES = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["linear", "disk", "fp16", "cosine", "nelbo", "", ".", "\0", "a:b", "disk:disk:disk"])
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.datetimes()
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
TABLES = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=5)


def attempt(path, **arguments):
    with suppress(StackwiseError):
        load(path, **{"environ": {}} | arguments)


@FEW
@given(content=st.binary(max_size=200))
@example(b"a." * 3000 + b"b = 1")
@example(b"a = " + b"[" * 5000)
@example(b"a = " + b"[" * 60 + b"]" * 60)
@example(b"a = " + b"1" * 5000)
@example(b"[training]\nblock_lr = " + b"1" * 400)
@example(b"extends = '\\u0000'")
@example(b'extends = "\\u0000"')
@example(b'[run]\nplugins = ["\\u0000", "", "..", 3, []]')
@example(b"\xff\xfe[\x00r\x00")
@example(b"a = 1\r")
@example(b'[cache_backend]\nuse = "disk"\ncapacity = "' + b"9" * 400 + b' TB"')
def test_any_bytes(tmp_path, content):
    """Arbitrary bytes."""
    path = tmp_path / "stackwise.toml"
    path.write_bytes(content)
    attempt(path)


@pytest.mark.slow
@FEW
@given(data=TABLES)
def test_any_document(tmp_path, data):
    """Arbitrary TOML documents whose keys are often right, so that the checks behind them are reached."""
    path = tmp_path / "stackwise.toml"
    try:
        text = tomlkit.dumps(data)
    except (ValueError, TypeError):  # integers beyond what tomlkit writes
        return
    path.write_text(text, encoding="utf-8", newline="")
    attempt(path)


@pytest.mark.slow
@FEW
@given(data=TABLES)
def test_any_dict(registry, data):
    """Arbitrary values through the Python API."""
    with suppress(StackwiseError):
        structure(data, registry)


@pytest.mark.slow
@FEW
@given(text=st.text(max_size=20), key=KEYS, value=st.text(max_size=10))
@example("training.batch_size", "training", "1")
@example("extends", "extends", "other.toml")
def test_any_setting(tmp_path, text, key, value):
    """Arbitrary --set and environment variables."""
    path = tmp_path / "stackwise.toml"
    path.touch()
    attempt(path, overrides=[text, f"{text}={value}", f"training.{key}={value}"])
    attempt(path, environ={f"STACKWISE_{key.upper()}": value, f"STACKWISE_TRAINING__{key}": value, text: value})


@pytest.mark.parametrize("name", ["", "\0", "a" * 5000, "nowhere/at/all.toml", "/"])
def test_any_name(name):
    """File names that can't be."""
    with pytest.raises(StackwiseError):
        load(name, environ={})
