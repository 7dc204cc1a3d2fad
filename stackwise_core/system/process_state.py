"""State that belongs to the whole process: torch's defaults and modes, numpy's, and the random generators.

Stackwise works in a state of its own. So a run's numbers are those of its configuration, whatever the program around it
has set: same configuration, same machine, same bits. That program's state is put back afterwards, also after an error.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from types import ModuleType

    import torch

AUTOCAST_DEVICES = ("cpu", "cuda")

OUR_DETERMINISM = True, False, False
"""Deterministic algorithms, or an error; memory isn't filled, since every buffer here is written before it is read."""


@contextmanager
def own_state(device: torch.device | None = None) -> Iterator[None]:
    """Work with torch's own defaults, deterministic algorithms and forked generators; put the caller's state back.

    May also be used as a decorator. It imports torch, ``preserved_state`` doesn't.

    Args:
        device: where the work computes. A CUDA device is initialised first, or its generators couldn't be forked.
    """
    import numpy
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device is not None and device.type == "cuda":
        torch.cuda.init()
    # Innermost first when it ends: what is set below, then the modes that the settings were made in.
    with preserved_state(), ExitStack() as modes:
        if torch.get_default_device().type != "cpu":  # a mode, which makes every call of torch slower
            modes.enter_context(torch.device("cpu"))
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(numpy.errstate(all="warn", under="ignore"))
        for setting in _settings(torch):
            setting.change(setting.usual)
        _set_determinism(torch, OUR_DETERMINISM)
        yield


@contextmanager
def preserved_state(*, generators: bool = True) -> Iterator[None]:
    """Put back afterwards what code in here sets of the process's state, such as a plugin that is imported.

    Where it is the first that imports torch, torch's own defaults are what is put back.

    Args:
        generators: whether random generators are put back, too.
    """
    torch_before = _loaded("torch")
    remembered = [*(_generators() if generators else ()), *(_remembered(torch_before) if torch_before else ())]
    with ExitStack() as modes:
        if torch_before is not None:
            gradients = torch_before.is_grad_enabled()
            modes.enter_context(torch_before.inference_mode(torch_before.is_inference_mode_enabled()))
            torch_before.set_grad_enabled(gradients)  # which the mode has set
        try:
            yield
        finally:
            torch_now = _loaded("torch")
            if torch_before is None and torch_now is not None:
                remembered += [partial(each.change, each.usual) for each in _settings(torch_now)]
                remembered.append(partial(torch_now.set_default_device, None))
            modes.close()
            for put_back in remembered:
                put_back()


@frozen
class _Setting:
    """A value of the whole process, or of this thread."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    usual: Any
    """Torch's own default, in which Stackwise works."""

    def change(self, value: Any) -> None:
        """Set the value, unless it is set already."""
        if self.get() != value:
            self.set(value)


def _loaded(name: str) -> ModuleType | None:
    return sys.modules.get(name)


def _generators() -> list[Callable[[], object]]:
    """Remember the generators of Python, numpy and torch that exist by now; return what puts them back."""
    remembered: list[Callable[[], object]] = [partial(random.setstate, random.getstate())]
    numpy, torch = _loaded("numpy"), _loaded("torch")
    if numpy is not None:
        remembered.append(partial(numpy.random.set_state, numpy.random.get_state()))
    if torch is not None:
        remembered.append(partial(torch.set_rng_state, torch.get_rng_state()))
        if torch.cuda.is_initialized():
            remembered.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return remembered


def _remembered(torch: ModuleType) -> list[Callable[[], object]]:
    """Remember torch's settings and default device; return what puts them back."""
    settings = [partial(setting.change, setting.get()) for setting in _settings(torch)]
    return [*settings, partial(_change_default_device, torch, torch.get_default_device())]


def _settings(torch: ModuleType) -> list[_Setting]:
    settings = [
        _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        _Setting(torch.is_grad_enabled, torch.set_grad_enabled, True),
        _Setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, True),
        _Setting(partial(_autocast_depth, torch), partial(_set_autocast_depth, torch), 0),
        _Setting(partial(_determinism, torch), partial(_set_determinism, torch), (False, False, True)),
        _Setting(partial(_matmul_precision, torch), partial(_set_matmul_precision, torch), ("highest", "ieee", "ieee")),
    ]
    for device, dtype in zip(AUTOCAST_DEVICES, (torch.bfloat16, torch.float16), strict=True):
        is_on, switch = partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
        settings.append(_Setting(is_on, switch, False))
        of_device = partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)
        settings.append(_Setting(*of_device, dtype))
    kernels = torch.backends.cuda  # of attention, on a CPU, too
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        settings.append(_Setting(getattr(kernels, f"{name}_sdp_enabled"), getattr(kernels, f"enable_{name}_sdp"), True))
    return settings


def _autocast_depth(torch: ModuleType) -> int:
    """Return how many autocasts are around: within others, one doesn't forget the weights that it has cast."""
    depth: int = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def _set_autocast_depth(torch: ModuleType, depth: int) -> None:
    while _autocast_depth(torch) > depth:
        torch.autocast_decrement_nesting()
    while _autocast_depth(torch) < depth:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


def _determinism(torch: ModuleType) -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def _set_determinism(torch: ModuleType, flags: tuple[bool, bool, bool]) -> None:
    enabled, warn_only, torch.utils.deterministic.fill_uninitialized_memory = flags
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _matmul_precision(torch: ModuleType) -> tuple[str | None, ...]:
    """Return the precision of fp32 products as each of torch's interfaces has it; None where one can't say."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # the others were used, and it contradicts them
        precision = None
    return precision, *(getattr(each, "fp32_precision", None) for each in _matmul_backends(torch))


def _set_matmul_precision(torch: ModuleType, precisions: tuple[str | None, ...]) -> None:
    precision, *of_backends = precisions
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    for backend, each in zip(_matmul_backends(torch), of_backends, strict=True):
        if each is not None and getattr(backend, "fp32_precision", each) != each:
            backend.fp32_precision = each


def _matmul_backends(torch: ModuleType) -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)


def _change_default_device(torch: ModuleType, device: torch.device) -> None:
    if torch.get_default_device() != device:
        torch.set_default_device(None)
    if torch.get_default_device() != device:  # it was set, not a mode's
        torch.set_default_device(device)
