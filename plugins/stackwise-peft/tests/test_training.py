"""Two adapters on one stack: what trains, in which format, and what stays."""

import pytest
import torch

from stackwise_bitsandbytes.four_bit import Nf4
from stackwise_bitsandbytes.options import FourBitOptions
from stackwise_core.errors import StackwiseError
from stackwise_core.testing.adapter import fill
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states
from stackwise_peft.ia3 import Ia3
from stackwise_peft.lora import Dora, Lora, Olora, Pissa
from stackwise_peft.options import Ia3Options, LoraOptions, PissaOptions
from stackwise_precision.floats import Bf16
from stackwise_precision.options import Bf16Options

BF16, NF4 = Bf16(Bf16Options()), Nf4(FourBitOptions())
WIDE, NARROW = Lora(LoraOptions(rank=12)), Lora(LoraOptions(rank=3, target_modules=("q_proj", "down_proj")))


def dual_stack(precision):
    """A frozen stack with two adapters of different ranks, both with weights."""
    stack = frozen_stack()
    precision.prepare(stack, trainable=False)
    for seed, (name, adapter) in enumerate((("stack", WIDE), ("trunk", NARROW))):
        adapter.attach(stack, name, 0, 1)
        fill(adapter.trainable(stack, [name]), seed)
    return stack


def named(stack, name):
    return {key: tensor for key, tensor in stack.state_dict().items() if f".{name}." in key}


@pytest.mark.parametrize("precision", [BF16, NF4])
@pytest.mark.parametrize(("trains", "stays"), [("stack", "trunk"), ("trunk", "stack")])
def test_a_step_changes_the_named_one_only(precision, trains, stays):
    """Every weight of one adapter moves; the other's, and all codes and norms, keep their bits."""
    stack = dual_stack(precision)
    before = {key: tensor.clone() for key, tensor in stack.state_dict().items()}
    optimizer = torch.optim.AdamW(WIDE.trainable(stack, [trains]), lr=1e-2)
    with precision.autocast(torch.device("cpu")):
        stack.train()(hidden_states(), everything_visible()).square().mean().backward()
    assert all(parameter.grad is None for parameter in stack.parameters() if not parameter.requires_grad)
    optimizer.step()
    moved = {key for key, tensor in stack.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == set(named(stack, trains))
    assert named(stack, stays)


def test_ranks_may_differ():
    """Each adapter has its own, where it stands."""
    layer = dual_stack(BF16).layers[1]
    assert layer.self_attn.q_proj.r == {"stack": 12, "trunk": 3}
    assert layer.self_attn.v_proj.r == {"stack": 12}


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [WIDE, Dora(LoraOptions()), Pissa(PissaOptions()), Olora(LoraOptions()), Ia3(Ia3Options())],
    ids=lambda adapter: type(adapter).__name__,
)
def test_adapters_are_fp32(adapter):
    """Whatever the stack is held in, so that small steps are not rounded away."""
    stack = frozen_stack()
    BF16.prepare(stack, trainable=False)
    adapter.attach(stack, "first", 0, 1)
    assert {parameter.dtype for parameter in adapter.trainable(stack, ["first"])} == {torch.float32}
    assert stack.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", [BF16, NF4])
def test_inputs_need_no_copy_in_fp32(precision):
    """peft's copies change no bit of the output, and gradients by rounding, where those of two adapters add up."""
    results = []
    for copied in (False, True):
        stack = dual_stack(precision).train()
        parameters = WIDE.trainable(stack, ["stack", "trunk"])
        for _, layer in WIDE.layers(stack):
            assert not layer.cast_input_dtype_enabled
            layer.cast_input_dtype_enabled = copied
        with precision.autocast(torch.device("cpu")):
            output = stack(hidden_states(), everything_visible())
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in parameters)])
    assert torch.equal(results[0][0], results[1][0])
    for left, right in zip(*results, strict=True):
        assert (left - right).abs().max() <= 0.03 * left.abs().max()


def test_two_of_ia3_both_get_gradients():
    """Their scales multiply, and each gets the gradient that finite differences give."""
    adapter, stack = Ia3(Ia3Options()), frozen_stack()
    for seed, name in enumerate(("first", "second")):
        adapter.attach(stack, name, 0, 1)
        fill(adapter.trainable(stack, [name]), seed)
    parameters = adapter.trainable(stack, ["first", "second"])
    stack.double()

    def loss():
        return stack(hidden_states().double(), everything_visible()).square().sum()

    loss().backward()
    for parameter in (parameters[0], parameters[1], parameters[-1]):
        largest = int(parameter.grad.abs().argmax())
        gradient, step = parameter.grad.flatten()[largest].item(), 1e-5
        with torch.no_grad():
            place = parameter.view(-1)[largest : largest + 1]
            place += step
            above = loss().item()
            place -= 2 * step
            below = loss().item()
            place += step
        assert gradient == pytest.approx((above - below) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("kind", [Lora, Dora])
def test_dropout_only_in_training(kind):
    """It is as the stack is when an adapter is attached, and follows it after that."""
    stack, adapter = frozen_stack().eval(), kind(LoraOptions(dropout=0.5))
    adapter.attach(stack, "first", 0, 1)
    fill(adapter.trainable(stack, ["first"]), 1)

    def output():
        return stack(hidden_states(), everything_visible())

    assert torch.equal(output(), output())
    stack.train()
    assert not torch.equal(output(), output())
    stack.eval()
    assert torch.equal(output(), output())


@pytest.mark.parametrize("precision", [BF16, NF4])
def test_a_fresh_dora_changes_no_bit(precision):
    """Its magnitudes are the norms in fp32, not in the stack's format."""
    stack = frozen_stack().eval()
    precision.prepare(stack, trainable=False)

    def output():
        with torch.no_grad(), precision.autocast(torch.device("cpu")):
            return stack(hidden_states(), everything_visible())

    before = output()
    Dora(LoraOptions()).attach(stack, "first", 0, 1)
    assert torch.equal(output(), before)


@pytest.mark.parametrize("adapter", [WIDE, Dora(LoraOptions()), Ia3(Ia3Options())])
def test_attaching_and_loading_leave_what_trains(adapter, tmp_path):
    """A stack's own weights may train beside a new adapter, and one that is there goes on as it was."""
    stack = frozen_stack().requires_grad_(True)
    adapter.attach(stack, "first", 0, 1)
    adapter.trainable(stack, ["first"])
    asking = {name for name, parameter in stack.named_parameters() if parameter.requires_grad}
    assert asking == {name for name, _ in stack.named_parameters()}
    adapter.attach(stack, "second", 0, 1)
    adapter.save(stack, "second", tmp_path)
    adapter.load(stack, "third", tmp_path)
    assert {name for name, parameter in stack.named_parameters() if parameter.requires_grad} == asking


def test_the_same_seed_attaches_the_same():
    """A randomised SVD included."""
    for adapter in (WIDE, Pissa(PissaOptions(svd_iterations=2))):
        stacks = [frozen_stack(), frozen_stack()]
        for stack in stacks:
            torch.manual_seed(3)
            adapter.attach(stack, "first", 0, 1)
        left, right = (stack.state_dict() for stack in stacks)
        assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_names_that_are_refused():
    """One that is taken, and one that isn't there."""
    stack = dual_stack(BF16)
    with pytest.raises(StackwiseError, match="has an adapter 'stack' already"):
        WIDE.attach(stack, "stack", 0, 1)
    with pytest.raises(StackwiseError, match=r"no adapter 'trnk'; it has \['stack', 'trunk'\]"):
        WIDE.trainable(stack, ["trnk"])
    with pytest.raises(StackwiseError, match="no adapter 'first'; it has none"):
        WIDE.merge(frozen_stack(), "first")


def test_kinds_that_cannot_share_a_stack():
    """What peft would nest, or what would shift the norms that a dora divides by, is refused."""
    dora, pissa, ia3 = Dora(LoraOptions()), Pissa(PissaOptions()), Ia3(Ia3Options())
    for first, second, reason in (
        (WIDE, ia3, "can't stand on one stack"),
        (ia3, WIDE, "can't stand on one stack"),
        (dora, pissa, "whose norms a dora"),
        (pissa, dora, "dora needs the norms"),
    ):
        stack = frozen_stack()
        first.attach(stack, "first", 0, 1)
        with pytest.raises(StackwiseError, match=reason):
            second.attach(stack, "second", 0, 1)


@pytest.mark.parametrize("adapter", [Pissa(PissaOptions()), Olora(LoraOptions())])
def test_initialisations_need_floats(adapter):
    """Quantised weights can't have a part taken out, and nothing is changed before that is said."""
    stack = frozen_stack()
    NF4.prepare(stack, trainable=False)
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    with pytest.raises(StackwiseError, match="Linear4bit: it begins with a part of the weights"):
        adapter.attach(stack, "first", 0, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (WIDE, Ia3(Ia3Options()), "can't be on the same layers"),
        (Dora(LoraOptions()), Pissa(PissaOptions()), "norms of weights"),
        (WIDE, Pissa(PissaOptions()), ""),
        (WIDE, Dora(LoraOptions()), ""),
        (Ia3(Ia3Options()), Ia3(Ia3Options()), ""),
    ],
)
def test_a_plan_knows_which_kinds_clash(first, second, reason):
    """So that nothing runs before it is refused; one of the two says why."""
    said = first.clashes_with(second) or second.clashes_with(first)
    assert (reason in said) if reason else said == ""
