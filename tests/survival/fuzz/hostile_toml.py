"""Hostile content for TOML files."""

from __future__ import annotations

import json

from attrs import fields, has
from hypothesis import strategies as st

from stackwise_core.config.model import Config
from tests.survival.fuzz.hostile import JUNK, Given, damaged

TOML = b"""
[run]
name = "first"
seed = 17

[data]
corpus = "python-docs"
tokenizer = "bytes"
seq_len = 256

[rack]
stacks = 4
d_model = 256
n_heads = 8

[training]
epochs_per_stack = 1
batch_size = 16
block_lr = 1e-3

[mask_schedule]
use = "linear"
min_fraction = 0.15

[precision]
active = "bf16"
trunk = { use = "nf4", double_quant = true }

[adapter]
stack = { use = "lora", rank = 16, alpha = 32 }

[cache_backend]
use = "disk"
capacity = "20 GB"

[trainer_mode]
use = "blockwise"
"""
TOML_KEYS = sorted(
    {"use", "extends", "active", "trunk", "stack", "capacity", "min_fraction", "rank", "shard_entries", "0", "17"}
    | {outer.name for outer in fields(Config)}
    | {inner.name for outer in fields(Config) if has(outer.type) for inner in fields(outer.type)}
)
# fmt: off
WORDS = [
    "true", "false", "0", "-1", "1", "1.0", "1e400", "-inf", "nan", "0x0", "0o7", "+1", "1_0",
    "1979-05-27T07:32:00Z", "07:32:00", "[]", "{}", '""', '"."', r'"\u0000"', r'"\u001b[31m"', r'"\u202e"',
    r'"\U0010ffff"', '"linear"', '"disk"', '"lora"', '"nf4"', '"fp32"', '"auto"', '"a:b"', '"nowhere/*"', '"-1GB"',
    '"9999TB"', '"""', "[[[]]]", "[nan]", '[1,"a",{}]', '{use="disk"}', '{use="disk",a.b=1}', "{use=[]}",
    "{a=1,a=2}", '["evil.py"]', '["../inside/evil.py"]',
]
# fmt: on
MONSTERS = [
    "0x" + "f" * 5000,
    "9" * 400,
    "9" * 5000,
    "[" * 60 + "]" * 60,
    "[" * 5000,
    "{a=" * 60,
    "\0",
    '"\x1b"',
    "'a\\'",
]
TOML_WORDS = st.sampled_from([*WORDS, *MONSTERS])
TOML_NAMES = st.one_of(
    st.sampled_from(TOML_KEYS),
    st.sampled_from(TOML_KEYS),
    st.sampled_from(['""', '"\\u0000"', "a.b.c", "rack.d_model", "a" * 300, '"\x7f"', "é", ".", "''", '"\\u202e"']),
)
TOML_LINES = st.one_of(
    st.builds("[{}]".format, TOML_NAMES),
    st.builds("[{}.{}]".format, TOML_NAMES, TOML_NAMES),
    st.builds("[[{}]]".format, TOML_NAMES),
    st.builds("{} = {}".format, TOML_NAMES, TOML_WORDS),
    st.builds("{} = {}".format, TOML_NAMES, TOML_WORDS),
    st.builds("{} = {}".format, TOML_NAMES, st.text(max_size=6).map(json.dumps)),
    st.sampled_from(
        ['run.plugins = ["evil.py"]', 'plugins = ["@HERE@/inside/evil.py"]', 'extends = "../secret/file.json"']
    ),
    st.builds("{}.{} = {}".format, TOML_NAMES, TOML_NAMES, TOML_WORDS),
)


def _in_toml(given: Given, lines: list[str], place: int, ending: str) -> bytes:
    """A TOML with some lines of its own put in, or in place of as many."""
    whole = given.value.decode().split("\n")
    place %= len(whole) + 1
    whole[place : place + len(lines) * (place % 2)] = lines
    return ending.join(whole).encode("utf-8", "surrogatepass")


def toml_files(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a TOML file."""
    lines = st.lists(TOML_LINES, max_size=4)
    put_in = st.builds(
        _in_toml, st.just(Given(whole)), lines, st.integers(0, 500), st.sampled_from(["\n", "\n", "\r\n", "\r"])
    )
    own = st.lists(TOML_LINES, max_size=12).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    return st.one_of(put_in, put_in, put_in, damaged(whole), own, JUNK)
