"""Parts of a model that lie beside a checkpoint's weights: adapters, code, other weights."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from stackwise_core.words import shown

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_ENDS = ("embed_tokens", "lm_head")


def adapters_beside(directory: Path) -> tuple[Path, ...]:
    """Return the directories of peft's adapters: the checkpoint's own, and those in ``adapters/``."""
    found = [directory] if _is_adapter(directory) else []
    return (*found, *sorted(each for each in directory.glob("adapters/*") if _is_adapter(each)))


def _is_adapter(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (ADAPTER_CONFIG, *_ADAPTER_WEIGHTS))


def changes_ends(adapter: Path) -> bool:
    """Return whether an adapter changes embedding or head; one that can't be read counts as such."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / _ADAPTER_WEIGHTS[0], framework="np") as opened:
            return any(end in key for key in opened.keys() for end in _ENDS)  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        return True


def code_of_tokenizer(tokenizer_config: Path) -> Iterator[str]:
    """Yield the problem of a tokenizer_config.json that asks for code of its own."""
    try:
        content = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # who reads it for what is in it says so
    if isinstance(content, dict) and content.get("auto_map"):
        yield (
            f"{tokenizer_config}: expected auto_map to be nothing, found {shown(content['auto_map'])}: the tokenizer "
            "asks for code of its own, and none is run"
        )


def other_weights(directory: Path, read: Collection[str]) -> tuple[str, ...]:
    """Return the names of safetensors files that aren't read, adapters aside."""
    names = (each.name for each in directory.glob("*.safetensors"))
    return tuple(sorted(name for name in names if name not in read and name not in _ADAPTER_WEIGHTS))
