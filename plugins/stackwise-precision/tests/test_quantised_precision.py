"""A stack at fp8, nvfp4 and nf_fp8: what is replaced, what stays, what is refused."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from stackwise_core.engine.rack.number_range import OutOfRange
from stackwise_core.engine.rack.quantised_linear import QuantisedLinear
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states
from stackwise_precision.floats import Bf16
from stackwise_precision.fp8 import Fp8
from stackwise_precision.hooks import precision as declared
from stackwise_precision.nf_fp8 import NfFp8
from stackwise_precision.nvfp4 import Nvfp4
from stackwise_precision.options import Bf16Options, Fp8Options, NfFp8Options, Nvfp4Options

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BUILDERS = {
    "fp8": lambda compute: Fp8(Fp8Options(compute)),
    "nvfp4": lambda compute: Nvfp4(Nvfp4Options(compute)),
    "nf_fp8": lambda compute: NfFp8(NfFp8Options(compute=compute)),
}
precisions = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


@precisions
def test_projections_become_codes_and_norms_stay(build):
    """Every linear layer holds bytes and fp32 scales and no parameter; every norm is as it was, to the bit."""
    stack, before = frozen_stack(), frozen_stack()
    build("bf16").prepare(stack, trainable=False)
    linear = [module for module in stack.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 14
    assert {type(module) for module in linear} == {QuantisedLinear}
    assert [list(module.parameters()) for module in linear] == [[]] * 14
    assert {buffer.dtype for buffer in stack.buffers()} == {torch.uint8, torch.float32}
    norms = {name: parameter for name, parameter in before.named_parameters() if "norm" in name}
    assert {name for name, _ in stack.named_parameters()} == set(norms)
    assert all(torch.equal(parameter, norms[name]) for name, parameter in stack.named_parameters())


@precisions
@pytest.mark.parametrize(("compute", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_matrix_products_compute_in_it(build, compute, dtype):
    """A projection gives the format that ``compute`` names, from a stack with the mode that it had before."""
    precision, stack, seen = build(compute), frozen_stack().eval(), []
    precision.prepare(stack, trainable=False)
    assert not any(module.training for module in stack.modules())
    stack.layers[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with precision.autocast(CPU):
        stack(hidden_states(), everything_visible())
    assert seen == [dtype]


@precisions
def test_reading_back_doesn_t_quantise(build):
    """Whatever the fresh stack's own weights are, even NaN, they are neither looked at nor kept."""
    precision, stack, fresh = build("bf16"), frozen_stack(), frozen_stack(seed=1)
    precision.prepare(stack, trainable=False)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(float("nan"))
    precision.from_tensors(fresh, load(save(precision.to_tensors(stack))))
    assert all(torch.equal(tensor, stack.state_dict()[name]) for name, tensor in fresh.state_dict().items())


def test_one_format_s_file_is_no_other_s():
    """Tensors of nvfp4 are refused by nf_fp8, although they have the same shapes."""
    stack = frozen_stack()
    BUILDERS["nvfp4"]("bf16").prepare(stack, trainable=False)
    with pytest.raises(RuntimeError, match="codes_nf4"):
        BUILDERS["nf_fp8"]("bf16").from_tensors(frozen_stack(), stack.state_dict())


@precisions
def test_a_weight_that_is_not_finite_is_named(build):
    """The error says which of the stack's weights it is."""
    stack = frozen_stack()
    with torch.no_grad():
        stack.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(OutOfRange, match=r"layers\.1\.mlp\.up_proj\.weight isn't finite: nan at \[3, 4\]"):
        build("bf16").prepare(stack, trainable=False)


@precisions
def test_full_weights_can_t_train(build):
    """It is said before, and refused if asked for all the same."""
    assert not build("bf16").trainable
    with pytest.raises(UsageError, match="expected fp32, bf16 or fp16"):
        build("bf16").prepare(frozen_stack(), trainable=True)


@pytest.fixture
def old_gpu(monkeypatch):
    """A CUDA device that doesn't compute in bf16."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@precisions
def test_a_gpu_without_bf16_is_refused(build, old_gpu):
    """Where bf16 computes, the error has the reason and what to take instead; fp32 computes anywhere."""
    with pytest.raises(UnavailableError, match=r'Tesla T4 has compute capability 7\.5.*Take compute = "fp32"'):
        build("bf16").check(CUDA)
    build("fp32").check(CUDA)
    build("bf16").check(CPU)


def test_bf16_is_refused_there_too(old_gpu):
    """bf16 names the other floats."""
    with pytest.raises(UnavailableError, match="Take fp16 or fp32"):
        Bf16(Bf16Options()).check(CUDA)
    Bf16(Bf16Options()).check(CPU)


@pytest.mark.cuda
@precisions
def test_a_gpu_decodes_what_a_cpu_encoded(build):
    """A file's weights are the same on both, to the bit; encoded on a GPU, they differ by the scales' last bits."""
    precision, here, there, encoded_there = build("fp32"), *(frozen_stack() for _ in range(3))
    precision.prepare(here, trainable=False)
    precision.from_tensors(there.to(CUDA), precision.to_tensors(here))
    precision.prepare(encoded_there.to(CUDA), trainable=False)
    ours, theirs, close = (each.layers[0].mlp.up_proj.weight.cpu() for each in (here, there, encoded_there))
    assert torch.equal(ours, theirs)
    assert (close - ours).norm() < 0.01 * ours.norm()


def test_other_names():
    """full, half and bfloat16 are names as well."""
    aliases = {each.name: each.aliases for each in declared() if each.aliases}
    assert aliases == {"fp32": ("full",), "bf16": ("bfloat16",), "fp16": ("half",)}
