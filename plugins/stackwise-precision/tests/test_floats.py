"""Formats of weights and of products, and the loss scaler."""

from contextlib import nullcontext

import pytest
import torch

from stackwise_core.engine.rack.number_range import OutOfRange
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states
from stackwise_precision.floats import Bf16, Fp16, Fp32
from stackwise_precision.options import Bf16Options, Fp16Options, Fp32Options

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FP32, BF16, FP16 = Fp32(Fp32Options()), Bf16(Bf16Options()), Fp16(Fp16Options())
FP16_THROUGHOUT = Fp16(Fp16Options(cpu_compute="fp16"))


def dtypes(stack):
    return {tensor.dtype for tensor in stack.state_dict().values()}


@pytest.mark.parametrize(("precision", "held"), [(FP32, torch.float32), (BF16, torch.bfloat16), (FP16, torch.float16)])
def test_a_frozen_stack_is_held_in_it(precision, held):
    """Every weight of a frozen stack, norms included, has the format of the name."""
    stack = frozen_stack()
    precision.prepare(stack, trainable=False)
    assert dtypes(stack) == {held}


@pytest.mark.parametrize(
    ("precision", "computed"),
    [
        (FP32, torch.float32),
        (BF16, torch.bfloat16),
        (FP16, torch.bfloat16),
        (FP16_THROUGHOUT, torch.float16),
    ],
)
@pytest.mark.parametrize("trainable", [False, True])
def test_matrix_products_compute_in_it(precision, computed, trainable):
    """A projection gives the format that it computes in: on a CPU fp16 computes in bf16 unless it is asked not to."""
    stack, seen = frozen_stack(), []
    precision.prepare(stack, trainable=trainable)
    stack.layers[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with precision.autocast(CPU):
        stack(hidden_states(), everything_visible())
    assert seen == [computed]


@pytest.mark.parametrize(
    ("precision", "device", "there"),
    [
        (FP32, CPU, False),
        (BF16, CPU, False),
        (BF16, CUDA, False),
        (FP16, CPU, False),
        (FP16_THROUGHOUT, CPU, True),
    ],
)
def test_the_scaler_is_where_fp16_computes(precision, device, there):
    """fp32 and bf16 have the range to do without."""
    assert (precision.loss_scaler(device) is not None) == there


def test_the_scaler_starts_where_the_option_says():
    """``initial_scale`` is the first scale."""
    assert Fp16(Fp16Options("fp16", 256.0)).loss_scaler(CPU).get_scale() == 256.0


@pytest.mark.cuda
def test_fp16_computes_in_fp16_on_a_gpu():
    """``cpu_compute`` is about CPUs."""
    assert FP16.loss_scaler(CUDA) is not None
    with FP16.autocast(CUDA):
        assert torch.get_autocast_dtype("cuda") == torch.float16


def training_step(stack, scaler, optimizer, loss_factor):
    with FP16_THROUGHOUT.autocast(CPU):
        hidden = stack.norm(stack(hidden_states(), everything_visible()))
    scaler.scale(hidden.float().square().mean() * loss_factor).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def test_an_overflow_leaves_the_weights_alone():
    """A step whose scaled gradient overflows fp16 changes no weight and halves the scale; the next one trains."""
    stack = frozen_stack()
    FP16_THROUGHOUT.prepare(stack, trainable=True)
    stack.requires_grad_(True)
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-3, fused=True)
    scaler = FP16_THROUGHOUT.loss_scaler(CPU)
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    training_step(stack, scaler, optimizer, loss_factor=1e9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    assert scaler.get_scale() == 65536.0 / 2
    training_step(stack, scaler, optimizer, loss_factor=1.0)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    assert all(bool(tensor.isfinite().all()) for tensor in stack.state_dict().values())


@pytest.mark.parametrize(
    ("precision", "held", "beyond", "instead"),
    [(FP16, 65504.0, 70000.0, "Take bf16 or fp32"), (BF16, 3.3e38, 3.4e38, "Take fp32")],
)
def test_a_weight_that_would_become_infinite_is_refused(precision, held, beyond, instead):
    """The largest that the format has is held; one beyond it is named, and the stack is left as it was."""
    stack = frozen_stack()
    stack.layers[1].mlp.up_proj.weight.data[3, 4] = held
    precision.prepare(stack, trainable=False)
    assert all(bool(tensor.isfinite().all()) for tensor in stack.state_dict().values())
    stack = frozen_stack()
    stack.layers[1].mlp.up_proj.weight.data[3, 4] = beyond
    with pytest.raises(OutOfRange, match=rf"^layers\.1\.mlp\.up_proj\.weight can't be .*at \[3, 4\].*{instead}"):
        precision.prepare(stack, trainable=False)
    assert dtypes(stack) == {torch.float32}


@pytest.mark.parametrize(("precision", "refused"), [(FP16_THROUGHOUT, True), (FP16, False)])
def test_a_stack_that_trains_in_fp16_must_fit_into_it(precision, refused):
    """Its masters are fp32, and what computes in fp16 casts them at each step."""
    stack = frozen_stack()
    stack.layers[1].mlp.up_proj.weight.data[3, 4] = 70000.0
    expected = pytest.raises(OutOfRange, match="can't be held in fp16") if refused else nullcontext()
    with expected:
        precision.prepare(stack, trainable=True)


def test_the_scale_is_above_0():
    """A scale of nothing is refused."""
    with pytest.raises(ValueError, match="more than 0"):
        Fp16Options(initial_scale=0.0)
