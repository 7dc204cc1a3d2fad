"""Contract of every checkpoint format."""

from __future__ import annotations

import hashlib
import json
import math
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.config.source_checkpoint import SourceCheckpoint, read_checkpoint
from stackwise_core.config.source_vocabulary import BYTES
from stackwise_core.config.tokenizer_json import MASK, PAD, SpecialIds, Vocabulary, read_vocabulary
from stackwise_core.engine.tokenizer.exported_tokenizer import exported_tokenizer
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.interfaces.checkpoint_format import EMBEDDING, CheckpointFormat, ExportedRack, Written
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.testing.fresh import heavy_imports

RUN_FILES = ("config.toml", "plan.json", "manifest.json", "embedding.safetensors")


def _rack(**changes: object) -> RackSpec:
    sizes = {"vocab_size": 260, "seq_len": 12, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 24}
    return RackSpec(**{"blocks": (1, 2), **sizes, **changes})  # type: ignore[arg-type]


RACKS = {
    "tied": _rack(),
    "a head of its own": _rack(tie_embeddings=False, n_kv_heads=2),
    "causal": _rack(attention="causal", blocks=(1,), rope_theta=5000.0, norm_eps=1e-6),
}


@frozen
class Saved:
    """A rack that a format has written."""

    directory: Path
    rack: ExportedRack
    weights: Mapping[str, Tensor]
    written: Written
    most_held: int
    """Tensors that were alive when another one was made."""


def save(format: CheckpointFormat, spec: RackSpec, directory: Path) -> Saved:
    """Have a format write a rack of random weights and the tokenizer of bytes."""
    rack = ExportedRack(name="model", spec=spec)
    assert not format.refuses(rack)
    weights = {name: _random(name, shape) for name, shape in rack.shapes.items()}
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for name, tensor in weights.items():
            most = max(most, sum(each() is not None for each in alive))
            made = tensor.clone()
            alive.append(weakref.ref(made))
            yield name, made
            del made

    directory.mkdir(parents=True)
    tokenizer = exported_tokenizer(BYTES, load_tokenizer(BYTES, mask_token=None))
    written = format.write(rack, tensors(), tokenizer, directory)
    return Saved(directory, rack, weights, written, most)


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _filled(format: CheckpointFormat, source: SourceCheckpoint, name: str) -> Tensor:
    into = torch.full(source.described.shapes[name], math.nan)
    format.read(source.path, source.described, name, into)
    return into


def _contents(directory: Path) -> dict[str, bytes]:
    files = (file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


class CheckpointFormatContract:
    """Subclass it and provide the fixture ``format``, with options under which fp32 is written without loss."""

    racks: Mapping[str, RackSpec] = RACKS
    """Racks that the format can hold; a format for some only names its own."""

    @pytest.fixture
    def format(self) -> CheckpointFormat:
        """The format to test."""
        raise NotImplementedError("the subclass provides the fixture `format`")

    @pytest.fixture
    def saved(self, format: CheckpointFormat, tmp_path: Path) -> dict[str, Saved]:
        """Each of the racks, written by the format."""
        return {name: save(format, spec, tmp_path / name / "model") for name, spec in self.racks.items()}

    def test_it_recognises_its_own_and_nothing_else(
        self, format: CheckpointFormat, saved: dict[str, Saved], tmp_path: Path
    ) -> None:
        """It recognises what it wrote, but no empty directory, no run's, and none with a text in it."""
        for each in saved.values():
            assert format.recognises(each.directory)
        for name, files in {"empty": (), "run": RUN_FILES, "text": ("README.md", "notes.txt")}.items():
            (tmp_path / name).mkdir()
            for file in files:
                (tmp_path / name / file).write_text("{}")
            assert not format.recognises(tmp_path / name), name

    def test_what_was_written_is_described(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """Shape, blocks and title, and files that are there; nothing is said against it."""
        for name, each in saved.items():
            described = format.describe(each.directory)
            found = {key: getattr(described, key) for key in each.rack.described}
            assert found == each.rack.described, name
            assert described.title.strip()
            assert described.files
            assert all((each.directory / file).is_file() for file in described.files)
            assert described.refusals == ()

    def test_tokens_keep_their_ids(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """Mask and padding too, wherever the format keeps them."""
        for each in saved.values():
            described = read_checkpoint(each.directory, format).described
            if described.tokenizer == BYTES:
                continue
            vocabulary: Vocabulary = read_vocabulary(Path(described.tokenizer))
            assert [vocabulary.ids[character] for character in ("a", "z", "Ġ")] == [97, 122, 32]
            special = SpecialIds.of(vocabulary, None, described.special_ids)
            assert (special.mask, special.pad) == (256, 257), (MASK, PAD)

    def test_weights_come_back_to_the_bit(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """Each by itself, in any order, more than once; the core's own check of the directory passes as well."""
        for rack, each in saved.items():
            source = read_checkpoint(each.directory, format)
            assert list(source.described.shapes) == list(each.weights), rack
            for name in [*reversed(list(each.weights)), *each.weights]:
                assert torch.equal(_filled(format, source, name), each.weights[name]), name

    def test_a_tensor_fills_a_part_of_another(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """An embedding gets rows beyond the checkpoint's, which ``read`` leaves alone."""
        each = next(iter(saved.values()))
        source = read_checkpoint(each.directory, format)
        rows = torch.full((source.rows + 3, source.described.d_model), math.nan)
        format.read(each.directory, source.described, EMBEDDING, rows[: source.rows])
        assert torch.equal(rows[: source.rows], each.weights[EMBEDDING])
        assert rows[source.rows :].isnan().all()

    def test_tensors_are_not_collected(self, saved: dict[str, Saved]) -> None:
        """At most one tensor is held when the next is asked for: the whole model is never in memory."""
        assert max(each.most_held for each in saved.values()) <= 1

    def test_only_its_directory_is_written(self, saved: dict[str, Saved]) -> None:
        """Nothing beside it, and nothing that hasn't been published."""
        for each in saved.values():
            assert list(each.directory.parent.iterdir()) == [each.directory]
            assert _contents(each.directory)

    def test_reading_changes_nothing(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """A checkpoint is somebody else's."""
        for each in saved.values():
            before = _contents(each.directory)
            source = read_checkpoint(each.directory, format)
            for name in source.described.shapes:
                _filled(format, source, name)
            assert _contents(each.directory) == before

    def test_damage_is_no_other_model(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """A file that is cut short is an error, where it matters at all."""
        each = next(iter(saved.values()))
        for name, content in _contents(each.directory).items():
            (each.directory / name).write_bytes(content[: len(content) // 2])
            try:
                source = read_checkpoint(each.directory, format)
                read = {name: _filled(format, source, name) for name in source.described.shapes}
            except Exception:
                read = dict(each.weights)
            (each.directory / name).write_bytes(content)
            assert read.keys() == each.weights.keys(), name
            assert all(torch.equal(read[key], each.weights[key]) for key in read), name

    def test_what_was_written_is_said(self, saved: dict[str, Saved]) -> None:
        """The record of an export has a title, a number format, single lines and JSON values."""
        for each in saved.values():
            assert isinstance(each.written, Written)
            assert each.written.title.strip()
            assert each.written.numbers.strip()
            assert all(len(note.splitlines()) == 1 for note in each.written.notes)
            json.dumps(dict(each.written.facts))

    def test_describing_needs_no_torch(self, format: CheckpointFormat, saved: dict[str, Saved]) -> None:
        """``stackwise check`` describes a checkpoint without torch, in a process of its own."""
        made, options = type(format), format.options
        names = {each.__qualname__: each.__module__ for each in (made, type(options))}
        directory = str(next(iter(saved.values())).directory)
        lines = [f"from {module} import {name}" for name, module in names.items() if module != "builtins"]
        values = f"{type(options).__qualname__}(**{_plain(options)!r})" if attrs.has(type(options)) else "None"
        lines += [
            "from pathlib import Path",
            f"format = {made.__qualname__}({values})",
            f"assert format.recognises(Path({directory!r}))",
            f"format.describe(Path({directory!r}))",
        ]
        assert heavy_imports("\n".join(lines), ("torch", "transformers")) == []


def _plain(options: attrs.AttrsInstance) -> dict[str, object]:
    """Return the values of options, a size as the number that it is."""
    return {
        key: int(value) if isinstance(value, int) and type(value) is not bool else value
        for key, value in attrs.asdict(options).items()
    }
