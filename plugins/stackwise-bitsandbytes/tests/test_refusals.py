"""Masters, files and devices that are refused, each with the reason."""

import pytest
import torch
from attrs import evolve

from stackwise_core.errors import StackwiseError, UnavailableError
from stackwise_core.testing.small import frozen_stack, small_rack

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_full_weights_can_t_train(precision):
    """Preparing a stack for training is refused, with what to do instead, and leaves the stack."""
    stack, before = frozen_stack(), frozen_stack().state_dict()
    with pytest.raises(StackwiseError, match=rf"{precision.name} is for frozen stacks.*train adapters"):
        precision.prepare(stack, trainable=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(precision, wrong):
    """The layer is named."""
    stack = frozen_stack()
    stack.layers[1].mlp.up_proj.weight.data[3, 5] = wrong
    with pytest.raises(StackwiseError, match=rf"^layers\.1\.mlp\.up_proj\.weight isn't finite: {wrong:g}"):
        precision.prepare(stack, trainable=False)


@pytest.mark.parametrize(
    ("name", "compute", "refused"),
    [("int8", "bf16", True), ("int8", "fp32", True), ("nf4", "fp16", True), ("nf4", "bf16", False)],
)
@pytest.mark.parametrize("weight", [65505.0, -65505.0])
def test_what_overflows_fp16_is_refused(make, name, compute, refused, weight):
    """int8 quantises through fp16, whatever it computes in; 4 bits overflow only where they compute in fp16."""
    stack = frozen_stack()
    stack.layers[0].self_attn.k_proj.weight.data[0, 0] = weight
    precision = make(name, compute=compute)
    if refused:
        with pytest.raises(StackwiseError, match=r"layers\.0\.self_attn\.k_proj\.weight.*65505.*to 65504"):
            precision.prepare(stack, trainable=False)
    else:
        precision.prepare(stack, trainable=False)


def test_the_largest_fp16_is_held(make):
    """65504 itself quantises, to itself, and is refused in no stack."""
    stack = frozen_stack()
    stack.layers[0].self_attn.k_proj.weight.data[0, 0] = 65504.0
    make("int8", compute="fp32").prepare(stack, trainable=False)
    linear = torch.nn.Linear(64, 2, bias=False).requires_grad_(False)
    linear.weight.data[0, 0] = 65504.0
    int8 = make("int8", compute="fp32")
    assert int8.quantised(linear)(torch.eye(64))[0, 0] == 65504.0


@pytest.mark.parametrize(("written", "read"), [("nf4", "fp4"), ("nf4", "int8"), ("int8", "nf4")])
def test_tensors_of_another_precision_are_refused(make, written, read):
    """The first layer is named, with the tensor that is missing."""
    stack = frozen_stack()
    make(written).prepare(stack, trainable=False)
    with pytest.raises(StackwiseError, match=rf"layers\.0\.self_attn\.q_proj isn't at {read}"):
        make(read).from_tensors(frozen_stack(), make(written).to_tensors(stack))


def test_tensors_that_are_missing_or_unknown_are_named(precision):
    """A norm that isn't there and one that nobody has are both named."""
    stack = frozen_stack()
    precision.prepare(stack, trainable=False)
    tensors = precision.to_tensors(stack)
    del tensors["layers.1.input_layernorm.weight"]
    tensors["layers.7.input_layernorm.weight"] = torch.ones(64)
    with pytest.raises(StackwiseError, match=r"layers\.1\.input_layernorm\.weight, layers\.7\.input_layernorm\.weight"):
        precision.from_tensors(frozen_stack(), tensors)


@pytest.fixture
def gpu(monkeypatch):
    """Pretends a GPU of some compute capability."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")

    return pretend


@pytest.mark.parametrize(
    ("capability", "compute", "reason"),
    [
        ((5, 2), "fp32", r"needs a GPU of compute capability 6\.0.*Test GPU has 5\.2"),
        ((5, 2), "bf16", r"needs a GPU of compute capability 6\.0.*Test GPU has 5\.2"),
        ((6, 0), "fp32", None),
        ((6, 0), "fp16", None),
        ((7, 5), "bf16", r'compute = "bf16" needs.*8\.0.*Test GPU has 7\.5.*compute = "fp16" or "fp32"'),
        ((8, 0), "bf16", None),
        ((10, 0), "bf16", None),
    ],
)
@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_gpus_that_are_too_old_are_refused(make, gpu, name, capability, compute, reason):
    """bitsandbytes wants Pascal, bf16 wants Ampere; the message says what is there and what would do."""
    gpu(capability)
    if reason is None:
        make(name, compute=compute).check(CUDA)
    else:
        with pytest.raises(UnavailableError, match=f"{name}.*{reason}"):
            make(name, compute=compute).check(CUDA)


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_a_cpu_doesn_t_compute_in_fp16(make, name):
    """It could, 30 times slower: refused with what to set."""
    make(name, compute="bf16").check(CPU)
    make(name, compute="fp32").check(CPU)
    with pytest.raises(UnavailableError, match=r'a CPU is some 30 times slower.*compute = "bf16"'):
        make(name, compute="fp16").check(CPU)


@pytest.mark.parametrize(("compute", "there"), [("bf16", False), ("fp32", False), ("fp16", True)])
def test_the_scaler_is_where_fp16_computes(make, compute, there):
    """Gradients that pass through fp16 need one."""
    assert (make("nf4", compute=compute).loss_scaler(CPU) is not None) == there


@pytest.mark.parametrize(
    ("widths", "key"), [({"d_model": 48, "n_heads": 4}, "d_model = 48"), ({"d_ff": 80}, "d_ff = 80")]
)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_rack_of_such_widths_is_refused_before_anything_runs(make, name, widths, key):
    """The plan says so, and not the first stack that is frozen; int8 takes any width."""
    rack = evolve(small_rack(), **widths)
    assert key in make(name).refuses(rack)
    assert make(name).refuses(small_rack()) == ""
    assert make("int8").refuses(rack) == ""
