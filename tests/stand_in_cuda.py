"""A CUDA device made of the CPU, for machines that have none: where tensors are counts, and how many bytes they take.

Its tensors say that they are on ``cuda:0``. Each wraps a tensor on the CPU that computes, so that numbers are real. An
operation over tensors of both devices is refused as CUDA does it, and so is ``numpy()``, and what isn't deterministic
there where that is asked for. What needs a device it can't show: kernels, streams, speed.

Where torch was built without CUDA it has no kernel for it; a boxed fallback for the dispatch key gives one for all, in
every thread. Autograd wants a device with streams, which is in stand_in_cuda.cpp: a compiler must be there.
"""

# ruff: noqa: E402 - the device has to be there before torch is
from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def _load_device() -> None:
    """Compile and load the device; torch asks once, when it is imported, which one there is."""
    root = Path(str(find_spec("torch").submodule_search_locations[0]))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "device.so")
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}"]
        command += [str(Path(__file__).with_suffix(".cpp")), "-o", str(library), f"-L{root / 'lib'}"]
        subprocess.run([*command, "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"], check=True)
        ctypes.CDLL(str(library))


_load_device()

import torch
import torch._inductor.config  # reads what there is in torch.cuda, which must be its own then
from torch.utils._pytree import tree_map

from tests.stand_in_attention import KERNELS

DEVICE = torch.device("cuda", 0)
CAPACITY = 64 << 30
"""Bytes that the device says it has."""
GRAIN = 512
"""Bytes that torch's caching allocator rounds a tensor up to (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""
ANY_DEVICE = {"copy_", "_to_copy", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take tensors of both devices: copies, and indices, which CUDA copies to the device (and waits)."""

NOT_DETERMINISTIC = {"bincount", "cumsum", "histc", "median", "put_"}
"""Operations on floats that CUDA refuses under ``torch.use_deterministic_algorithms(True)``, of those that its
docstring lists as what throws an error; none of convolutions, of pooling or of padding."""


class Allocated:
    """Bytes of the device's storages, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it is known, until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known and self._known[key]() is storage:
            return
        size = -(-storage.nbytes() // GRAIN) * GRAIN

        def freed(_: object) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.most = max(self.most, self.now)


class StandIn:
    """The device: its kernels, and the bytes of its tensors."""

    kernels: torch.library.Library
    allocated = Allocated()


class CudaTensor(torch.Tensor):
    """A tensor that says it is on CUDA."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> CudaTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        StandIn.allocated.add(held)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """By this a module's ``to`` knows that its parameters are to be replaced, not written to."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: object) -> CudaTensor:
        return CudaTensor(inner["held"])

    def __repr__(self, **_: object) -> str:
        return f"on {DEVICE}: {self.held}"

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: CudaTensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def tolist(self) -> Any:
        return self.held.tolist()

    def pin_memory(self, *_: object) -> torch.Tensor:
        raise RuntimeError("cannot pin a tensor of a CUDA device: only dense CPU tensors can be pinned")


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold; its results are on the device, unless it is a copy to the CPU."""
    name = func.overloadpacket.__name__
    elsewhere: list[torch.Tensor] = []
    wrapped: dict[int, torch.Tensor] = {}
    to_cpu = (device := kwargs.get("device")) is not None and torch.device(device).type != "cuda"

    def held(each: Any) -> Any:
        if isinstance(each, CudaTensor):
            wrapped[id(each.held)] = each
            return each.held
        if isinstance(each, torch.Tensor):
            wrapped[id(each)] = each
            if each.dim() and each.device.type == "cpu":
                elsewhere.append(each)
        if isinstance(each, torch.device) and each.type == "cuda":
            return torch.device("cpu")
        return each

    plain = tree_map(held, (args, {key: each for key, each in kwargs.items() if key != "pin_memory"}))
    if elsewhere and name not in ANY_DEVICE:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )
    of_floats = any(each.dtype.is_floating_point for each in wrapped.values())
    if name in NOT_DETERMINISTIC and of_floats and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(f"{name} does not have a deterministic implementation on CUDA")
    result = KERNELS.get(name, func)(*plain[0], **plain[1])

    def wrap(each: Any) -> Any:
        if not isinstance(each, torch.Tensor):
            return each
        if id(each) in wrapped:
            return wrapped[id(each)]
        return each if to_cpu else CudaTensor(each)

    return tree_map(wrap, result)


class _Stream:
    """A stream or an event: everything has happened when a call returns."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device = DEVICE

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def record_event(self, *_: object) -> _Stream:
        return _Stream()

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *_, **__: True if name == "query" else None


def _moved(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function that makes a tensor on the CPU first: torch copies it where no subclass is seen."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return make(*args, **kwargs) if device is None else make(*args, **kwargs).to(device)

    return made


def _instead() -> dict[str, Any]:
    """Return what takes the place of functions of ``torch.cuda``."""
    allocated = StandIn.allocated

    def reset(*_: object) -> None:
        allocated.most = allocated.now

    nothing = lambda *_, **__: None  # noqa: E731
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": nothing,
        "_lazy_init": nothing,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "device": lambda *_: nullcontext(),
        "stream": lambda stream=None: nullcontext(),
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": _Stream,
        "_initialized": True,
        "default_stream": _Stream,
        "synchronize": nothing,
        "empty_cache": nothing,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "stand-in",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(
            name="stand-in", total_memory=CAPACITY, major=9, minor=0, multi_processor_count=1
        ),
        "mem_get_info": lambda *_: (CAPACITY - allocated.now, CAPACITY),
        "memory_allocated": lambda *_: allocated.now,
        "max_memory_allocated": lambda *_: allocated.most,
        "memory_reserved": lambda *_: allocated.now,
        "max_memory_reserved": lambda *_: allocated.most,
        "reset_peak_memory_stats": reset,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": lambda *_: torch.default_generator.get_state(),
        "get_rng_state_all": lambda: [],
        "set_rng_state": nothing,
        "set_rng_state_all": nothing,
    }


def use() -> None:
    """Have a CUDA device from now on, in this process."""
    StandIn.kernels = torch.library.Library("_", "IMPL")
    StandIn.kernels.fallback(lambda func, *args, **kwargs: compute(func, args, kwargs), "CUDA")
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    torch.tensor = _moved(torch.tensor)
    for name, instead in _instead().items():
        setattr(torch.cuda, name, instead)
