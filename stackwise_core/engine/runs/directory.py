"""A run's directory: what it was asked to do, where it ran, its weights, and a checksum of each file.

runs/NAME/
  config.toml  plan.json  environment.json
  embedding.safetensors  head.safetensors  stacks/000.safetensors ...   full-precision masters
  stacks/000.embedding.safetensors  stacks/000.head.safetensors ...     where each stack has its own
  adapters/000/NAME/...   the files of a stack's adapter, as its implementation calls them
  trunk/000.safetensors ...   frozen stacks at a precision that quantises, made from the masters
  tokenizer.json  plugins/my_plugin.py  copies of the files that data.tokenizer and run.plugins name
  progress.json     each phase's measurements, written with its weights
  finished.json     written after the last phase
  resume/           the last checkpoints within a phase
  moments/          the optimizer's state between phases, where it is kept
  manifest.json     size and SHA-256 of each of these
  metrics.jsonl     grows during the run, so it is in no manifest
  offload/          training state of a streamed phase, deleted when it is done
  cache/            boundaries, deleted when they are no longer needed
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from stackwise_core.engine.runs.tensor_file import DamagedTensors, join_tensor_files, read_tensors, write_tensors
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import (
    ADAPTERS,
    CACHE,
    METRICS,
    OFFLOAD,
    RESUME,
    STACKS,
    TRUNK,
    adapters_folder,
    checkpoint_entry,
    embedding_file,
    head_file,
    prepared_file,
    rack_file,
    stack_file,
)
from stackwise_core.system.hashed_file import copy_hashed
from stackwise_core.system.lacking_calls import LOCK

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(?<!\.new)(?<!\.tmp)")
"""Names of files that an adapter may have; a file that is being written ends with .new or .tmp."""


class Busy(StackwiseError):
    """Refusal of a run that another process is working on."""


class RunDirectory:
    """Reader and writer of one run's files; every file in the manifest is whole and as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest(path)

    @classmethod
    def create(cls, parent: Path, name: str) -> RunDirectory:
        """Make a directory of this name; if it exists, ``NAME-2``, ``NAME-3``, and so on."""
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return cls(path)

    @property
    def metrics(self) -> Path:
        """The file that measurements are appended to."""
        return self.path / METRICS

    @property
    def offload(self) -> Path:
        """The directory of training state that is changing; checkpoints are whole without it."""
        return self.path / OFFLOAD

    @property
    def cache(self) -> Path:
        """The directory of the boundaries' stores."""
        return self.path / CACHE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here meanwhile; a process that ends, however it ends, holds no lock.

        Raises:
            Busy: another one is writing.
        """
        directory = os.open(self.path, os.O_RDONLY)
        try:
            try:
                with LOCK.where_there_is(self.path):
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{self.path}: another process is working on this run.") from None
            self.manifest = Manifest(self.path)  # another may have written since it was read
            yield
        finally:
            os.close(directory)

    def clear(self, keep: Collection[Path] = ()) -> None:
        """Delete everything but boundaries, which are found by their content's name.

        Args:
            keep: files that stay as well, wherever they are; the manifest tells of none of them.
        """
        kept = {path.resolve() for path in keep}
        for entry in self.path.iterdir():
            if entry.name != CACHE or not entry.is_dir() or entry.is_symlink():
                _delete(entry, kept)
        self.manifest = Manifest(self.path)

    def together(self) -> AbstractContextManager[None]:
        """Make what is written within it count at its end, all of it or nothing."""
        return self.manifest.together()

    def write_text(self, name: str, text: str, **about: Any) -> None:
        """Write a text file; ``about`` is kept in the manifest."""

        def fill(beside: Path) -> None:
            beside.write_text(text, encoding="utf-8")

        self.manifest.write(name, fill, **about)

    def read_text(self, name: str) -> str:
        """Read a text file, after checking it.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        return self.manifest.checked(name).read_text(encoding="utf-8")

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file, after checking it.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        try:
            return json.loads(self.read_text(name))
        except (ValueError, RecursionError) as error:
            raise StackwiseError(f"{self.path / name}: not JSON: {error!s:.200}") from error

    def copy(self, name: str, source: RunDirectory) -> None:
        """Copy a file of another run, after checking it.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        path, entry = source.manifest.present(name), source.manifest.about(name)
        about = {key: value for key, value in entry.items() if key not in ("bytes", "sha256")}

        def fill(beside: Path) -> str:
            digest = copy_hashed(path, beside)
            source.manifest.compare(name, digest)
            return digest

        self.manifest.write_hashed(name, fill, **about)

    def copy_in(self, name: str, source: Path, **about: Any) -> None:
        """Copy a file from elsewhere; ``about`` is kept in the manifest."""
        self.manifest.write_hashed(name, lambda beside: copy_hashed(source, beside), **about)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], **about: Any) -> None:
        """Write a safetensors file; ``about`` is kept in the manifest."""
        self.manifest.write_hashed(name, lambda beside: write_tensors(tensors, beside), **about)

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file, after checking it.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        path = self.manifest.present(name)
        try:
            tensors, digest = read_tensors(path)
        except DamagedTensors as error:
            self.manifest.checked(name)
            raise StackwiseError(f"not a safetensors file: {error}") from error
        self.manifest.compare(name, digest)
        return tensors

    def read_ends(self, spec: RackSpec) -> dict[int | None, dict[str, Tensor]]:
        """Read embeddings and heads by the stack that owns them; None: those that all stacks share.

        Raises:
            StackwiseError: a file is missing, or isn't what was written.
        """
        ends: dict[int | None, dict[str, Tensor]] = {}
        for owner in range(spec.stacks) if spec.ends == "per_stack" else (None,):
            ends[owner] = self.read_tensors(embedding_file(owner))
            if not spec.tie_embeddings:
                ends[owner] |= self.read_tensors(head_file(owner))
        return ends

    def read_ends_of(self, owner: int | None) -> dict[str, Tensor] | None:
        """Read a stack's own embedding and head, or those that all share; None where none were written.

        Raises:
            StackwiseError: a file isn't what was written.
        """
        files = [name for name in (embedding_file(owner), head_file(owner)) if self.has(name)]
        return {key: each for name in files for key, each in self.read_tensors(name).items()} if files else None

    def has(self, name: str) -> bool:
        """Return whether a file was written."""
        return name in self.manifest

    def has_stack(self, index: int) -> bool:
        """Return whether a stack's weights were written."""
        return self.has(stack_file(index))

    def write_stack(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a stack's full-precision weights."""
        self.write_tensors(stack_file(index), tensors)

    def read_stack(self, index: int) -> dict[str, Tensor]:
        """Read a stack's full-precision weights, after checking them."""
        return self.read_tensors(stack_file(index))

    def stack_bytes(self, index: int) -> int:
        """Return the size of the file of a stack's masters, in bytes."""
        size: int = self.manifest.about(stack_file(index))["bytes"]
        return size

    def write_prepared(self, index: int, precision: object, tensors: Mapping[str, Tensor]) -> None:
        """Keep a frozen stack as a precision (a JSON value) holds it, made from the masters as they are now."""
        master = self.manifest.about(stack_file(index))["sha256"]
        self.write_tensors(prepared_file(index), tensors, precision=precision, master=master)

    def read_prepared(self, index: int, precision: object) -> dict[str, Tensor] | None:
        """Read a frozen stack as a precision holds it; None where that isn't kept, or the masters are others now.

        Raises:
            StackwiseError: it isn't what was written.
        """
        name = prepared_file(index)
        if name not in self.manifest or not self.manifest.where(name).is_file():
            return None
        about, master = self.manifest.about(name), self.manifest.about(stack_file(index))["sha256"]
        if (about.get("precision"), about.get("master")) != (precision, master):
            return None
        try:
            return self.read_tensors(name)
        except StackwiseError as error:
            again = f"Delete the file, and it is made again from {stack_file(index)}."
            raise StackwiseError(f"{error} {again}") from error

    def write_rack(self, number: int) -> None:
        """Write ends, stacks and adapters as they are now into one file, the number-th.

        Its names are those of the files' tensors; what belongs to a stack has ``stacks.3.`` or ``adapters.3.NAME.``
        before it. Of an adapter's files those of safetensors are in it; where it has several, ``FILE.`` comes next.

        Raises:
            StackwiseError: a file is missing, or isn't what was written.
        """
        prefixes = {name: prefix for name in self.manifest if (prefix := _prefix(PurePosixPath(name))) is not None}
        files = Counter(prefix for name, prefix in prefixes.items() if name.startswith(f"{ADAPTERS}/"))
        for name, prefix in prefixes.items():
            if files[prefix] > 1:
                folder = "/".join(name.split("/")[:3]) + "/"
                prefixes[name] = f"{prefix}{name.removeprefix(folder).removesuffix('.safetensors')}."
        parts = [(prefix, self.manifest.checked(name)) for name, prefix in prefixes.items()]
        self.manifest.write_hashed(rack_file(number), lambda beside: join_tensor_files(parts, beside))

    def drop_weights(self) -> None:
        """Delete ends, stacks and adapters, and the files made of them."""
        with self.together():
            for name in self.manifest:
                path = PurePosixPath(name)
                if path.parts[0] in (ADAPTERS, TRUNK) or _prefix(path) is not None:
                    self.manifest.drop(name)

    def write_checkpoint(self, name: str, said: object, tensors: Mapping[str, Tensor]) -> None:
        """Keep a state within a phase, a JSON value and tensors, under a plain name."""
        with self.together():
            self.write_json(f"{RESUME}/{name}.json", said)
            self.write_tensors(f"{RESUME}/{name}.safetensors", tensors)

    def read_checkpoint(self, name: str) -> tuple[Any, dict[str, Tensor]]:
        """Read a state within a phase, after checking it.

        Raises:
            StackwiseError: a file of it is missing, or isn't what was written.
        """
        return self.read_json(f"{RESUME}/{name}.json"), self.read_tensors(f"{RESUME}/{name}.safetensors")

    def checkpoints(self) -> list[str]:
        """List the names of the states within a phase, in alphabetical order."""
        paths = (PurePosixPath(name) for name in self.manifest)
        return sorted(path.stem for path in paths if path.parts[0] == RESUME and path.suffix == ".json")

    def write_checkpoint_entry(self, name: str, entry: str, fill: Callable[[Path], object]) -> None:
        """Let ``fill`` write a safetensors file that belongs to a state within a phase."""
        self.manifest.write(checkpoint_entry(name, entry), fill)

    def checkpoint_entry(self, name: str, entry: str) -> Path:
        """Return the path of a file that belongs to a state within a phase."""
        return self.manifest.where(checkpoint_entry(name, entry))

    def checked_checkpoint_entry(self, name: str, entry: str) -> Path:
        """Return the same, once it was checked.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        return self.manifest.checked(checkpoint_entry(name, entry))

    def drop_checkpoint(self, name: str) -> None:
        """Delete a state within a phase."""
        with self.together():
            for file in self.manifest:
                if file.startswith((f"{RESUME}/{name}.", f"{RESUME}/{name}/")):
                    self.manifest.drop(file)

    def adapters(self, index: int) -> list[str]:
        """List the names of the adapters that a stack has."""
        folder = adapters_folder(index)
        return sorted({name.split("/")[2] for name in self.manifest if name.startswith(folder)})

    def checksums(self, index: int) -> dict[str, str]:
        """Return the SHA-256 of a stack's masters and of its adapters' files, by name."""
        folder = adapters_folder(index)
        names = [name for name in self.manifest if name == stack_file(index) or name.startswith(folder)]
        return {name: self.manifest.about(name)["sha256"] for name in names}

    def write_adapter(self, index: int, name: str, save: Callable[[Path], None]) -> None:
        """Let ``save`` write an adapter's files into a directory, and keep them in place of those that it had.

        Raises:
            ContractError: it wrote no file, or one that can't be kept.
        """
        folder = f"{adapters_folder(index)}{name}/"
        with tempfile.TemporaryDirectory() as scratch, self.together():
            save(Path(scratch))
            files = _files_in(Path(scratch), f'adapter "{name}"')
            for file in self._adapter_files(index, name):
                if file.removeprefix(folder) not in files:
                    self.manifest.drop(file)
            for file, written in files.items():
                self.copy_in(folder + file, written)

    def adapter(self, index: int, name: str) -> Path:
        """Return the directory of an adapter, after checking its files.

        Raises:
            StackwiseError: one is missing, or isn't what was written.
        """
        directory = self.path / f"{adapters_folder(index)}{name}"
        files = self._adapter_files(index, name)
        if not files:
            raise StackwiseError(f"{directory}: the run hasn't written it.")
        for file in files:
            self.manifest.checked(file)
        return directory

    def drop_adapter(self, index: int, name: str) -> None:
        """Delete an adapter."""
        with self.together():
            for file in self._adapter_files(index, name):
                self.manifest.drop(file)

    def _adapter_files(self, index: int, name: str) -> list[str]:
        folder = f"{adapters_folder(index)}{name}/"
        return [file for file in self.manifest if file.startswith(folder)]


def _files_in(scratch: Path, whose: str) -> dict[str, Path]:
    """List the files that an adapter wrote, by their names relative to the directory.

    Args:
        whose: the adapter, for messages.

    Raises:
        ContractError: there are none, or not only plain files with plain names.
    """
    files = {}
    for path in sorted(scratch.rglob("*")):
        name = path.relative_to(scratch)
        plain = all(map(_PLAIN_NAME.fullmatch, name.parts)) and (path.is_file() or path.is_dir())
        if path.is_symlink() or not plain:
            raise ContractError(
                whose, f"save() wrote {str(name)!r:.99}; expected files whose names are letters, digits, _, - and ."
            )
        if path.is_file():
            files[name.as_posix()] = path
    if not files:
        raise ContractError(whose, "save() wrote no file into the directory; expected some")
    return files


def _prefix(path: PurePosixPath) -> str | None:
    """Return the prefix of a file's weights in a rack's one file; None where the file holds none."""
    if path.suffix != ".safetensors":
        return None
    if path.parts[0] == ADAPTERS:
        return f"adapters.{int(path.parts[1])}.{path.parts[2]}."
    if path.parts[0] == STACKS:
        return f"stacks.{int(path.name.partition('.')[0])}."
    return "" if len(path.parts) == 1 else None


def _delete(entry: Path, kept: Collection[Path]) -> None:
    """Delete a file, or a folder with what is in it, but for files that are kept, and the folders that they are in."""
    if not entry.is_dir() or entry.is_symlink():
        if entry.resolve() not in kept:
            entry.unlink()
        return
    for each in entry.iterdir():
        _delete(each, kept)
    if not any(entry.iterdir()):
        entry.rmdir()
