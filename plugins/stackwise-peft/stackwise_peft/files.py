"""peft's two files of an adapter: written whole, and read without trusting them."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stackwise_core.errors import StackwiseError
from stackwise_core.system.files import publish, publish_text
from stackwise_peft.library import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PeftConfig
from stackwise_peft.projections import PROJECTIONS

PREFIX = "base_model.model."
"""Prefix that peft's own loader puts before the names of the module that it wraps."""
NEVER_READ = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")
"""Keys of an adapter's config that say nothing about its weights. What they name is neither imported nor looked up."""


def write_adapter(directory: Path, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter as ``PeftModel.save_pretrained`` does, with the same bytes for the same adapter."""
    # A set of strings has another order in each process.
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    held = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    publish(directory / SAFETENSORS_WEIGHTS_NAME, lambda beside: save_file(held, beside, metadata={"format": "pt"}))
    publish_text(directory / CONFIG_NAME, json.dumps(content | {"inference_mode": True}, indent=2, sort_keys=True))


def read_tensors(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read an adapter's weights by name; the file must hold exactly these.

    Raises:
        StackwiseError: the file is missing, damaged, or holds other tensors.
    """
    path = directory / SAFETENSORS_WEIGHTS_NAME
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StackwiseError(f"{path} can't be read: {error!s:.200}") from None
    for name in sorted(shapes.keys() ^ {key.removeprefix(PREFIX) for key in tensors}):
        found = "doesn't have" if name in shapes else "has"
        raise StackwiseError(f"{path}: its config and the stack don't fit it: it {found} {PREFIX}{name}")
    for name, shape in shapes.items():
        tensor = tensors[PREFIX + name]
        if tensor.shape != shape or not tensor.is_floating_point():
            raise StackwiseError(
                f"{path}: {PREFIX}{name}: expected floats {list(shape)}, found {tensor.dtype} {list(tensor.shape)}"
            )
    return {name: tensors[PREFIX + name] for name in shapes}


class AdapterConfig:
    """An adapter_config.json, of which each key that matters is asked for and all others must be at their defaults."""

    def __init__(self, directory: Path) -> None:
        """Read it.

        Raises:
            StackwiseError: it is missing, or no JSON object.
        """
        self.path = directory / CONFIG_NAME
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise StackwiseError(f"{self.path} can't be read: {error}") from None
        if not isinstance(content, dict):
            raise StackwiseError(f"{self.path}: expected a JSON object, found {content!r:.80}")
        self._left: dict[str, Any] = {key: value for key, value in content.items() if key not in NEVER_READ}

    def take(self, key: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        """Read the value of a key.

        Raises:
            StackwiseError: it isn't there, or doesn't fit.
        """
        value = self._left.pop(key, None)
        if not fits(value):
            raise StackwiseError(f"{self.path}: `{key}`: expected {expected}, found {json.dumps(value):.80}")
        return value

    def number(self, key: str) -> float:
        """Read a finite number."""
        return float(self.take(key, "a number", lambda value: _is_number(value) and math.isfinite(value)))

    def projections(self, key: str) -> list[str]:
        """Read a list of projections' names."""
        names: list[str] = self.take(
            key,
            "names of projections",
            lambda value: isinstance(value, list) and all(each in PROJECTIONS for each in value),
        )
        return names

    def nothing_else(self, defaults: Mapping[str, Any]) -> None:
        """Check that all keys not read so far are at their defaults, or switched off.

        Raises:
            StackwiseError: one isn't, and would change what the adapter does.
        """
        for key, value in self._left.items():
            if value and value != defaults.get(key):
                raise StackwiseError(
                    f"{self.path}: `{key}` = {json.dumps(value):.80} isn't supported; only files that Stackwise wrote "
                    "are sure to load"
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
