"""Whatever a user hands in, the command line answers with one clear error, and nothing is begun that can't be done."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from stackwise_core.cli import main
from stackwise_core.engine.runs.directory import RunDirectory
from tests.tiny import TEXT

pytestmark = pytest.mark.slow

CONFIG = f"""
[run]
name = "small"
device = "cpu"
[data]
corpus = "{TEXT}"
seq_len = 32
tokens_directory = "{{tokens}}"
[rack]
stacks = 2
blocks_per_stack = 1
d_model = 32
n_heads = 2
[training]
steps_per_stack = 2
batch_size = 8
masks_per_sample = 1
[evaluation]
sequences = 2
draws = 1
"""

WRONG = '''
"""One implementation for each way of getting a hook wrong."""

import numpy as np
import torch
from attrs import evolve, frozen
from torch import nn

from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, CacheOptions, CacheStats
from stackwise_core.interfaces.cache_backend import MissingEntries
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.routing import Route
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_precision.floats import Fp32


@frozen
class Options:
    pass


CLASSES = {}


def of(hook):
    def note(made):
        CLASSES[made.__name__] = hook
        return made
    return note


def implementations(hook):
    return [
        Implementation(name.lower(), "wrong", f"wrong:{name}", "wrong:StoreOptions" if hook == "cache_backend" else
                       "wrong:Options")
        for name, of in CLASSES.items() if of == hook
    ]


@hookimpl
def mask_schedule():
    return implementations("mask_schedule")


@hookimpl
def precision():
    return implementations("precision")


@hookimpl
def adapter():
    return implementations("adapter")


@hookimpl
def cache_backend():
    return implementations("cache_backend")


@hookimpl
def trainer_mode():
    return implementations("trainer_mode")


@frozen
class StoreOptions(CacheOptions):
    pass


class Straight(MaskSchedule):
    def fraction(self, progress):
        return progress


@of("mask_schedule")
class OneFewer(Straight):
    def fraction(self, progress):
        return progress[:-1]


@of("mask_schedule")
class OneNumber(Straight):
    def fraction(self, progress):
        return 0.5


@of("mask_schedule")
class TooMuch(Straight):
    def fraction(self, progress):
        return 2 * progress


@of("mask_schedule")
class NotANumber(Straight):
    def fraction(self, progress):
        return progress / progress


@of("mask_schedule")
class ShortMask(Straight):
    def place(self, tokens, scorable, fraction, rng):
        return np.ones(len(tokens) - 1, dtype=bool)


@of("mask_schedule")
class OneForAll(Straight):
    def place(self, tokens, scorable, fraction, rng):
        return True


@of("mask_schedule")
class Probabilities(Straight):
    def place(self, tokens, scorable, fraction, rng):
        return np.full(len(tokens), fraction)


@of("precision")
class Narrow(Fp32):
    def prepare(self, stack, *, trainable):
        super().prepare(stack, trainable=trainable)
        stack.register_forward_hook(lambda module, given, hidden: hidden[..., :-1])


@of("precision")
class Uncomputable(Fp32):
    def prepare(self, stack, *, trainable):
        super().prepare(stack, trainable=trainable)
        stack.layers[0].self_attn.o_proj = nn.Linear(32, 31)


class Still(Adapter):
    unexportable = "it is in no other library"
    def size(self, rack, index):
        return 8
    def attach(self, stack, name, index, count):
        pass
    def trainable(self, stack, names):
        return []
    def save(self, stack, name, directory):
        pass
    def load(self, stack, name, directory):
        pass
    def merge(self, stack, name):
        pass


of("adapter")(Still)


@of("adapter")
class Weightless(Still):
    def size(self, rack, index):
        return 0


class Store(ActivationStore):
    def __init__(self):
        self.held = {}
    def put(self, keys, entries):
        self.held |= dict(zip(keys, entries.clone()))
    def get(self, keys):
        return torch.stack([self.held[key] for key in keys])
    def contains(self, keys):
        return [key in self.held for key in keys]
    def keys(self):
        return iter(self.held)
    def shrink(self, most):
        pass
    def flush(self):
        pass
    def drop(self):
        self.held.clear()
    def stats(self):
        return CacheStats(entries=len(self.held))


@of("cache_backend")
class CutShort(CacheBackend):
    @staticmethod
    def get(store, keys):
        return Store.get(store, keys)[:, :-1]
    def open(self, directory, layout, capacity):
        get = self.get
        class Wrong(Store):
            def get(store, keys):
                return get(store, keys)
        return Wrong()


@of("cache_backend")
class OtherFormat(CutShort):
    @staticmethod
    def get(store, keys):
        return Store.get(store, keys).double()


@of("cache_backend")
class NeverThere(CutShort):
    @staticmethod
    def get(store, keys):
        raise MissingEntries([])


@of("cache_backend")
class NoStore(CacheBackend):
    def open(self, directory, layout, capacity):
        return None


@of("cache_backend")
class SaysLittle(CacheBackend):
    def open(self, directory, layout, capacity):
        class Wrong(Store):
            def contains(store, keys):
                return [True]
        return Wrong()


class Mode(TrainerMode):
    def plan(self, rack, budget):
        return [Phase(name="all", path=range(rack.stacks), trains=range(rack.stacks), embedding=True, head=True)]


@of("trainer_mode")
class Idle(Mode):
    def plan(self, rack, budget):
        return []


@of("trainer_mode")
class Speechless(Mode):
    def plan(self, rack, budget):
        return None


@of("trainer_mode")
class Elsewhere(Mode):
    def plan(self, rack, budget):
        return [Phase(name="far", path=(0, 7), trains={7}, embedding=True, head=True)]


@of("trainer_mode")
class NoRack(Mode):
    def partition(self, rack):
        return None


@of("trainer_mode")
class NoStacks(Mode):
    def partition(self, rack):
        return evolve(rack, blocks=())


@of("trainer_mode")
class NoWay(Mode):
    def routes(self, rack):
        return None


@of("trainer_mode")
class WayOut(Mode):
    def routes(self, rack):
        return [Route(path=(0, 9))]
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A directory with a small configuration, a file of wrong plugins, the tokens, and a finished run."""
    here: Path = tmp_path_factory.mktemp("bad-input")
    (here / "small.toml").write_text(CONFIG.format(tokens=here / "tokens"))
    (here / "wrong.py").write_text(WRONG)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        ran = CliRunner().invoke(main, ["run", "small.toml"])
    assert ran.exit_code == 0, ran.output
    return here


@pytest.fixture
def here(base, tmp_path, monkeypatch) -> Path:
    """A working directory with nothing in it but the configuration."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(base / "small.toml", tmp_path)
    return tmp_path


def stackwise(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(*settings: str) -> Result:
    return stackwise("run", "small.toml", *(part for setting in settings for part in ("--set", setting)))


def refused(result: Result, exit_code: int, *said: str) -> None:
    """The command ended so, with one message that says all this, and no traceback."""
    assert result.exit_code == exit_code, result.output
    for part in said:
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert "this is a defect" not in result.output
    message = "\n".join(result.stderr.splitlines())
    assert message
    assert "\n" not in message or message.endswith("1 error. Nothing was run."), message


def nothing_was_begun(here: Path) -> None:
    """No run has a directory."""
    assert not (here / "runs").exists()


# Directories.


@pytest.mark.parametrize("key", ["run.directory", "data.tokens_directory", "cache_backend.directory"])
@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("taken", "taken is a file, expected a directory"),
        ("taken/below", "taken is a file, expected a directory"),
        ("/proc/stackwise", "/proc can't be written to ("),
    ],
)
def test_a_directory_that_cannot_be_written_to(here, key, directory, said):
    """The key, the path, what is in the way and what to do, before any text is read."""
    (here / "taken").write_text("a file")
    uses = ["cache_backend.use=disk"] if key.startswith("cache_backend") else []
    result = run(*uses, f"{key}={directory}")
    refused(result, 2, f"{key} = ", said, "Name another")
    nothing_was_begun(here)
    assert {path.name for path in here.iterdir()} == {"small.toml", "taken"}


def test_a_directory_that_the_system_refuses(here, monkeypatch):
    """One whose permissions are wrong, or whose file system is read-only, has the system's reason."""
    (here / "ours").mkdir()

    make = tempfile.mkdtemp

    def refuse(*, prefix, dir):
        if Path(dir).name == "ours":
            raise PermissionError(13, "Permission denied")
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr("stackwise_core.system.writable.tempfile.mkdtemp", refuse)
    result = run("data.tokens_directory=ours/tokens")
    refused(result, 2, "data.tokens_directory = ", "ours can't be written to (Permission denied)")


def test_tokens_are_read_where_nothing_can_be_written(here, base, monkeypatch):
    """A directory that has the tokens already need not be writable."""

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("stackwise_core.engine.draws.sequences._make", refuse)
    assert stackwise("plan", "small.toml").exit_code == 0


# Text.


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", ["empty.txt: expected text, but there is not one character in it"]),
        (
            "image.txt",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            ["image.txt:1: expected UTF-8, found byte 0x89 at offset 0", "binary"],
        ),
        ("program.txt", b"\x7fELF\n\2\1\1\0\0\0", ["program.txt:2:", "found byte 0x00 at offset 8", "binary file"]),
        (
            "lines.jsonl",
            b'{"text": "a"}\n\0\0\0\0\n',
            ["lines.jsonl:2:", "found byte 0x00 at offset 14", "binary file"],
        ),
        (
            "latin.txt",
            "plain\nna\xefve".encode("latin-1"),
            ["latin.txt:2: expected UTF-8, found byte 0xef at offset 8", "iconv -f ISO-8859-1 -t UTF-8"],
        ),
        ("utf16.txt", "text".encode("utf-16"), ["utf16.txt:1: expected UTF-8", "iconv -f UTF-16 -t UTF-8"]),
        ("short.txt", b"In the beginning", ["short.txt: too little text", "data.seq_len = 32", "add text"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl:2:9: expected a JSON object, found bad JSON"]),
        (
            "other.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            ['other.jsonl:2: expected a field "text" (data.text_field)', '"txt"'],
        ),
        ("*.md", None, ["*.md: nothing is there; "]),
    ],
)
def test_text_that_is_none(here, name, content, said):
    """File, line or offset, what was found and what would do; nothing was begun."""
    if content is not None:
        (here / name).write_bytes(content)
    refused(run(f"data.corpus={name}", "data.tokens_directory=own"), 2, *said)
    nothing_was_begun(here)


def test_text_to_evaluate_on_that_is_none(here, base):
    """The same goes for ``--corpus``."""
    (here / "latin.txt").write_bytes(b"caf\xe9")
    refused(
        stackwise("evaluate", base / "runs/small", "--corpus", "latin.txt"),
        2,
        "latin.txt:1: expected UTF-8, found byte 0xe9 at offset 3",
    )


def test_a_null_character_far_into_a_text_is_kept(here):
    """What looks like text and has a stray one somewhere is text."""
    (here / "long.txt").write_bytes(TEXT.read_bytes()[:4000] * 3 + b"\0" + TEXT.read_bytes()[:4000])
    assert run("data.corpus=long.txt").exit_code == 0


# Tokenizers.


def tokenizer(path: Path, *more: str) -> Path:
    """A tokenizer.json of words, with a mask token and more words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({*TEXT.read_text().split(), *more})
    library = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[MASK]"])
    library.save(str(path))
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model": ', "t.json:1:11: expected a tokenizer.json, found bad JSON"),
        (b'{"model": {}}', "t.json: expected a tokenizer.json as the tokenizers library writes it"),
        (b"\x80\x04\x95", "t.json: expected a tokenizer.json, found no text at all"),
        (b"", "t.json:1:1: expected a tokenizer.json, found bad JSON"),
    ],
)
def test_a_damaged_tokenizer(here, content, said):
    """Its file, and the place in it."""
    (here / "t.json").write_bytes(content)
    refused(run("data.tokenizer=t.json"), 2, said)
    nothing_was_begun(here)


def test_a_mask_token_that_is_not_there(here):
    """The nearest token is named."""
    tokenizer(here / "t.json")
    result = run("data.tokenizer=t.json", "data.mask_token=[MSK]")
    refused(result, 2, 't.json: expected the token "[MSK]" (data.mask_token); the nearest is "[MASK]"')
    nothing_was_begun(here)


def test_a_vocabulary_that_does_not_fit_the_run_to_start_from(here, base):
    """Both sizes are said before the text is tokenised."""
    tokenizer(here / "t.json")
    result = run("data.tokenizer=t.json", f"rack.init_from={base}/runs/small", "data.tokens_directory=own")
    refused(result, 2, "was trained with another tokenizer", "its vocabulary has 258 tokens, and this one ")
    nothing_was_begun(here)
    assert not (here / "own").exists()


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_vocabulary_that_does_not_fit_the_run_that_goes_on(here, command):
    """A tokenizer.json that was changed since a run began is refused where it is named; the run has its own copy."""
    tokenizer(here / "t.json")
    assert run("data.tokenizer=t.json", "data.tokens_directory=own").exit_code == 0
    if command == "run":
        RunDirectory(here / "runs/small").manifest.drop("finished.json")
    tokenizer(here / "t.json", "Zeus")
    if command == "run":
        result = run("data.tokenizer=t.json", "data.tokens_directory=own")
        assert result.exit_code == 2
        assert "data.tokenizer changes what comes out" in result.stderr
    assert stackwise(command, "runs/small").exit_code == 0


# Runs.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_shape(path: Path) -> None:
    """A file of another rack, entered in the manifest as if a run had written it."""
    directory = next(RunDirectory(parent) for parent in path.parents if (parent / "manifest.json").is_file())
    name = str(path.relative_to(directory.path))
    tensors = {key: torch.zeros(48, *tensor.shape[1:]) for key, tensor in directory.read_tensors(name).items()}
    directory.write_tensors(name, tensors)


def one_tensor_fewer(path: Path) -> None:
    directory = next(RunDirectory(parent) for parent in path.parents if (parent / "manifest.json").is_file())
    name = str(path.relative_to(directory.path))
    first, *others = sorted(directory.read_tensors(name).items())
    directory.write_tensors(name, dict(others or [("other.weight", first[1])]))


Harm = Callable[[Path], None]
USES = {
    "evaluate": lambda run_directory: stackwise("evaluate", run_directory),
    "init_from": lambda run_directory: run(f"rack.init_from={run_directory}", "rack.stacks=3"),
    "goes on": lambda run_directory: stackwise("run", run_directory),
}


def harmed(base: Path, here: Path, use: str, file: str, harm: Harm) -> Result:
    """Use a copy of the finished run, or of an interrupted one, after damage to one of its files."""
    copy = shutil.copytree(base / "runs/small", here / "copy")
    if use == "goes on":
        RunDirectory(copy).manifest.drop("finished.json")
    harm(copy / file)
    return USES[use](copy)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("file", ["stacks/000.safetensors", "embedding.safetensors"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "damaged; its checksum isn't the one in manifest.json"),
        (cut, "bytes, and manifest.json says"),
        (Path.unlink, "missing; it was deleted"),
        (other_shape, "found [48"),
        (one_tensor_fewer, "found none"),
    ],
)
def test_weights_that_are_not_those_of_the_run(here, base, use, file, harm, said):
    """The file is named with what is wrong, wherever the run is used, and a flipped bit apart at once."""
    result = harmed(base, here, use, file, harm)
    refused(result, 1, f"copy/{file}: ", said)
    if harm is not flip:
        nothing_was_begun(here)


@pytest.mark.parametrize("use", ["evaluate", "goes on"])
@pytest.mark.parametrize("harm", [flip, cut])
def test_a_damaged_configuration_of_a_run(here, base, use, harm):
    """One bit is enough: a seed that differs by it would be valid, and wrong."""
    refused(harmed(base, here, use, "config.toml", harm), 1, "copy/config.toml: damaged; ")


def changed_digit(path: Path) -> None:
    """Valid JSON still, and another plan."""
    path.write_text(path.read_text().replace('"seq_len": 32', '"seq_len": 31'))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("harm", "said"), [(changed_digit, "damaged; its checksum"), (cut, "plan.json"), (Path.unlink, "plan.json")]
)
def test_a_damaged_plan_of_a_run(here, base, use, harm, said):
    """It is refused as it stands, also where it could be read."""
    result = harmed(base, here, use, "plan.json", harm)
    refused(result, 2 if harm is not changed_digit and use != "goes on" else 1, "plan.json", said)
    nothing_was_begun(here)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_damaged_progress_of_a_run_that_goes_on(here, base, harm):
    """What is done isn't guessed."""
    refused(harmed(base, here, "goes on", "progress.json", harm), 1, "copy/progress.json: ")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", '{"format": 1}', '{"format": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}']
)
def test_a_damaged_manifest(here, base, use, content):
    """Without it no file can be trusted."""
    result = harmed(base, here, use, "manifest.json", lambda path: path.write_text(content) and None)
    refused(result, 1, "copy/manifest.json: not a manifest")
    nothing_was_begun(here)


# Plugins.


@pytest.mark.parametrize(
    ("hook", "name", "said"),
    [
        ("mask_schedule", "onefewer", "fraction() gave float64 [64] for float64 [65], expected one of that shape"),
        ("mask_schedule", "onenumber", "fraction() gave an object of the type float, expected a tensor"),
        ("mask_schedule", "toomuch", "expected numbers in [0, 1]"),
        ("mask_schedule", "notanumber", "fraction() gave nan, expected numbers in [0, 1]"),
        ("mask_schedule", "shortmask", "place() gave bool [31] for 32 tokens, expected bool [32]"),
        ("mask_schedule", "oneforall", "place() gave bool [] for 32 tokens, expected bool [32]"),
        ("mask_schedule", "probabilities", "place() gave float64 [32] for 32 tokens, expected bool [32]"),
        ("adapter.stack", "weightless", "size() gave no weights for stack 0, expected some"),
        ("trainer_mode", "idle", "plan() gave no phases, expected one or more"),
        ("trainer_mode", "speechless", "plan() gave no list of phases"),
        ("trainer_mode", "elsewhere", 'phase "far" of its plan() has the path (0, 7), expected stacks of 0 to 1'),
        ("trainer_mode", "norack", "partition() gave NoneType, expected a RackSpec"),
        ("trainer_mode", "nostacks", "partition() gave stacks of () blocks, expected one or more"),
        ("trainer_mode", "noway", "routes() gave no list of routes"),
        ("trainer_mode", "wayout", "routes() gave a stack that isn't there, expected 0 to 1"),
    ],
)
def test_a_plugin_that_breaks_its_contract_is_named_before_anything_is_begun(here, base, hook, name, said):
    """The hook, the implementation, its file, the method, what it gave and what was expected."""
    table, _, place = hook.partition(".")
    setting = f'{table}.{place}={{ use = "{name}" }}' if place else f"{table}.use={name}"
    result = stackwise("run", "small.toml", "-p", base / "wrong.py", "--set", setting)
    refused(result, 1, f'{table} "{name}" of wrong.py: ', said, "mend it, or use another")
    nothing_was_begun(here)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("precision.active=narrow", ["gave float32 [8, 32, 31]; expected float32 [8, 32, 32]"]),
        (
            "precision.active=uncomputable",
            ["the stack that prepare() left can't be computed: ", "expected float32 [8, 32"],
        ),
        ("precision.trunk=narrow", ["gave float32 [", ", 32, 31]; expected float32 ["]),
        ('adapter.stack={ use = "still" }', ["trainable() gave no weights for stack 0, expected the 8 of size()"]),
        (
            "cache_backend.use=cutshort",
            ["get() gave entries bfloat16 [8, 31, 32] on cpu, expected bfloat16 [8, 32, 32]"],
        ),
        ("cache_backend.use=otherformat", ["get() gave entries float64 [8, 32, 32] on cpu, expected bfloat16"]),
        ("cache_backend.use=neverthere", ["get() missed entries that it wasn't asked for"]),
        ("cache_backend.use=nostore", ["open() gave NoneType, expected an ActivationStore"]),
        ("cache_backend.use=sayslittle", ["contains() gave 1 answers, expected one for each of"]),
    ],
)
def test_a_plugin_that_breaks_its_contract_in_a_run_is_named(here, base, setting, said):
    """What can only be seen when a stack computes, trains or is cached is said then, and not trained on."""
    settings = [setting, "adapter.attach=birth"] if setting.startswith("adapter") else [setting]
    result = stackwise("run", "small.toml", "-p", base / "wrong.py", *(f"--set={each}" for each in settings))
    hook = setting.partition(".")[0]
    refused(result, 1, f'{hook} "', '" of wrong.py: ', "mend it, or use another", *said)


def test_what_a_plugin_raises_is_its_own_defect(here):
    """An exception of a local file is laid at its door, not at Stackwise's."""
    Path("raises.py").write_text(
        "from stackwise_core.hookspecs import Implementation, hookimpl\n"
        "from stackwise_core.interfaces.mask_schedule import MaskSchedule\n"
        "from attrs import frozen\n"
        "@frozen\nclass Options: pass\n"
        "class Raises(MaskSchedule):\n    def fraction(self, progress): return progress.nowhere\n"
        "@hookimpl\ndef mask_schedule():\n"
        "    return [Implementation('raises', 'x', 'raises:Raises', 'raises:Options')]\n"
    )
    result = stackwise("run", "small.toml", "-p", "raises.py", "--set", "mask_schedule.use=raises")
    assert result.exit_code == 1
    assert result.stderr.startswith("this is a defect in the plugin raises.py: AttributeError: ")
    nothing_was_begun(here)


def test_the_finished_run_is_fine(here, base):
    """What the others harm is whole in itself, and can be started from."""
    assert json.loads(stackwise("evaluate", base / "runs/small", "--json").stdout)["likelihoods"]
    assert run(f"rack.init_from={base}/runs/small", "rack.stacks=3").exit_code == 0
