"""A finished run's rack, written in the format of another program."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from attrs import evolve, frozen
from torch import Tensor

from stackwise_core.config.source_run import SourceRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.tokenizer.exported_tokenizer import exported_tokenizer
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.engine.weights.ending import check_rack
from stackwise_core.errors import StackwiseError, UsageError, is_out_of_memory
from stackwise_core.interfaces.adapter import Adapter, SavedAdapter
from stackwise_core.interfaces.checkpoint_format import (
    EMBEDDING,
    HEAD,
    NORM,
    CheckpointFormat,
    ExportedRack,
    Written,
    block_shapes,
)
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.registry.foreign_code import foreign_code
from stackwise_core.run_files.names import PLAN, embedding_file, head_file
from stackwise_core.system.files import is_abandoned, sync, unfinished


@frozen
class Exported:
    """A rack that was written."""

    directory: Path
    stacks: int
    blocks: int
    parameters: int
    files: tuple[str, ...]
    """Names in the directory itself."""
    adapters: tuple[str, ...]
    """Names of adapters, each in ``adapters/NAME``."""
    written: Written


@frozen
class Export:
    """The part of a run that is to be exported."""

    run: RunDirectory
    spec: RackSpec
    path: tuple[int, ...]
    """The stacks, in order."""
    tokenizer: Tokenizer
    named: str
    """The tokenizer as ``data.tokenizer`` has it."""
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
        depth: int | None = None,
    ) -> Export:
        """Check a finished run; nothing is written.

        Args:
            adapters: by name, what makes each adapter that the run's configuration has.
            depth: how many stacks; None: all of them.

        Raises:
            UsageError: no checkpoint holds such a rack, the depth was never trained, the tokenizer is another one, or
                an adapter can't be exported.
            StackwiseError: the plan is damaged, or a file with weights is missing, cut short or of another rack.
        """
        run = RunDirectory(source.path)
        run.manifest.checked(PLAN)
        if tokenizer.fingerprint.hex() != source.tokenizer:
            raise UsageError(
                f"{source.path}: its tokenizer isn't the one that it was trained with; was {named} changed?"
            )
        spec = _spec(source)
        path = _path(source, depth)
        check_rack(run, spec, adapters)
        for stack in path:
            for name in run.adapters(stack):
                refuse_unexportable(run.path, adapters[name])
        return cls(run, spec, path, tokenizer, named, adapters)

    def write(self, format: CheckpointFormat, directory: Path) -> Exported:
        """Write the export into a new or empty directory, completely or not at all.

        Raises:
            UsageError: there is something in the directory, or the format can't hold the rack.
            StackwiseError: a file of the run is damaged, or the format failed.
            OSError: a file can't be written.
        """
        whole = Path(os.path.realpath(directory))
        refuse_full(whole)
        tokenizer = exported_tokenizer(self.named, self.tokenizer)
        rack = self._rack(whole.name, format)
        whole.parent.mkdir(parents=True, exist_ok=True)
        for left in whole.parent.iterdir():
            if left.name.startswith(f".{whole.name}.") and is_abandoned(left.name):  # a killed export's
                shutil.rmtree(left, ignore_errors=True)
        beside = unfinished(whole)
        try:
            beside.mkdir()
            written = _written(format, lambda: format.write(rack, self._tensors(), tokenizer, beside))
            self._write_adapters(rack, beside)
            files = tuple(sorted(file.name for file in beside.iterdir() if file.is_file()))
            for each in beside.rglob("*"):
                sync(each)
            os.replace(beside, whole)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(whole.parent)
        parameters = sum(torch.Size(shape).numel() for shape in rack.shapes.values())
        return Exported(directory, len(self.path), rack.blocks, parameters, files, rack.adapters, written)

    def _rack(self, name: str, format: CheckpointFormat) -> ExportedRack:
        """Return the rack's description for a format.

        Raises:
            UsageError: it can't hold it.
        """
        names = tuple(sorted({name for stack in self.path for name in self.run.adapters(stack)}))
        if names and not format.holds_adapters:
            command = f"stackwise merge {shlex.quote(str(self.run.path))}"
            raise UsageError(
                f"{self.run.path} has adapters beside its weights, and {origin(format)} has no place for them. "
                f'"{command}" folds them into the weights of a copy.'
            )
        sizes = tuple(self.spec.blocks[stack] for stack in self.path)
        loading = tuple(self._loading(names, name))
        rack = ExportedRack(name=name, spec=evolve(self.spec, blocks=sizes), adapters=names, loading=loading)
        with foreign_code():
            reason = format.refuses(rack)
        if reason:
            raise UsageError(reason)
        return rack

    def _loading(self, names: Sequence[str], model: str) -> Iterator[str]:
        """Yield how the exported adapters are loaded: a text for all those that share a way of it."""
        alike: dict[object, list[str]] = {}
        for name in names:
            alike.setdefault(type(self.adapters[name]).loading, []).append(name)
        for same in alike.values():
            if text := self.adapters[same[0]].loading(same, model):
                yield text

    def _write_adapters(self, rack: ExportedRack, directory: Path) -> None:
        """Write each adapter of the stacks into a directory of its own."""
        first = dict(zip(self.path, accumulate(rack.spec.blocks, initial=0), strict=False))
        for name in rack.adapters:
            own = [
                SavedAdapter(self.run.adapter(stack, name), first[stack], self.spec.blocks[stack])
                for stack in self.path
                if name in self.run.adapters(stack)
            ]
            into = directory / "adapters" / name
            into.mkdir(parents=True)
            self.adapters[name].export(own, rack.blocks, into)
            if not any(into.iterdir()):
                raise ContractError(self.adapters[name], "export() wrote no file into the directory; expected some")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all weights in the order of ``ExportedRack.shapes``; one stack is read at a time."""
        yield EMBEDDING, self.run.read_tensors(embedding_file(None))[EMBEDDING]
        layer, names = 0, list(block_shapes(self.spec))
        for stack in self.path:
            tensors, blocks = self.run.read_stack(stack), self.spec.blocks[stack]
            # Tensors of a file share its pages: what is still held while the next stack is read has its own.
            for held in (NORM, f"layers.{blocks - 1}.{names[-1]}"):
                tensors[held] = tensors[held].clone()
            for place in range(blocks):
                for name in names:
                    yield f"layers.{layer}.{name}", tensors.pop(f"layers.{place}.{name}")
                layer += 1
            norm = tensors.pop(NORM)
        yield NORM, norm
        if not self.spec.tie_embeddings:
            yield HEAD, self.run.read_tensors(head_file(None))[HEAD]


def _written(format: CheckpointFormat, write: Callable[[], Written]) -> Written:
    """Let a format write, and name it in the errors that it raises."""
    try:
        with foreign_code():
            written = write()
    except (StackwiseError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise StackwiseError(f"{origin(format)} failed to write: {type(error).__name__}: {error!s:.300}") from error
    if not isinstance(written, Written):
        raise ContractError(format, f"write() gave {written!r:.80}, a Written was expected")
    return written


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
    """Refuse to write into a directory that has contents, so that nothing is lost.

    Raises:
        UsageError: there is something in it, or it is a file.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        raise UsageError(f"{directory} is there already, and isn't an empty directory. Choose another.")


def is_one_model(spec: RackSpec, routes: int) -> bool:
    """Return whether a rack that is used along so many routes is a model that a checkpoint can hold."""
    return spec.time_encoding is None and spec.ends == "shared" and routes == 1


def _spec(source: SourceRun) -> RackSpec:
    """Return the rack of a run as a checkpoint holds it.

    Raises:
        UsageError: no checkpoint holds such a rack.
    """
    spec = source.plan.rack.spec
    if spec.time_encoding is not None:
        raise UsageError(
            f'{source.path}: its network is told the time (training.time = "input"), and no other program has such '
            "a model"
        )
    if spec.ends == "per_stack":
        raise UsageError(
            f"{source.path}: each of its stacks has an embedding and a head of its own, and no other program has such "
            "a model"
        )
    return evolve(spec, time_fractions=(), given=frozenset())


def _path(source: SourceRun, depth: int | None) -> tuple[int, ...]:
    """Return the stacks to export.

    Raises:
        UsageError: there are several models in the rack, or the head wasn't trained to read at this depth.
    """
    routes = source.plan.routes
    if len(routes) > 1:
        raise UsageError(
            f"{source.path}: its stacks serve {len(routes)} bands of mask fractions, each its own, and no other "
            "program has such a model"
        )
    path = routes[0].path
    depths = [place for place, stack in enumerate(path, 1) if stack in source.exits]
    if depth is not None and depth not in depths:
        trained = ", ".join(map(str, depths)) or "none"
        raise UsageError(f"--depth {depth}: the head wasn't trained to read there. Of {source.path}: {trained}.")
    return path[:depth]
