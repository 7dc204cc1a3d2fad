"""Stackwise works in a state of its own, and leaves the caller's as it was."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import stackwise_core as sw
from stackwise_core.engine.events.events import StepDone
from stackwise_core.system.process_state import own_state, preserved_state
from stackwise_sampling import Sampling, sample, text_for, unmask
from tests.command_line import CONFIG
from tests.hashes import hashes

CONFIGURATION = CONFIG + '[precision]\nactive = "bf16"\n[evaluation]\ndraws = 1\nsequences = 4\n'
STEPS = {"training.steps_per_stack": 3, "cache_backend": {"use": "memory"}}


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def flags() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


@contextmanager
def warm_autocast() -> Iterator[None]:
    """With a cast weight in autocast's cache."""
    with torch.autocast("cpu", torch.bfloat16):
        torch.nn.Linear(2, 2)(torch.ones(1, 2))
        yield


CALLERS = {
    "default dtype": default_dtype,
    "default device": default_device,
    "device mode": lambda: torch.device("meta"),
    "autocast": warm_autocast,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "flags": flags,
    "attention kernels": lambda: sdpa_kernel(SDPBackend.MATH),
    "numpy's errors": lambda: np.errstate(all="raise"),
}


def state() -> dict[str, Any]:
    """The process's state, as torch and numpy tell it."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "backends": (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "numpy": np.geterr(),
        "generators": (
            random.getstate(),
            torch.get_rng_state().tolist(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        ),
    }


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a small configuration in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIGURATION)
    return tmp_path


def weights(directory: Path) -> dict[str, str]:
    """Hashes of a run's weights."""
    return {name: value for name, value in hashes(directory).items() if name.endswith(".safetensors")}


def used() -> tuple[Any, ...]:
    """Return the results of the public calls: a run's weights and bounds, and its rack's logits."""
    result = sw.run(sw.load_config("small.toml", overrides=STEPS))
    rack = sw.load_rack(result.directory)
    rack_at_fp16 = sw.load_rack(result.directory, precision="fp16")
    ids = torch.from_numpy(np.arange(12).reshape(1, 12))
    return (
        weights(result.directory),
        result.likelihoods,
        tuple(rack.evaluate()),
        tuple(rack_at_fp16.evaluate()),
        sample(rack, "In the", length=6, seed=1),
        rack(ids).float().cpu().numpy().tolist(),
        rack.predict(ids, None, 0.5, torch.from_numpy(np.arange(3))).float().cpu().numpy().tolist(),
        next(iter(unmask(rack, text_for(rack, "In", length=3), Sampling(seed=2)))).ids.numpy().tolist(),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        here = tmp_path_factory.mktemp("undisturbed")
        patch.chdir(here)
        (here / "small.toml").write_text(CONFIGURATION)
        return used()


@pytest.mark.slow
@pytest.mark.parametrize("caller", CALLERS)
def test_the_callers_state_does_not_get_in_and_is_left_as_it_was(here, undisturbed, caller):
    """Weights, bounds, samples and logits are those of a program that sets nothing, to the bit."""
    torch.manual_seed(1)
    with CALLERS[caller]():
        before = state()
        found = used()
        assert state() == before
    assert found == undisturbed


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_state_is_left_as_it_was_after_an_error_or_an_interrupt(here, error):
    """In the middle of a step's events, and where a call is refused."""

    def fail(event: object) -> None:
        if isinstance(event, StepDone):
            raise error

    with default_dtype(), torch.autocast("cpu"), torch.no_grad():
        before = state()
        with pytest.raises(error):
            sw.run(sw.load_config("small.toml", overrides=STEPS), listener=fail)
        with pytest.raises(sw.UsageError):
            sw.load_rack("runs/small")
        assert state() == before


def test_what_a_listener_sets_is_put_back(here, undisturbed):
    """It can't change the numbers of the run; its own draws go on."""
    drawn = []

    def meddle(event: object) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        drawn.append(random.random())

    before = {**state(), "generators": None}
    result = sw.run(sw.load_config("small.toml", overrides=STEPS), listener=meddle)
    assert {**state(), "generators": None} == before
    assert weights(result.directory) == undisturbed[0]
    assert len(set(drawn)) == len(drawn) > 5


SCHEDULE = """
import random, numpy, torch
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.mask_schedule import MaskSchedule

@hookimpl
def mask_schedule():
    return [Implementation("meddling", "Linear", f"{__name__}:Meddling", f"{__name__}:Options")]

@frozen
class Options:
    pass

class Meddling(MaskSchedule):
    def __init__(self, options):
        super().__init__(options)
        meddle()

    def fraction(self, progress):
        return progress

def meddle():
    pass
"""
MEDDLING = """
def meddle():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.autocast("cpu").__enter__()
    torch.manual_seed(0); numpy.random.seed(0); random.seed(0)

meddle()
"""


@pytest.mark.slow
def test_what_a_plugin_sets_when_it_is_imported_is_put_back(here, monkeypatch):
    """So is what it sets when it is built: the weights are those of one that sets nothing."""
    before, found = state(), []
    for name, source in (("modest", SCHEDULE), ("meddler", SCHEDULE + MEDDLING)):
        (here / f"{name}.py").write_text(source)
        overrides = {**STEPS, "mask_schedule": {"use": "meddling"}}
        configuration = sw.load_config("small.toml", overrides=overrides, plugins=[f"{name}.py"])
        assert state() == before
        found.append(weights(sw.run(configuration).directory))
        assert state() == before
        monkeypatch.delitem(sys.modules, name)
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_plugin_that_is_the_first_to_import_torch_leaves_its_defaults(here):
    """Torch isn't imported before it, so that there was no state to remember."""
    (here / "meddler.py").write_text(SCHEDULE + MEDDLING)
    code = (
        "import sys, stackwise_core as sw\n"
        "sw.load_config('small.toml', plugins=['meddler.py'])\n"
        "import torch\n"
        "print(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),"
        " torch.is_autocast_enabled('cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch.float32 cpu True False\n"


def test_a_nested_autocast_forgets_the_weights_that_it_has_cast():
    """Else a step would compute with the weights of the step before it, which the outer one keeps."""
    with torch.autocast("cpu", torch.bfloat16), own_state():
        layer = torch.nn.Linear(1, 1, bias=False)
        seen = []
        for weight in (1.0, 2.0):
            with torch.no_grad():
                layer.weight.fill_(weight)
            with torch.autocast("cpu", torch.bfloat16):
                seen.append(layer(torch.ones(1, 1)).item())
    assert seen == [1.0, 2.0]


def test_an_interface_that_contradicts_the_older_one_is_left_as_it_was():
    """Torch then refuses to say what the older one has."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with preserved_state(), own_state():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
