"""Hostile content for JSON files, safetensors files, and files of any kind."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

from attrs import field, frozen
from hypothesis import strategies as st

HUGE = [2**31, 2**32 - 1, 2**53 + 1, 2**60, 2**63 - 1, 2**64, 10**40, 10**400]
NAMES = [
    "",
    ".",
    "..",
    "/",
    "\0",
    "a\0b",
    "../secret/file.json",
    "@HERE@/secret/file.json",
    "stacks/../../secret/file.json",
    "stacks/../../../inside/secret",
    "~/secret",
    "stacks\\000.safetensors",
    "manifest.json",
    "./manifest.json",
    "stacks//000.safetensors",
    "con",
    "a" * 300,
    "a/" * 3000,
    "\x1b[31mred\x1b[0m",
    "\u202eevil",
    "\ud800",
    "\U0010ffff",
    "file.pkl",
    "torch:load",
]
TEXTS = st.sampled_from(NAMES) | st.text(max_size=8)
WHOLE = st.sampled_from([0, 1, -1, *HUGE, *(-each for each in HUGE)]) | st.integers(-10, 10)
NUMBERS = WHOLE | st.floats() | st.sampled_from([0.5, 1e308, 5e-324])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
MONSTROUS = [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000]
JUNK = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe{\0}\0", b'"\\ud800"', b'{"a": 1, "a": 2}']),
    st.sampled_from(range(len(MONSTROUS))).map(MONSTROUS.__getitem__),
)


@frozen
class Given:
    """A value that hypothesis doesn't print: it may be long."""

    value: Any = field(repr=False)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes, a few of them changed, inserted, repeated or cut out."""
    return _damaged(Given(whole))


@st.composite
def _damaged(draw: st.DrawFn, given: Given) -> bytes:
    content = bytearray(given.value)
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(content)))
        last = min(len(content), first + draw(st.sampled_from([0, 1, 1, 1, 2, 8, 64, 4096])))
        match draw(st.sampled_from(["bytes", "number", "cut", "repeat", "end"])):
            case "bytes":
                content[first:last] = draw(st.binary(max_size=8))
            case "number":
                number = draw(st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**47, 2**63, 2**64 - 1]))
                content[first : first + 8] = struct.pack("<Q", number)
            case "cut":
                del content[first:last]
            case "repeat":
                content[first:first] = content[first:last]
            case "end":
                del content[first:]
    return bytes(content)


@st.composite
def changed_json(draw: st.DrawFn, given: Given, values: st.SearchStrategy[Any] = JSON) -> Any:
    """A JSON document with a few of its values or keys changed, taken out or added."""
    whole = {"": copy.deepcopy(given.value)}
    for _ in range(draw(st.integers(1, 3))):
        parent, key = whole, ""
        while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 4)):
            parent = parent[key]
            key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        match draw(st.sampled_from(["value", "value", "cut", "name", "add"])):
            case "cut" if parent is not whole:
                del parent[key]
            case "name" if isinstance(parent, dict) and parent is not whole:
                parent[draw(TEXTS)] = parent.pop(key)
            case "add" if isinstance(parent[key], dict):
                parent[key][draw(TEXTS)] = draw(values)
            case "add" if isinstance(parent[key], list):
                parent[key].append(draw(values))
            case _:
                parent[key] = draw(values)
    return whole[""]


def json_files(document: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a JSON file."""
    text = json.dumps(document).encode()
    changed = changed_json(Given(document)).map(lambda value: json.dumps(value).encode())
    return st.one_of(changed, changed, changed, damaged(text), JUNK)


@st.composite
def _tensor_files(draw: st.DrawFn, given: Given) -> bytes:
    whole: bytes = given.value
    (length,) = struct.unpack("<Q", whole[:8])
    header, payload = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    sizes = NUMBERS | st.lists(WHOLE, max_size=4) | st.sampled_from(["F32", "U8", "F4", "BOOL", "I64"]) | TEXTS
    text = json.dumps(draw(changed_json(Given(header), sizes | JSON))).encode()
    said = draw(st.sampled_from([len(text)] * 6 + [0, 2**16 + 1, 99_999_999, 2**40, 2**64 - 1]))
    return struct.pack("<Q", said) + text + payload


def tensor_files(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a safetensors file."""
    changed = _tensor_files(Given(whole))
    return st.one_of(changed, changed, damaged(whole), JUNK)
