"""A Hugging Face checkpoint as config.json and its files' headers tell of it; no weights are read."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from stackwise_core.config.tokenizer_json import read_vocabulary
from stackwise_core.interfaces.checkpoint_format import HEAD, Checkpoint, Refusal, RefusedCheckpoint
from stackwise_core.words import found, shown
from stackwise_huggingface.beside import ADAPTER_CONFIG, adapters_beside, changes_ends, code_of_tokenizer, other_weights
from stackwise_huggingface.special_ids import TOKENIZER_CONFIG, read_special_ids

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
NUMBERS = ("F32", "BF16", "F16")
"""Number formats, as safetensors has them, that become fp32 without loss."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_MOST_NAMED = 3


@frozen
class _Family:
    """A model of transformers that has our blocks, and the defaults of keys missing from its config.json."""

    architectures: tuple[str, ...]
    attention: str
    norm_eps: float = 1e-6
    n_kv_heads: int | None = None
    sliding_window: int | None = None
    special_ids: Mapping[str, int] = field(factory=dict)
    """Ids that config.json has where nobody set them, by the names of ``data.special_ids``."""


_FAMILIES = {
    "llama": _Family(("LlamaForCausalLM", "LlamaModel"), "causal"),
    "eurobert": _Family(
        ("EuroBertForMaskedLM", "EuroBertModel"),
        "bidirectional",
        norm_eps=1e-5,
        special_ids={"mask": 128002, "pad": 128001},
    ),
    "mistral": _Family(("MistralForCausalLM", "MistralModel"), "causal", n_kv_heads=8, sliding_window=4096),
}
_OURS = {
    "hidden_act": ("silu", "silu"),
    "attention_bias": (False, False),
    "mlp_bias": (False, False),
    "sliding_window": (None, None),
    "quantization_config": (None, None),
    "auto_map": (None, None),
}
"""Keys of config.json that a rack has one value of only: that, and what it is where it is left out."""
_WHY = {
    "auto_map": "it asks for code of its own, and none is run",
    "quantization_config": "its weights are quantised; start from the full-precision ones",
}


_KINDS: dict[type, tuple[str, tuple[type, ...], Callable[[Any], bool]]] = {
    bool: ("a boolean", (bool,), lambda value: True),
    int: ("an integer of 1 or more", (int,), lambda value: 1 <= value < 1 << 40),
    float: ("a number above 0", (int, float), lambda value: 0 < value < 1e30),
}


@frozen(kw_only=True)
class StoredCheckpoint(Checkpoint):
    """A checkpoint, and where its tensors are."""

    stored: Mapping[str, tuple[str, str]]
    """File of each tensor and its name there, by our name."""


def read_checkpoint(directory: Path) -> StoredCheckpoint:
    """Read config.json, the vocabulary, and the headers of the safetensors files; none of the weights.

    Raises:
        RefusedCheckpoint: its blocks aren't ours, or something is missing or damaged.
    """
    if not (directory / CONFIG).is_file():
        adapter = f"but the {ADAPTER_CONFIG} of an adapter, whose model is elsewhere"
        raise RefusedCheckpoint([f"{directory}: expected a whole checkpoint, and there is no {CONFIG}, {adapter}"])
    config = _read_json(directory / CONFIG)
    rack, problems = _shape(directory / CONFIG, config)
    if problems:
        raise RefusedCheckpoint(problems)
    blocks, rows = rack["blocks"], rack["vocab_size"]
    stored, headers = _tensors(directory)
    if blocks > len(headers):
        raise RefusedCheckpoint(
            [f"{directory}: expected tensors of {blocks} blocks, as {CONFIG} says, found {len(headers)} tensors in all"]
        )
    problems = list(_misfits(directory, headers, _expected(rack)))
    if problems:
        raise RefusedCheckpoint(problems)
    if not (directory / TOKENIZER).is_file():
        raise RefusedCheckpoint(
            [f"{directory}: expected a {TOKENIZER} beside {CONFIG}, which says what its tokens are, and there is none"]
        )
    vocabulary = read_vocabulary(directory / TOKENIZER)
    defaults = _FAMILIES[config["model_type"]].special_ids
    special_ids, problems = read_special_ids(directory, config, vocabulary, rows, defaults)
    problems += code_of_tokenizer(directory / TOKENIZER_CONFIG)
    if problems:
        raise RefusedCheckpoint(problems)
    weights = {file for file, _ in stored.values()}
    left_alone = ", ".join(other_weights(directory, weights))
    return StoredCheckpoint(
        title=_architecture(config),
        **rack,
        has_head_tensor=HEAD in stored,
        tokenizer=TOKENIZER,
        special_ids=special_ids,
        files=(CONFIG, TOKENIZER, *sorted(weights)),
        notes=(f"Left alone beside its weights, as transformers does: {left_alone}.",) if left_alone else (),
        refusals=tuple(_refusal(directory, adapter) for adapter in adapters_beside(directory)),
        stored=stored,
    )


def _expected(rack: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors; an LM head may be missing."""
    return Checkpoint(title="", tokenizer="", files=(), **rack).shapes


def _refusal(directory: Path, adapter: Path) -> Refusal:
    """Return the reason for refusing a checkpoint that has an adapter beside it."""
    help = "move its files into a directory of their own, from which peft's merge_and_unload folds it in, or delete it"
    if adapter != directory:  # an export of ours
        help = '"stackwise merge" of the run that it was exported from, before "stackwise export", folds it in'
    message = f"expected a checkpoint without adapters; {adapter} has one that belongs over its weights"
    return Refusal(message, help, embedding_too=changes_ends(adapter))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedCheckpoint([f"{path} can't be read: {error!s:.200}"]) from None
    if not isinstance(content, dict):
        raise RefusedCheckpoint([f"{path}: expected a JSON object, found {found(content)}"])
    return content


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if named else _FAMILIES[config["model_type"]].architectures[0]


def _shape(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the rack's shape by the names of ``RackSpec``, and what is wrong with it."""
    kind = config.get("model_type")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    known = ", ".join(_FAMILIES)
    if family is None:
        return {}, [f"{path}: expected model_type to be one of {known}, found {_said(kind)}"]
    problems: list[str] = []

    def take(key: str, kind: type, default: Any = None) -> Any:
        value = config.get(key)
        value = default if value is None else value
        expected, types, fits = _KINDS[kind]
        if type(value) not in types or not fits(value):
            problems.append(f"{path}: expected {key} to be {expected}, found {found(value)}")
            return None
        return value

    named = config.get("architectures")
    if named is not None and (
        not isinstance(named, list) or named[:1] not in [[each] for each in family.architectures]
    ):
        expected = " or ".join(family.architectures)
        problems.append(f"{path}: expected architectures to be {expected}, found {_said(named)}")
    defaults = {"sliding_window": family.sliding_window}
    for key, (ours, default) in _OURS.items():
        value = config.get(key, defaults.get(key, default))
        if key == "sliding_window" and family.sliding_window is None and config.get("use_sliding_window") is False:
            continue  # transformers' Mistral has its window all the same
        if value != ours and not (key in ("quantization_config", "auto_map") and not value):
            why = f": {_WHY[key]}" if key in _WHY else ""
            problems.append(f"{path}: expected {key} to be {_said(ours)}, found {_said(value)}{why}")
    layers = config.get("layer_types")
    if layers and not (isinstance(layers, list) and all(each == "full_attention" for each in layers)):
        problems.append(f'{path}: expected layer_types to be "full_attention" throughout, found {_said(layers)}')
    heads = take("num_attention_heads", int)
    rack = {
        "blocks": take("num_hidden_layers", int),
        "vocab_size": take("vocab_size", int),
        "d_model": take("hidden_size", int),
        "n_heads": heads,
        "n_kv_heads": take("num_key_value_heads", int, family.n_kv_heads or heads),
        "d_ff": take("intermediate_size", int),
        "attention": "bidirectional" if config.get("is_causal") is False else family.attention,
        "tie_embeddings": take("tie_word_embeddings", bool, False),
        "norm_eps": take("rms_norm_eps", float, family.norm_eps),
        "rope_theta": _rope_theta(path, config, problems),
        "seq_len": None if config.get("max_position_embeddings") is None else take("max_position_embeddings", int),
    }
    if not problems:
        problems += _wrong_heads(path, config, rack)
    return rack, problems


def _rope_theta(path: Path, config: Mapping[str, Any], problems: list[str]) -> float:
    """Return the base of the rotary angles: ``rope_parameters`` of transformers 5, ``rope_theta`` of 4."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    plain = isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) == "default"
    if not plain or scaling.get("partial_rotary_factor", 1) != 1 or config.get("partial_rotary_factor", 1) != 1:
        problems.append(f"{path}: expected rotary positions without scaling, found {key} = {_said(scaling)}")
        return 0.0
    theta = scaling.get("rope_theta", config.get("rope_theta", 10_000.0))
    expected, types, fits = _KINDS[float]
    if type(theta) not in types or not fits(theta):
        problems.append(f"{path}: expected rope_theta to be {expected}, found {_said(theta)}")
        return 0.0
    return float(theta)


def _wrong_heads(path: Path, config: Mapping[str, Any], rack: Mapping[str, Any]) -> Iterator[str]:
    width, odd = divmod(rack["d_model"], rack["n_heads"])
    if odd or width % 2 or rack["n_heads"] % rack["n_kv_heads"]:
        yield (
            f"{path}: expected num_attention_heads to divide hidden_size = {rack['d_model']} into even widths, and "
            f"num_key_value_heads to divide it, found {rack['n_heads']} and {rack['n_kv_heads']}"
        )
    elif config.get("head_dim") not in (None, width):
        sizes = f"hidden_size / num_attention_heads = {width}"
        yield f"{path}: expected head_dim to be {sizes}, found {_said(config['head_dim'])}"


def _said(value: Any) -> str:
    return "nothing" if value is None else shown(value)


Headers = dict[str, tuple[tuple[int, ...], str]]
"""Shape and number format of each tensor, by our name."""


def _tensors(directory: Path) -> tuple[dict[str, tuple[str, str]], Headers]:
    """Return each tensor's file and name there, by our name; and its shape and format from the headers."""
    from safetensors import SafetensorError, safe_open  # not needed for a run that starts from nothing

    files, headers = {}, {}
    for name in _files(directory):
        try:
            with safe_open(directory / name, framework="np") as opened:
                for key in opened.keys():  # noqa: SIM118  # it is no mapping
                    part, ours = opened.get_slice(key), key.removeprefix("model.")
                    if ours in files:
                        raise RefusedCheckpoint([f"{directory / name}: the tensor {key:.80} is there twice"])
                    files[ours], headers[ours] = (name, key), (tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            raise RefusedCheckpoint([f"{directory / name}: {_reason(error)}"]) from None
    return files, headers


def _reason(error: Exception) -> str:
    """Say what is wrong with a file that the safetensors library refuses."""
    if f"os error {errno.ENODEV}" in str(error):
        return "the file system can't map files into memory. Copy the directory to another one."
    return f"not a whole safetensors file: {error!s:.200}"


def _files(directory: Path) -> list[str]:
    """Return the names of the safetensors files, in order."""
    whole, index = (directory / WEIGHTS).is_file(), (directory / INDEX).is_file()
    if index:
        content = _read_json(directory / INDEX).get("weight_map")
        names = sorted(set(content.values())) if isinstance(content, dict) and _plain(content) else []
        # None can have such a name, too.
        absent = [name for name in names if not os.path.isfile(directory / name)]
        if whole and names and not absent:
            raise RefusedCheckpoint(
                [f"{directory}: found {WEIGHTS} and all files of {INDEX}: which is the model? Delete the other"]
            )
    if index and not whole:
        if not names:
            raise RefusedCheckpoint([f"{directory / INDEX}: expected weight_map to be files' names by tensor"])
        if absent:
            file = shown(absent[0])
            raise RefusedCheckpoint([f"{directory}: expected {file}, as {INDEX} says, and there is no such file"])
        return names
    if not (directory / WEIGHTS).is_file():
        pickled = sorted(entry.name for entry in directory.iterdir() if entry.suffix in _PICKLED)
        but = f"found {pickled[0]}, which is pickled, and none is read" if pickled else "found neither"
        raise RefusedCheckpoint([f"{directory}: expected {WEIGHTS} or {INDEX}, {but}"])
    return [WEIGHTS]


def _plain(index: Mapping[str, Any]) -> bool:
    """Return whether an index names only files of its own directory."""
    names = index.values()
    return all(isinstance(name, str) and Path(name).name == name != ".." and "\0" not in name for name in names)


def _misfits(directory: Path, headers: Headers, expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Describe how the headers differ from config.json; at most a few of each kind are named."""
    missing = [name for name in expected if name not in headers and name != HEAD]
    if missing:
        yield f"{directory}: expected the tensor {_some(missing)}, as {CONFIG} says, and there is none"
    unknown = [name for name in sorted(headers) if name not in expected and not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        yield f"{directory}: expected nothing but a Llama's tensors, found {_some(unknown)}"
    for name, (shape, numbers) in sorted(headers.items()):
        if name in expected and (shape != expected[name] or numbers not in NUMBERS):
            has = f"expected {list(expected[name])} in {', '.join(NUMBERS[:-1])} or {NUMBERS[-1]}"
            yield f"{directory}: {name}: {has}, found {list(shape)} in {numbers}"
            return  # one of another shape is seldom alone


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(f"{name:.80}" for name in names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
