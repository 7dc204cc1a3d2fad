"""Safetensors files read by our own hand give what the library gives, and damage is one exception."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stackwise_core.engine.runs.tensor_file import (
    AT_ONCE,
    BLOCK,
    DTYPES,
    DamagedTensors,
    StoredTensor,
    read_header,
    read_tensors,
    stream_tensors,
)
from stackwise_core.system.files import sha256


def same(one, other):
    """Equal names, dtypes, shapes and bits."""
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in one.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in other.items()
    }
    for name, tensor in one.items():
        assert tensor.reshape(-1).view(torch.uint8).equal(other[name].reshape(-1).view(torch.uint8))


def random(dtype, *shape):
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype(dtype, tmp_path):
    """Matrices, scalars and empty tensors come back as the library loads them, bit for bit."""
    path = tmp_path / "some.safetensors"
    tensors = {
        "matrix": random(dtype, 7, 5),
        "scalar": random(dtype),
        "none": random(dtype, 3, 0),
        "one": random(dtype, 1),
    }
    save_file(tensors, path)
    found, digest = read_tensors(path)
    same(found, load_file(path))
    same(found, tensors)
    assert digest == sha256(path)


def test_large_files(tmp_path):
    """A file of several blocks, and a header longer than what is read at first, are whole."""
    path = tmp_path / "some.safetensors"
    save_file(
        {f"{number:0400d}": random(torch.float32, 64, 1024 + number) for number in range(3 * BLOCK // 2**18)}, path
    )
    found, digest = read_tensors(path)
    same(found, load_file(path))
    assert digest == sha256(path)
    with path.open("rb") as file:
        header = read_header(file, path)
    assert min(stored.begin for stored in header.values()) > AT_ONCE
    whole = path.read_bytes()
    for name, stored in header.items():
        assert whole[stored.begin : stored.end] == found[name].numpy().tobytes()


def test_metadata_is_passed_over(tmp_path):
    """A file's own notes are no tensor."""
    path = tmp_path / "some.safetensors"
    save_file({"weight": random(torch.float32, 2)}, path, metadata={"format": "pt"})
    assert set(read_tensors(path)[0]) == {"weight"}


def test_a_file_without_tensors(tmp_path):
    """It is a safetensors file, too."""
    path = tmp_path / "some.safetensors"
    save_file({}, path)
    assert read_tensors(path) == ({}, sha256(path))


def test_tensors_can_be_changed_one_by_one(tmp_path):
    """Writing to one changes neither another nor what autograd holds of another, nor the file."""
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    found, digest = read_tensors(path)
    other = found["b"].requires_grad_()
    loss = (other * other).sum()
    found["a"].zero_()
    loss.backward()
    assert torch.equal(other.grad, torch.full((4,), 2.0))
    assert sha256(path) == digest


def written(path, header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return path


@pytest.mark.parametrize("shift", range(1, 8))
def test_tensors_at_odd_places(shift, tmp_path):
    """A header may be of any length, so that no number is where its dtype would have it."""
    values = torch.arange(3, dtype=torch.float64)
    header = json.dumps({"t": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}).encode()
    path = written(tmp_path / "some.safetensors", header + b" " * shift, values.numpy().tobytes())
    assert torch.equal(read_tensors(path)[0]["t"], values)
    same(read_tensors(path)[0], load_file(path))


def tensor(**changes):
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}


def test_the_harmless_header_is_read(tmp_path):
    """The header that the hostile ones were made from is right: they are refused for what was changed."""
    path = written(tmp_path / "some.safetensors", {"t": tensor()}, bytes(16))
    with path.open("rb") as file:
        begin = path.stat().st_size - 16
        assert read_header(file, path) == {"t": StoredTensor(torch.float32, (2, 2), begin, begin + 16)}


HOSTILE = {
    "empty": b"",
    "not JSON": b"{" * 40,
    "not UTF-8": b"\xff\xfe" * 20,
    "UTF-16": '{"t": 1}'.encode("utf-16"),
    "deep": b"[" * 60_000,
    "a list": [1, 2],
    "a list for a tensor": {"t": [1]},
    "null": {"t": None},
    "unknown dtype": {"t": tensor(dtype="F33")},
    "list for a dtype": {"t": tensor(dtype=["F32"])},
    "no shape": {"t": {"dtype": "F32", "data_offsets": [0, 16]}},
    "text for a shape": {"t": tensor(shape="22")},
    "float shape": {"t": tensor(shape=[2.0, 2])},
    "true for a number": {"t": tensor(shape=[True, 4])},
    "negative shape": {"t": tensor(shape=[-2, -2])},
    "another shape": {"t": tensor(shape=[2, 3])},
    "overflowing shape": {"t": tensor(shape=[2**62 + 1, 4])},
    "endless shape of none": {"none": tensor(shape=[0, 2**64], data_offsets=[0, 0]), "t": tensor()},
    "huge number": b'{"t": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 16]}}',
    "negative offsets": {"t": tensor(data_offsets=[-16, 0])},
    "float offsets": {"t": tensor(data_offsets=[0.0, 16.0])},
    "NaN": {"t": tensor(data_offsets=[float("nan"), 16])},
    "one offset": {"t": tensor(data_offsets=[16])},
    "reversed offsets": {"t": tensor(data_offsets=[16, 0])},
    "outside": {"t": tensor(data_offsets=[16, 32])},
    "far outside": {"t": tensor(data_offsets=[10**30, 10**30 + 16])},
    "overlapping": {"t": tensor(), "u": tensor()},
    "a hole": {"t": tensor(dtype="U8", data_offsets=[0, 4]), "u": tensor(dtype="U8", data_offsets=[12, 16])},
    "bytes left over": {"t": tensor(dtype="U8", data_offsets=[0, 4])},
}


def refused(path):
    """Both ways to read the file raise DamagedTensors, which names it."""
    with pytest.raises(DamagedTensors, match=path.name):
        read_tensors(path)
    with path.open("rb") as file, pytest.raises(DamagedTensors, match=path.name):
        read_header(file, path)


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(what, tmp_path):
    """Whatever a header says, it is refused with one exception; the library refuses it, too."""
    path = written(tmp_path / "bad.safetensors", HOSTILE[what], bytes(16))
    refused(path)
    with pytest.raises((SafetensorError, RuntimeError)):
        load_file(path)


def test_endless_shapes_of_nothing(tmp_path):
    """torch computes no strides for as many numbers, though none of them is there."""
    refused(written(tmp_path / "bad.safetensors", {"t": tensor(shape=[0, 2**59, 2**59], data_offsets=[0, 0])}))


@pytest.mark.parametrize("length", [0, 40, 100_000_001, 2**31, 2**40, 2**63, 2**64 - 1])
def test_hostile_lengths(length, tmp_path):
    """No memory is taken for a header that the file can't hold."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(16))
    refused(path)


def test_truncated_files(tmp_path):
    """A file cut anywhere, or with a byte too many, is refused."""
    path = tmp_path / "bad.safetensors"
    save_file({"a": random(torch.float32, 3, 4), "b": random(torch.int64)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_a_file_that_is_not_there(tmp_path):
    """It is missing and not damaged."""
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "no.safetensors")


def test_a_stream_of_tensors_is_a_file_that_others_read(tmp_path):
    """In another number format, with texts in its header; what comes after its shapes is left for the next file."""
    sizes = {"b": (3, 5), "a": (7,), "none": (0, 2), "next": (1,)}
    tensors = {name: torch.randn(shape) for name, shape in sizes.items()}
    shapes = {name: tuple(tensors[name].shape) for name in ("b", "a", "none")}
    stream = iter(tensors.items())
    stream_tensors(tmp_path / "file", shapes, stream, dtype=torch.bfloat16, metadata={"who": "a test"})
    assert [name for name, _ in stream] == ["next"]
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "who": "a test"}
        assert set(file.keys()) == shapes.keys()
        for name in shapes:
            assert torch.equal(file.get_tensor(name), tensors[name].bfloat16())
    with pytest.raises(AssertionError, match=r"next torch\.Size\(\[1\]\) for a \(7,\)"):
        stream_tensors(tmp_path / "other", {"a": (7,)}, iter([("next", tensors["next"])]))
