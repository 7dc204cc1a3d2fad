"""A finished run as a directory that transformers loads without any code but its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, fields, frozen
from torch import Tensor

from stackwise_core.config.source_checkpoint import CONFIG, EMBEDDING, HEAD, NORM, block_shapes
from stackwise_core.config.source_run import PLAN, SourceRun
from stackwise_core.data.tokenizer import Tokenizer
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.files import is_abandoned, publish_text, sync, unfinished
from stackwise_core.interfaces.adapter import Adapter, SavedAdapter
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.rack.pretrained_config import (
    NUMBERS,
    Architecture,
    Number,
    Target,
    model_config,
    model_shapes,
    target_of,
)
from stackwise_core.rack.pretrained_tokenizer import tokenizer_files
from stackwise_core.rack.pretrained_writing import write_sharded
from stackwise_core.runs.directory import RunDirectory, embedding_file, head_file
from stackwise_core.runs.ending import check_rack
from stackwise_core.runs.model_card import model_card

_SIZES = ("vocab_size", "seq_len", "d_model", "n_heads", "n_kv_heads", "d_ff")


@frozen
class Exported:
    """What was written."""

    directory: Path
    target: Target
    number: Number
    stacks: int
    blocks: int
    parameters: int
    files: tuple[str, ...]
    adapters: tuple[str, ...]


@frozen
class Export:
    """What of a run is to be exported, and as what."""

    run: RunDirectory
    spec: RackSpec
    path: tuple[int, ...]
    """The stacks, in order."""
    tokenizer: Tokenizer
    named: str
    """The tokenizer as ``data.tokenizer`` has it."""
    target: Target
    number: Number
    largest: int
    """Most bytes of a file with weights."""
    adapters: Mapping[str, Adapter]
    """By name, what made each adapter of the stacks."""

    @classmethod
    def of(
        cls,
        source: SourceRun,
        tokenizer: Tokenizer,
        named: str,
        adapters: Mapping[str, Adapter],
        *,
        architecture: Architecture | None = None,
        depth: int | None = None,
        number: Number = "fp32",
        largest: int = 5_000_000_000,
    ) -> Export:
        """See what a finished run comes to; nothing is written.

        Args:
            adapters: by name, what makes each adapter that the run's configuration has.
            depth: how many stacks; None: all of them.

        Raises:
            UsageError: transformers has no such model, the depth was never trained, the tokenizer is another one, or an
                adapter can't be exported.
            StackwiseError: the plan is damaged, or a file with weights is missing, cut short or of another rack.
        """
        run = RunDirectory(source.path)
        run.manifest.checked(PLAN)
        if tokenizer.fingerprint.hex() != source.tokenizer:
            raise UsageError(
                f"{source.path}: its tokenizer isn't the one that it was trained with; was {named} changed?"
            )
        spec = _spec(source)
        path = _path(run, source, spec, depth)
        check_rack(run, spec, adapters)
        for stack in path:
            for name in run.adapters(stack):
                refuse_unexportable(run.path, adapters[name])
        return cls(run, spec, path, tokenizer, named, target_of(spec, architecture), number, largest, adapters)

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return sum(self.spec.blocks[stack] for stack in self.path)

    def write(self, directory: Path) -> Exported:
        """Write it into a directory that isn't there yet, or is empty; all of it or nothing.

        Raises:
            UsageError: there is something in the directory.
            StackwiseError: a file of the run is damaged.
            OSError: a file can't be written.
        """
        whole = Path(os.path.realpath(directory))
        refuse_full(whole)
        shapes = model_shapes(self.spec, self.path)
        files = tokenizer_files(self.named, self.tokenizer, self.spec.seq_len)
        mask, pad = self.tokenizer.mask_id, self.tokenizer.pad_id
        files[CONFIG] = model_config(self.spec, self.blocks, self.target, self.number, mask, pad)
        parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
        whole.parent.mkdir(parents=True, exist_ok=True)
        for left in whole.parent.iterdir():
            if left.name.startswith(f".{whole.name}.") and is_abandoned(left.name):  # a killed export's
                shutil.rmtree(left, ignore_errors=True)
        beside = unfinished(whole)
        try:
            beside.mkdir()
            dtype = getattr(torch, NUMBERS[self.number])
            weights = write_sharded(beside, shapes, self._tensors(), dtype, self.largest)
            for name, content in files.items():
                publish_text(beside / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            adapters = self._write_adapters(beside)
            exported = Exported(
                directory=directory,
                target=self.target,
                number=self.number,
                stacks=len(self.path),
                blocks=self.blocks,
                parameters=parameters,
                files=(*weights, *files, "README.md"),
                adapters=adapters,
            )
            publish_text(beside / "README.md", model_card(exported, self.spec, whole.name, self._loading(whole.name)))
            os.replace(beside, whole)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(whole.parent)
        return exported

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by transformers' names, in the order of ``model_shapes``; one stack is read at a time."""
        yield f"model.{EMBEDDING}", self.run.read_tensors(embedding_file(None))[EMBEDDING]
        layer, names = 0, list(block_shapes(asdict(self.spec)))
        for stack in self.path:
            tensors = self.run.read_stack(stack)
            for place in range(self.spec.blocks[stack]):
                for name in names:
                    yield f"model.layers.{layer}.{name}", tensors.pop(f"layers.{place}.{name}")
                layer += 1
            norm = tensors.pop(NORM).clone()  # the tensors of a file share its pages
        yield f"model.{NORM}", norm
        if not self.spec.tie_embeddings:
            yield HEAD, self.run.read_tensors(head_file(None))[HEAD]

    def _write_adapters(self, directory: Path) -> tuple[str, ...]:
        """Write each adapter of the stacks into a directory of its own; their names."""
        sizes = [self.spec.blocks[stack] for stack in self.path]
        first = dict(zip(self.path, accumulate(sizes, initial=0), strict=False))
        names = sorted({name for stack in self.path for name in self.run.adapters(stack)})
        for name in names:
            own = [
                SavedAdapter(self.run.adapter(stack, name), first[stack], self.spec.blocks[stack])
                for stack in self.path
                if name in self.run.adapters(stack)
            ]
            into = directory / "adapters" / name
            into.mkdir(parents=True)
            self.adapters[name].export(own, self.blocks, into)
            if not any(into.iterdir()):
                raise ContractError(self.adapters[name], "export() wrote no file into the directory; expected some")
        return tuple(names)

    def _loading(self, model: str) -> list[str]:
        """Return how the exported adapters are loaded: a text for all those that share a way of it."""
        alike: dict[object, list[str]] = {}
        for name in sorted({name for stack in self.path for name in self.run.adapters(stack)}):
            alike.setdefault(type(self.adapters[name]).loading, []).append(name)
        texts = (self.adapters[names[0]].loading(names, model) for names in alike.values())
        return [text for text in texts if text]


def refuse_unexportable(run: Path, adapter: Adapter) -> None:
    """See that an adapter can be written for another library.

    Raises:
        UsageError: with the reason why it can't.
    """
    if adapter.unexportable:
        command = f"stackwise merge {shlex.quote(str(run))}"
        instead = "" if adapter.unmergeable else f' "{command}" folds it into the weights of a copy.'
        raise UsageError(f"{run}: {origin(adapter)} can't be exported: {adapter.unexportable}.{instead}")


def refuse_full(directory: Path) -> None:
    """See that nothing is lost by writing a directory.

    Raises:
        UsageError: there is something in it, or it is a file.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        raise UsageError(f"{directory} is there already, and isn't an empty directory. Choose another.")


def has_model(spec: RackSpec, routes: int) -> bool:
    """Whether transformers has a model of a rack that is used along so many routes."""
    return spec.time_encoding is None and spec.ends == "shared" and routes == 1


def _spec(source: SourceRun) -> RackSpec:
    """The rack of a run, as its plan has it.

    Raises:
        UsageError: transformers has no such model.
        StackwiseError: it is no rack's.
    """
    rack: dict[str, Any] = source.rack
    if rack.get("time_encoding") is not None:
        raise UsageError(
            f'{source.path}: its network is told the time (training.time = "input"), and transformers has no such model'
        )
    if rack.get("ends", "shared") == "per_stack":
        raise UsageError(
            f"{source.path}: each of its stacks has an embedding and a head of its own, and transformers has no such "
            "model"
        )
    sizes = [rack.get(key) for key in _SIZES]
    fits = all(type(size) is int and size >= 1 for size in sizes)
    if not fits or rack["d_model"] % rack["n_heads"] or rack["n_heads"] % rack["n_kv_heads"]:
        raise StackwiseError(
            f"{source.path / PLAN}: not the plan of a run: rack has {', '.join(_SIZES)} = {sizes!s:.99}"
        )
    names = {field.name for field in fields(RackSpec)} - {"blocks", "time_fractions", "given"}
    return RackSpec(blocks=source.blocks, **{key: value for key, value in rack.items() if key in names})


def _path(run: RunDirectory, source: SourceRun, spec: RackSpec, depth: int | None) -> tuple[int, ...]:
    """The stacks to export."""
    try:
        routes: Sequence[tuple[int, ...]] = [tuple(map(int, route["path"])) for route in run.read_json(PLAN)["routes"]]
        if not routes or any(stack not in range(spec.stacks) for path in routes for stack in path):
            raise ValueError("no routes")
    except (LookupError, TypeError, ValueError) as error:
        raise StackwiseError(f"{source.path / PLAN}: not the plan of a run: {error}") from None
    if len(routes) > 1:
        raise UsageError(
            f"{source.path}: its stacks serve {len(routes)} bands of mask fractions, each its own, and transformers "
            "has no such model"
        )
    depths = [place for place, stack in enumerate(routes[0], 1) if stack in source.exits]
    if depth is not None and depth not in depths:
        trained = ", ".join(map(str, depths)) or "none"
        raise UsageError(f"--depth {depth}: the head wasn't trained to read there. Of {source.path}: {trained}.")
    return routes[0][:depth]
