"""Hostile input: what is fed to each reader, and what must hold of it.

``python -m tests.survival.fuzz --examples 20000`` is a campaign of so many cases of each cheap target and fewer of the
dear ones, and prints a table. ``test_fuzz.py`` runs a few of each.

Whatever it is fed, a reader accepts a value that is sane or raises the exception that it documents. Meanwhile it may
not change or read a file outside of its directory, unpickle, start a process, open a socket, take more memory than
``ALLOWANCE``, or hang.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, fields, frozen, has
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import nn

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.cli import main as command_line
from stackwise_core.config.dump import dump
from stackwise_core.config.load import load, load_run
from stackwise_core.config.model import Config
from stackwise_core.config.source_run import nearest_run, read_source_run
from stackwise_core.engine.loop.events import PhaseStarted, StepDone
from stackwise_core.engine.rack.rack import new_stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.tensor_file import DamagedTensors, read_tensors
from stackwise_core.engine.text.tokenizer import load_tokenizer
from stackwise_core.engine.weights.source import Source
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.cache_backend import ActivationStore, Layout, MissingEntries
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import MANIFEST
from stackwise_core.run_files.stored_boundaries import owner, read_records
from stackwise_core.system.files import sha256
from stackwise_core.testing.cache_backend import code_of, entries_of, in_a_child, keys_of
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb
from stackwise_peft.lora import Lora
from stackwise_peft.options import LoraOptions

ALLOWANCE = 256 << 20
"""Bytes of address space that a case may take beyond what is there before it; its files have some kilobytes."""
LMDB_ALLOWANCE = 4 << 30
"""The same for LMDB, which maps a gigabyte that it doesn't use."""
LONGEST = 60
"""Seconds after which a case counts as hung."""
LONGEST_LINE = 1500
"""Characters of a message's line: what a file says is cut short in it."""
HERE = b"@HERE@"
"""In a file's content: the absolute path of the directory around the one that is read."""

# What is watched while a reader works.


class Broken(AssertionError):
    """A reader did what it must never do."""


FORBIDDEN = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"}
PATHS_THAT_CHANGE = {
    "os.chmod": slice(1),
    "os.link": slice(2),
    "os.mkdir": slice(1),
    "os.remove": slice(1),
    "os.rename": slice(2),
    "os.rmdir": slice(1),
    "os.symlink": slice(1, 2),
    "os.truncate": slice(1),
    "shutil.rmtree": slice(1),
}
"""Audit events that change the disk, and which of their arguments are what they change."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@define
class _Watch:
    inside: str | None = None
    """The directory that may be changed; None while nothing is watched."""
    secret: str = ""
    """A directory that must not even be read."""
    seen: list[str] = field(factory=list)


_watch = _Watch()
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch.inside is None:
        return
    if event in FORBIDDEN:
        _watch.seen.append(f"{event}{arguments}"[:300])
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike):
            _look(path, changes=bool(flags & WRITING))
    elif event in PATHS_THAT_CHANGE:
        for path in arguments[PATHS_THAT_CHANGE[event]]:
            # A name beside a descriptor is checked where the descriptor came from.
            relative = isinstance(arguments[-1], int) and arguments[-1] >= 0 and not os.path.isabs(path)
            if isinstance(path, str | bytes | os.PathLike) and not relative:
                _look(path, changes=True)


def _look(path: Any, *, changes: bool) -> None:
    real = os.path.realpath(os.fsdecode(path))
    outside = not f"{real}/".startswith(f"{_watch.inside}/")
    if (changes and outside and "__pycache__" not in real and not real.startswith(("/dev/null", "/proc/"))) or (
        f"{real}/".startswith(f"{_watch.secret}/")
    ):
        _watch.seen.append(f"{'changed' if changes else 'read'} {os.fsdecode(path)!r}")


@contextmanager
def watched(inside: Path, secret: Path, allowance: int = ALLOWANCE) -> Iterator[None]:
    """Nothing outside of ``inside`` changes meanwhile, ``secret`` isn't read, memory is bounded, and it ends in time.

    Raises:
        Broken: something of it happened.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # for good: there is no way to take one out
        _hooked = True

    def hung(*_: object) -> None:
        raise Broken(f"not done after {LONGEST} seconds")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, hung)
    folder, tempfile.tempdir = tempfile.tempdir, str(inside)
    _watch.inside, _watch.secret, _watch.seen = os.path.realpath(inside), os.path.realpath(secret), []
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + allowance, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        _watch.inside = None
        tempfile.tempdir = folder
        signal.signal(signal.SIGALRM, before)
    if _watch.seen:
        raise Broken("; ".join(_watch.seen))


def short(text: str) -> None:
    """A message says something, and isn't as long as what it complains of."""
    if not text.strip():
        raise Broken("an empty message")
    if (longest := max(map(len, text.split("\n")))) > LONGEST_LINE:
        raise Broken(f"a message with a line of {longest} characters: {text[:300]!r}")


def legible(text: str) -> None:
    """Check that the output does nothing to a terminal."""
    if bad := [character for character in text if not (character.isprintable() or character in "\n\t")]:
        raise Broken(f"a message with {sorted(set(bad))}: {text[:300]!r}")


# What it is fed.

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


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes, a few of them changed, inserted, repeated or cut out."""
    return _damaged(_Given(whole))


@frozen
class _Given:
    """A value that hypothesis doesn't print: it may be long."""

    value: Any = field(repr=False)


@st.composite
def _damaged(draw: st.DrawFn, given: _Given) -> bytes:
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
def changed_json(draw: st.DrawFn, given: _Given, values: st.SearchStrategy[Any] = JSON) -> Any:
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
    changed = changed_json(_Given(document)).map(lambda value: json.dumps(value).encode())
    return st.one_of(changed, changed, changed, damaged(text), JUNK)


@st.composite
def _tensor_files(draw: st.DrawFn, given: _Given) -> bytes:
    whole: bytes = given.value
    (length,) = struct.unpack("<Q", whole[:8])
    header, payload = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    sizes = NUMBERS | st.lists(WHOLE, max_size=4) | st.sampled_from(["F32", "U8", "F4", "BOOL", "I64"]) | TEXTS
    text = json.dumps(draw(changed_json(_Given(header), sizes | JSON))).encode()
    said = draw(st.sampled_from([len(text)] * 6 + [0, 2**16 + 1, 99_999_999, 2**40, 2**64 - 1]))
    return struct.pack("<Q", said) + text + payload


def tensor_files(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a safetensors file."""
    changed = _tensor_files(_Given(whole))
    return st.one_of(changed, changed, damaged(whole), JUNK)


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


def _in_toml(given: _Given, lines: list[str], place: int, ending: str) -> bytes:
    """A TOML with some lines of its own put in, or in place of as many."""
    whole = given.value.decode().split("\n")
    place %= len(whole) + 1
    whole[place : place + len(lines) * (place % 2)] = lines
    return ending.join(whole).encode("utf-8", "surrogatepass")


def toml_files(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a TOML file."""
    lines = st.lists(TOML_LINES, max_size=4)
    put_in = st.builds(
        _in_toml, st.just(_Given(whole)), lines, st.integers(0, 500), st.sampled_from(["\n", "\n", "\r\n", "\r"])
    )
    own = st.lists(TOML_LINES, max_size=12).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    return st.one_of(put_in, put_in, put_in, damaged(whole), own, JUNK)


# Undamaged runs, from which hostile ones are made.


@cache
def specimens() -> Path:
    """A directory with a finished run and an interrupted one, made once in a process."""
    from tests.tiny import TEXT, run_tiny

    folder = Path(tempfile.mkdtemp(prefix="stackwise-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "text.txt").write_text(TEXT.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    changes = {
        "data.corpus": str(folder / "text.txt"),
        "data.validation_fraction": 0.3,
        "rack": {"stacks": 2, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2},
        "training": {"steps_per_stack": 4, "batch_size": 2, "masks_per_sample": 1},
        "evaluation": {"sequences": 2, "draws": 1},
        "adapter": {"stack": {"use": "lora", "rank": 2}},
        "checkpoint": {"steps": 1},
        "precision": {"trunk": {"use": "nf4"}},
        "cache_backend": {"use": "disk", "keep": "rack"},
    }
    run_tiny(folder, changes)

    class Stop(Exception):
        pass

    def stop_within_the_second_stack(ran: Any) -> None:
        def listener(event: object) -> None:
            if isinstance(event, PhaseStarted):
                begun.append(event)
            if isinstance(event, StepDone) and len(begun) == len(ran.plan.phases) - 1 and event.step == 2:
                raise Stop

        begun: list[object] = []
        ran.engine.listener = listener

    with suppress(Stop):
        run_tiny(folder, {**changes, "run.name": "broken-off"}, stop_within_the_second_stack)
    (folder / "runs" / "tiny").rename(folder / "finished")
    (folder / "runs" / "broken-off").rename(folder / "broken-off")
    return folder


def files_of(run: str) -> list[str]:
    """The files of a specimen."""
    folder = specimens() / run
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def file_like(path: Path) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a file, by its kind."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return json_files(json.loads(content))
    if path.suffix == ".safetensors":
        return tensor_files(content)
    return toml_files(content) if path.suffix == ".toml" else damaged(content)


def put(path: Path, content: bytes) -> None:
    """Write a file with ``HERE`` filled in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here = next(each for each in path.parents if (each / "secret").is_dir())
    path.write_bytes(content.replace(HERE, os.fsencode(here)))


def forge(run: Path, name: str) -> None:
    """Have the manifest say of a file what is in it."""
    manifest = json.loads((run / MANIFEST).read_text())
    if name in manifest["files"]:
        manifest["files"][name] |= {"bytes": (run / name).stat().st_size, "sha256": sha256(run / name)}
        (run / MANIFEST).write_text(json.dumps(manifest))


# The targets.


@frozen
class Target:
    """A reader: what it is fed, and what must hold."""

    name: str
    cases: Callable[[], st.SearchStrategy[Any]]
    check: Callable[[Any, Path], None]
    """Feeds a case in a directory of its own, beside which there is a ``secret``."""
    share: float = 1.0
    """Of the cases that were asked for; dear ones have fewer."""
    sound: Callable[[], Any] | None = None
    """A case that must be accepted, so that the others are refused for what was changed."""


ACCEPTED: list[object] = []
"""The value that the last case was accepted as; empty if it was refused."""


@contextmanager
def refusing(*documented: type[Exception]) -> Iterator[None]:
    """Only these exceptions may come, with a message."""
    try:
        yield
    except documented as error:
        short(str(error))


def check_config(case: tuple[bytes, list[str]], inside: Path) -> None:
    """A configuration comes that can be written and read again, or an error that lists what is wrong."""
    content, overrides = case
    path = inside / "stackwise.toml"
    put(path, content)
    with refusing(StackwiseError):
        config, _ = load(path, environ={}, overrides=overrides)
        ACCEPTED.append(config)
    for config in ACCEPTED:
        assert isinstance(config, Config)
        path.write_text(dump(config), encoding="utf-8")
        assert load(path, environ={})[0] == config


def check_run_config(content: bytes, inside: Path) -> None:
    """As any configuration, and no code is taken from a run's own directory."""
    put(inside / "config.toml", content)
    (inside / "evil.py").write_text("import os\nos.system('true')\n")
    with refusing(StackwiseError):
        ACCEPTED.append(load_run(inside))


MANIFEST_JSON = {
    "format": 1,
    "files": {
        "config.toml": {"bytes": 4, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
        "stacks/000.safetensors": {
            "bytes": 4,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        "adapters/000/stack/a": {
            "bytes": 4,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
    },
    "commit": 7,
    "pending": ["stacks/000.safetensors"],
    "dropped": ["stacks/001.safetensors"],
}


SOUND_MANIFESTS = st.sampled_from(
    [MANIFEST_JSON, MANIFEST_JSON | {"pending": []}, MANIFEST_JSON | {"dropped": []}]
).map(lambda manifest: json.dumps(manifest).encode())


def check_manifest(case: tuple[bytes, bool], inside: Path) -> None:
    """Whoever reads or writes by it stays in the directory, and every file of it is compared or named as missing."""
    content, linked = case
    if linked:  # a folder that is really another one
        (inside / "stacks").symlink_to(inside.parent / "secret")
    for name in ("config.toml", "stacks/000.safetensors.7.new", "stacks/001.safetensors", "adapters/000/stack/a"):
        if not (linked and name.startswith("stacks")):
            put(inside / name, b"test")
    put(inside / MANIFEST, content)
    with refusing(StackwiseError):
        run = RunDirectory(inside)
        for name in run.manifest:
            run.manifest.problem(name)
            with refusing(StackwiseError):
                run.manifest.checked(name)
        for index in (0, 1, 10**6):
            run.adapters(index), run.checksums(index), run.has_stack(index)
        run.manifest.recover()
        run.write_text("new.txt", "new")
        assert Manifest(inside).problem("new.txt") is None
        ACCEPTED.append(run)


def check_source(content: bytes, inside: Path) -> None:
    """A source has its shape, fits a rack or doesn't, or is refused."""
    put(inside / "plan.json", content)
    put(inside / "finished.json", b"{}")
    with refusing(UsageError):
        found = read_source_run(inside)
        assert found.blocks
        assert all(type(size) is int and size > 0 for size in found.blocks)
        ACCEPTED.append(found)
        spec = RackSpec(blocks=(1,) * 3, **{**_SPEC, "seq_len": 32, "vocab_size": 257})
        for grows in ("up", "down"):
            source = Source.of(found, spec, grows)
            assert all(0 <= block < sum(found.blocks) for blocks in source.stacks.values() for block in blocks)
            source.check_ends(spec, found.tokenizer)
    nearest_run(inside)
    nearest_run(inside.parent)


@cache
def _tokenizer() -> Any:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100, special_tokens=["[MASK]", "[PAD]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()[:40]
    )
    library.train_from_iterator(["in the beginning god created the heaven and the earth"], trainer)
    return json.loads(library.to_str())


def check_tokenizer(content: bytes, inside: Path) -> None:
    """It gives ids of its vocabulary with an offset each, or says what is wrong with the file."""
    put(inside / "tokenizer.json", content)
    with refusing(UsageError):
        tokenizer = load_tokenizer(str(inside / "tokenizer.json"), mask_token=None)
        ((ids, offsets),) = tokenizer.encode(["in the beginning é \0"])
        assert len(ids) == len(offsets)
        assert all(0 <= each < tokenizer.vocab_size for each in ids)
        tokenizer.decode(ids)
        ACCEPTED.append(tokenizer)


def check_tensors(content: bytes, inside: Path) -> None:
    """Tensors come whose bytes are those of the file, or it is damaged."""
    path = inside / "some.safetensors"
    put(path, content)
    with refusing(DamagedTensors):
        tensors, digest = read_tensors(path)
        assert digest == sha256(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= path.stat().st_size
        for tensor in tensors.values():
            tensor.clone()
        ACCEPTED.append(tensors)


_SPEC: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_ff": 64,
    "attention": "bidirectional",
    "tie_embeddings": True,
    "rope_theta": 10000.0,
    "norm_eps": 1e-6,
    "init_std": 0.02,
}


def check_adapter(case: tuple[bytes, bytes], inside: Path) -> None:
    """An adapter stands on its stack and can be run, or the file is named."""
    config, weights = case
    put(inside / "adapter_config.json", config)
    put(inside / "adapter_model.safetensors", weights)
    spec = RackSpec(blocks=(1,), seq_len=8, vocab_size=16, **_SPEC)
    stack: nn.Module = new_stack(spec, 0, 0)
    with refusing(StackwiseError):
        adapter = Lora(LoraOptions(rank=2))
        adapter.load(stack, "stack", inside)
        assert sum(parameter.numel() for parameter in adapter.trainable(stack, ["stack"])) < len(weights)
        ACCEPTED.append(stack)


NAMESPACE = "00ff00ff00ff00ff00ff00ff00ff00ff"
RECORD = {
    "format": 1,
    "run": "@HERE@/inside",
    "phase": "stack 1",
    "trunk": [0, 1],
    "layout": {"tokens": 16, "d_model": 32, "dtype": "bf16"},
    "made_of": {"torch": "2.13.0", "precisions": [["fp32", {}], ["nf4", {"double_quant": True}]], "seed": None},
}


def check_record(content: bytes, inside: Path) -> None:
    """Check that a record has the right types."""
    put(inside / f"{NAMESPACE}.json", content)
    owner(inside, NAMESPACE)
    with refusing(StackwiseError):
        for record in read_records(inside):
            assert record.namespace == NAMESPACE
            assert record.layout.bytes_per_entry > 0
            json.dumps(record.made_of)
            ACCEPTED.append(record)


SMALL = Layout(tokens=16, d_model=32, dtype="fp32")
STORED = range(12)


@cache
def stored(backend: str) -> bytes:
    """The one file of a store of some entries, from which one was deleted."""
    with tempfile.TemporaryDirectory() as folder:
        store = _store(backend, Path(folder) / "store")
        store.put(keys_of(*STORED, 50), entries_of(SMALL, *STORED, 50))
        store.flush()
        store.discard(keys_of(50))
        store.close()
        suffix = {"disk": "*.safetensors", "lmdb": "data.mdb"}[backend]
        (path,) = (Path(folder) / "store").glob(suffix)
        return path.read_bytes()


def _store(backend: str, directory: Path) -> ActivationStore:
    if backend == "disk":
        return Disk(DiskOptions(shard_entries=64)).open(directory, SMALL, None)
    return Lmdb(LmdbOptions(batch_entries=4)).open(directory, SMALL, None)


def use_store(backend: str, directory: Path) -> None:
    """Each entry is right or missing; all can be put again, and are then there for the next store."""
    store, found = _store(backend, directory), []
    assert len(list(store.keys())) == store.stats().entries
    for number in STORED:
        with suppress(MissingEntries):
            assert torch.equal(store.get(keys_of(number)), entries_of(SMALL, number)), f"a wrong entry {number}"
            found.append(number)
    store.put(keys_of(*STORED), entries_of(SMALL, *STORED))
    store.close()
    store = _store(backend, directory)
    assert torch.equal(store.get(keys_of(*STORED)), entries_of(SMALL, *STORED))
    store.close()
    if len(found) == len(STORED):
        ACCEPTED.append(found)


def check_shard(content: bytes, inside: Path) -> None:
    """A store over a hostile shard gives right entries or none."""
    put(inside / "store" / "0.safetensors", content)
    use_store("disk", inside / "store")


def check_lmdb(content: bytes, inside: Path) -> None:
    """The same over a hostile environment, in a process of its own, which a crash would end."""
    put(inside / "store" / "data.mdb", content)

    def work() -> None:
        with watched(inside, inside.parent / "secret", LMDB_ALLOWANCE):
            use_store("lmdb", inside / "store")
            (inside / "accepted").write_text(str(len(ACCEPTED)))

    code = code_of(in_a_child(work))
    if code:
        raise Broken(f"a process that read it ended with {code}; its traceback is on stderr")
    ACCEPTED.extend(["accepted"] * int((inside / "accepted").read_text()))


@st.composite
def lmdb_files(draw: st.DrawFn) -> bytes:
    """An environment with a few numbers changed, mostly in the pages that hold its tree."""
    content, page = bytearray(stored("lmdb")), 4096
    trees = [at for at in range(0, len(content), page) if struct.unpack_from("<H", content, at + 10)[0] & 0b1011]
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.sampled_from(trees)) + draw(st.integers(0, 150) | st.integers(0, page - 8))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        number = draw(
            st.integers(0, 20) | st.integers(0, 2**64 - 1) | st.sampled_from([2**15, 2**31, 2**63, 2**64 - 1])
        )
        content[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(content)


@frozen
class Command:
    """A command on a run one of whose files was changed."""

    words: tuple[str, ...]
    run: str
    file: str
    content: bytes
    forged: bool
    """Whether the manifest was made to fit."""


COMMANDS: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("verify", "."): ("finished", ""),
    ("evaluate", ".", "--device", "cpu"): ("finished", ""),
    ("cache", "list", "."): ("finished", "c"),
    ("cache", "measure", "."): ("finished", "c"),
    ("cache", "drop", ".", "--yes"): ("finished", "c"),
    ("merge", ".", "--to", "copy"): ("finished", ""),
    ("restore", ".", "--precision", "int8", "--to", "copy"): ("finished", ""),
    ("check", "config.toml"): ("finished", "config.toml"),
    ("plan", "config.toml"): ("finished", "config.toml"),
    ("run", "."): ("broken-off", ""),
}
"""The run that each is tried on, and how the names begin of those of its files that it reads."""


@st.composite
def commands(draw: st.DrawFn, name: str) -> Command:
    """Commands that begin with this word."""
    words = draw(st.sampled_from([each for each in COMMANDS if each[0] == name]))
    run, prefix = COMMANDS[words]
    file = draw(st.sampled_from([each for each in files_of(run) if each.startswith(prefix)]))
    content = draw(file_like(specimens() / run / file))
    return Command(words, run, file, content, draw(st.sampled_from([True, True, False])))


def undamaged(name: str) -> Callable[[], Command]:
    """The same command on a run that is as it was written."""

    def command() -> Command:
        words = next(each for each in COMMANDS if each[0] == name)
        run = COMMANDS[words][0]
        return Command(words, run, "environment.json", (specimens() / run / "environment.json").read_bytes(), True)

    return command


def check_command(case: Command, inside: Path) -> None:
    """It does its work or says in a line or two why not: no traceback, no defect, nothing that a terminal obeys."""
    shutil.copytree(specimens() / case.run, inside, dirs_exist_ok=True)
    put(inside / case.file, case.content)
    if case.forged and case.file != MANIFEST:
        forge(inside, case.file)
    output, errors, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(inside)  # where what a run makes besides itself is put
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            code = _code_of([*case.words])
    finally:
        os.chdir(before)
    said = output.getvalue() + errors.getvalue()
    if code not in (0, 1, 2, 3) or "this is a defect" in said or "Traceback" in said or "out of memory" in said:
        raise Broken(f"exit code {code}: {said[-2000:]}")
    legible(said)
    if code:
        short(errors.getvalue() or output.getvalue())
    else:
        ACCEPTED.append(said)


def _code_of(words: list[str]) -> int | str | None:
    try:
        command_line.main(words)
    except SystemExit as done:
        return done.code or 0
    return 0


def _source_plan() -> Any:
    return json.loads((specimens() / "finished" / "plan.json").read_text())


@cache
def _adapter() -> tuple[bytes, bytes]:
    spec = RackSpec(blocks=(1,), seq_len=8, vocab_size=16, **_SPEC)
    with tempfile.TemporaryDirectory() as folder:
        adapter, stack = Lora(LoraOptions(rank=2)), new_stack(spec, 0, 0)
        adapter.attach(stack, "stack", 0, 1)
        adapter.save(stack, "stack", Path(folder))
        names = ("adapter_config.json", "adapter_model.safetensors")
        config, weights = ((Path(folder) / name).read_bytes() for name in names)
        return config, weights


def _adapters() -> st.SearchStrategy[tuple[bytes, bytes]]:
    config, weights = _adapter()
    return st.tuples(json_files(json.loads(config)), st.just(weights)) | st.tuples(
        st.just(config), tensor_files(weights)
    )


@cache
def _some_tensors() -> bytes:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(2, 0)}
    return save(tensors, metadata={"format": "pt"})


OVERRIDES = st.lists(
    st.builds("{}.{}={}".format, TOML_NAMES, TOML_NAMES, st.sampled_from(WORDS)) | st.text(max_size=12), max_size=2
)
TARGETS = {
    target.name: target
    for target in (
        Target(
            "config",
            lambda: st.tuples(toml_files(TOML), st.just([]) | st.just([]) | OVERRIDES),
            check_config,
            share=0.5,
            sound=lambda: (TOML, []),
        ),
        Target("config.toml of a run", lambda: toml_files(TOML), check_run_config, share=0.25, sound=lambda: TOML),
        Target(
            "manifest.json",
            lambda: st.tuples(json_files(MANIFEST_JSON), st.just(False)) | st.tuples(SOUND_MANIFESTS, st.just(True)),
            check_manifest,
            sound=lambda: (json.dumps(MANIFEST_JSON).encode(), False),
        ),
        Target(
            "plan.json",
            lambda: json_files(_source_plan()),
            check_source,
            sound=lambda: json.dumps(_source_plan()).encode(),
        ),
        Target(
            "tokenizer.json",
            lambda: json_files(_tokenizer()),
            check_tokenizer,
            share=0.5,
            sound=lambda: json.dumps(_tokenizer()).encode(),
        ),
        Target("safetensors", lambda: tensor_files(_some_tensors()), check_tensors, sound=_some_tensors),
        Target("adapter", _adapters, check_adapter, share=0.25, sound=_adapter),
        Target("cache record", lambda: json_files(RECORD), check_record, sound=lambda: json.dumps(RECORD).encode()),
        Target("disk shard", lambda: tensor_files(stored("disk")), check_shard, sound=lambda: stored("disk")),
        Target("lmdb", lambda: lmdb_files() | damaged(stored("lmdb")), check_lmdb, 0.2, lambda: stored("lmdb")),
        *(
            Target(f"stackwise {name}", lambda name=name: commands(name), check_command, share, undamaged(name))
            for name, share in (
                ("verify", 0.1),
                ("cache", 0.04),
                ("check", 0.02),
                ("plan", 0.01),
                ("evaluate", 0.02),
                ("merge", 0.01),
                ("restore", 0.01),
                ("run", 0.01),
            )
        ),
    )
}


def accepts(target: Target, case: Any) -> bool:
    """Feed a case to a target; whether it was accepted.

    Raises:
        Exception: anything that must not come.
    """
    with tempfile.TemporaryDirectory(prefix="stackwise-case-") as here:
        inside, secret = Path(here) / "inside", Path(here) / "secret"
        inside.mkdir()
        secret.mkdir()
        (secret / "file.json").write_text("{}")
        ACCEPTED.clear()
        # What a configuration extends, or names as its text, may be anywhere.
        free = target.name == "config" or (isinstance(case, Command) and case.file == "config.toml")
        hidden = inside / "nothing" if free else secret
        with watched(inside, hidden, ALLOWANCE if target.name != "lmdb" else LMDB_ALLOWANCE):
            target.check(case, inside)
        assert os.listdir(secret) == ["file.json"]
        return bool(ACCEPTED)


def warm_up(target: Target) -> None:
    """Feed it what is sound, unwatched at first, since that imports and caches what it needs."""
    if target.sound is not None:
        case = target.sound()
        with tempfile.TemporaryDirectory() as here:
            (Path(here) / "secret").mkdir()
            (Path(here) / "inside").mkdir()
            target.check(case, Path(here) / "inside")
        assert accepts(target, case), f"{target.name}: what is sound was refused"


@define
class Tried:
    """The outcome of a target."""

    cases: int = 0
    accepted: int = 0
    seconds: float = 0.0
    failure: str = ""


def campaign(target: Target, examples: int, number: int) -> Tried:
    """Feed a target so many cases; a failure ends it, with the smallest case that was found for it."""
    tried = Tried()
    began = time.monotonic()
    warm_up(target)

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(target.cases())
    def feed(case: Any) -> None:
        tried.cases += 1
        try:
            tried.accepted += accepts(target, case)
        except BaseException as error:
            tried.failure = f"{case!r:.1500}\n{''.join(traceback.format_exception(error)[-4:])}"
            raise

    try:
        feed()
    except BaseException as error:  # a panic of a library in Rust isn't an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        tried.failure = tried.failure or repr(error)
    tried.seconds = time.monotonic() - began
    return tried


def main() -> None:
    """The campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.survival.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="cases of a cheap target [1000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="this target alone; may be repeated")
    arguments = parser.parse_args()
    chosen = [TARGETS[name] for name in arguments.only] if arguments.only else TARGETS.values()
    failures = []
    print("| target | cases | accepted | failures | seconds |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    for target in chosen:
        tried = campaign(target, max(1, round(target.share * arguments.examples)), arguments.seed)
        row = (target.name, tried.cases, tried.accepted, int(bool(tried.failure)), f"{tried.seconds:.0f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        if tried.failure:
            failures.append(f"{target.name}: {tried.failure}")
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
