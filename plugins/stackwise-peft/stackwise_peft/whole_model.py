"""The adapters of a rack's stacks, joined into one of the whole model as peft has it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from stackwise_core.engine.runs.tensor_file import DamagedTensors, read_tensors, write_tensors
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.adapter import SavedAdapter
from stackwise_core.system.files import publish, publish_text
from stackwise_peft.files import PREFIX
from stackwise_peft.library import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

_OF_ITS_OWN = {
    "LORA": ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"),
    "IA3": ("target_modules", "feedforward_modules"),
}
"""Keys that may differ from stack to stack, by peft's adapter type."""


@frozen
class _Part:
    """One stack's part of an adapter."""

    path: Path
    """The directory of peft's files."""
    first: int
    """The stack's first block, counted in the whole model."""
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, first: int) -> _Part:
        """Read the config of an adapter whose files were compared with their checksums.

        Raises:
            StackwiseError: it can't be a part of a whole model's.
        """
        try:
            config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
            if config["peft_type"] in _OF_ITS_OWN and not config.get("alpha_pattern"):
                return cls(path, first, config)
            found = f"{config['peft_type']!r:.40}"
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            found = f"{error!r:.100}"
        raise StackwiseError(f"{path / CONFIG_NAME}: expected an adapter of one of {[*_OF_ITS_OWN]}, found {found}")

    def tensors(self) -> dict[str, Tensor]:
        """Return its weights under the whole model's names.

        Raises:
            StackwiseError: the file is damaged.
        """
        try:
            tensors, _ = read_tensors(self.path / SAFETENSORS_WEIGHTS_NAME)
        except (OSError, DamagedTensors) as error:
            raise StackwiseError(f"not a safetensors file: {error}") from None
        return {PREFIX + self.name_in_model(name.removeprefix(PREFIX)): each for name, each in tensors.items()}

    def name_in_model(self, name: str) -> str:
        """Return ``layers.0.self_attn...`` of the stack, as the whole model calls it."""
        layers, place, rest = name.split(".", 2)
        if layers != "layers" or not place.isdecimal():
            raise StackwiseError(f"{self.path}: expected weights of layers, found {name!r:.80}")
        return f"model.layers.{self.first + int(place)}.{rest}"


def write_whole(stacks: Sequence[SavedAdapter], blocks: int, directory: Path) -> None:
    """Write the adapters of a rack's stacks as one of the whole model, which peft loads.

    Args:
        stacks: what each stack has of it, the lowest first.
        blocks: how many the whole model has.

    Raises:
        StackwiseError: they are of different kinds, or one is damaged.
    """
    config, tensors = _joined([_Part.read(each.directory, each.first_block) for each in stacks], blocks)
    publish(directory / SAFETENSORS_WEIGHTS_NAME, lambda beside: write_tensors(tensors, beside))
    publish_text(directory / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")


def how_to_load(names: Sequence[str], model: str) -> str:
    """Return Markdown that says how peft loads adapters of an exported model, all of them active."""
    first, *others = names
    lines = [
        "Adapters are beside the weights, one directory each, for peft:",
        "",
        "```python",
        "from peft import PeftModel",
        "",
        f'model = PeftModel.from_pretrained(model, "{model}/adapters/{first}", adapter_name="{first}")',
        *(f'model.load_adapter("{model}/adapters/{each}", adapter_name="{each}")' for each in others),
    ]
    if others:
        lines.append(f"model.base_model.set_adapter({list(names)})")
    return "\n".join([*lines, "```"])


def _joined(parts: Sequence[_Part], blocks: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One adapter of the whole model: its config and its weights."""
    config, tensors, owners = dict(parts[0].config), dict[str, Tensor](), dict[str, _Part]()
    for part in parts:
        for key in part.config.keys() | config:
            if key not in _OF_ITS_OWN[config["peft_type"]] and part.config.get(key) != config.get(key):
                raise StackwiseError(f"{part.path / CONFIG_NAME}: {key} isn't that of the stacks below it")
        for name, tensor in part.tensors().items():
            tensors[name] = tensor
            owners[_module(name)] = part
    config["target_modules"] = _targets(owners, blocks)
    if config["peft_type"] == "IA3":
        scaled = set(config.get("feedforward_modules") or ())
        config["feedforward_modules"] = [
            module for module in config["target_modules"] if module.rpartition(".")[2] in scaled
        ]
    else:
        config |= _ranks(owners, tensors)
    return config, tensors


def _module(name: str) -> str:
    """Return the layer that a weight belongs to, as peft compares it with ``target_modules``."""
    return re.sub(r"(_proj)\..*", r"\1", name.removeprefix(PREFIX))


def _targets(modules: Collection[str], blocks: int) -> list[str]:
    """Return the projections' names where every block has the same; otherwise full names, which mean one layer each."""
    counts = Counter(module.rpartition(".")[2] for module in modules)
    return sorted(counts) if set(counts.values()) == {blocks} else list(modules)


def _ranks(owners: Mapping[str, _Part], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rank and alpha of most layers, and patterns for the others.

    A pattern is a layer's full name, of which no two match the same layer: whatever order a file has them in, they mean
    the same.
    """
    ranks = {module: len(tensors[f"{PREFIX}{module}.lora_A.weight"]) for module in owners}
    alphas = {module: part.config["lora_alpha"] for module, part in owners.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(module): each for module, each in ranks.items() if each != rank},
        "alpha_pattern": {re.escape(module): each for module, each in alphas.items() if each != alpha},
    }
