"""Contract that every precision must hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stackwise_core.interfaces.precision import Precision
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states, small_rack, through_graphs

CPU = torch.device("cpu")


def output(precision: Precision, stack: nn.Module, x: Tensor) -> Tensor:
    """Compute hidden states [B, T, D] at the exit of a prepared stack."""
    with precision.autocast(CPU):
        return stack(x, everything_visible())


def frozen_bytes(precision: Precision, stack: nn.Module) -> int:
    """Return the bytes of a prepared stack's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in precision.to_tensors(stack).values())


def bits_of(precision: Precision, stack: nn.Module) -> dict[str, tuple[torch.dtype, bytes]]:
    """Return a prepared stack's tensors as they would be in a file."""
    tensors = precision.to_tensors(stack)
    return {
        name: (tensor.dtype, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def differing(ones: Mapping[str, object], others: Mapping[str, object]) -> list[str]:
    """List the names under which two mappings differ; a message with all the bytes would take minutes to make."""
    return sorted(name for name in ones.keys() | others.keys() if ones.get(name) != others.get(name))


def linear_sizes(stack: nn.Module) -> dict[str, tuple[int, int]]:
    """Input and output features of each linear layer of a stack, by name."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in stack.named_modules()
        if isinstance(module, nn.Linear)
    }


class PrecisionContract:
    """Contract of a precision: subclass it, provide the fixture ``precision``, and state ``largest_error``."""

    largest_error: float
    """Largest error of a frozen stack's output, relative to what fp32 gives and to what the stack adds."""

    @pytest.fixture
    def precision(self) -> Precision:
        """Return the precision to test."""
        raise NotImplementedError("the subclass provides the fixture `precision`")

    def test_a_frozen_stack_computes_the_same(self, precision: Precision) -> None:
        """A frozen stack adds to the residual stream as in fp32, within the error that is stated."""
        stack, x = frozen_stack(), hidden_states()
        expected = stack(x, everything_visible())
        precision.prepare(stack, trainable=False)
        error = (output(precision, stack, x) - expected).norm() / (expected - x).norm()
        assert error <= self.largest_error

    def test_a_frozen_stack_passes_gradients_down(self, precision: Precision) -> None:
        """The gradient at a frozen stack's input is fp32's, within some times the error that is stated."""
        stack, x = frozen_stack(), hidden_states().requires_grad_()
        (expected,) = torch.autograd.grad(stack(x, everything_visible()).square().sum(), x)
        precision.prepare(stack, trainable=False)
        (found,) = torch.autograd.grad(output(precision, stack, x).square().sum(), x)
        assert bool(found.isfinite().all())
        assert (found - expected).norm() <= (4 * self.largest_error + 1e-5) * expected.norm()

    def test_its_blocks_are_graphs_if_it_says_so(self, precision: Precision) -> None:
        """``torch.compile`` captures a prepared block whole, and the graph computes the same."""
        if not precision.compiles:
            pytest.skip("its blocks are never compiled")
        stack, x = frozen_stack(), hidden_states().requires_grad_()
        precision.prepare(stack, trainable=False)
        with precision.autocast(CPU):
            found = through_graphs(stack, x)
        expected = output(precision, stack, x)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=0.01, atol=0.01)

    def test_using_a_frozen_stack_leaves_it(self, precision: Precision) -> None:
        """Forward passes with and without gradients, in evaluation and in training, change none of its tensors."""
        stack, x = frozen_stack(), hidden_states()
        precision.prepare(stack, trainable=False)
        before = bits_of(precision, stack)
        results = []
        for training in (False, True):
            stack.train(training)
            with torch.no_grad():
                without = output(precision, stack, x)
            given = hidden_states().requires_grad_()
            result = output(precision, stack, given)
            results.append((without, result.detach(), *torch.autograd.grad(result.square().sum(), given)))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        assert differing(bits_of(precision, stack), before) == []

    def test_a_row_of_zeros_stays_finite(self, precision: Precision) -> None:
        """Weights that are all zero quantise to zero, not to NaN."""
        stack, x = frozen_stack(), hidden_states()
        with torch.no_grad():
            for name, parameter in stack.named_parameters():
                if name.endswith("up_proj.weight"):
                    parameter[0] = 0
                if name.endswith("v_proj.weight"):
                    parameter.zero_()
        precision.prepare(stack, trainable=False)
        assert bool(output(precision, stack, x).isfinite().all())

    def test_a_frozen_stack_has_nothing_that_trains(self, precision: Precision) -> None:
        """No parameter of a frozen stack asks for a gradient."""
        stack = frozen_stack()
        precision.prepare(stack, trainable=False)
        assert [name for name, parameter in stack.named_parameters() if parameter.requires_grad] == []

    def test_projections_stay_linear_layers(self, precision: Precision) -> None:
        """An adapter finds each projection of a frozen stack as an ``nn.Linear`` of its size, with a weight."""
        stack = frozen_stack()
        sizes = linear_sizes(stack)
        precision.prepare(stack, trainable=False)
        assert linear_sizes(stack) == sizes
        assert all(isinstance(stack.get_submodule(name).weight, Tensor) for name in sizes)

    def test_the_residual_stream_is_fp32(self, precision: Precision) -> None:
        """Hidden states leave a stack in fp32, as they enter it."""
        for trainable in {False, precision.trainable}:
            stack = frozen_stack()
            precision.prepare(stack, trainable=trainable)
            assert output(precision, stack, hidden_states()).dtype == torch.float32

    def test_bytes_are_as_declared(self, precision: Precision) -> None:
        """A frozen stack takes ``bytes_per_weight``, which the plan counts with, to within a twentieth."""
        stack = frozen_stack(spec=evolve(small_rack(1), d_model=256, d_ff=704))
        weights = sum(parameter.numel() for parameter in stack.parameters())
        precision.prepare(stack, trainable=False)
        assert frozen_bytes(precision, stack) / weights == pytest.approx(precision.bytes_per_weight, rel=0.05)

    def test_tensors_come_back_from_a_file(self, precision: Precision, tmp_path: Path) -> None:
        """A stack that went through a safetensors file has the same tensors and the same output, to the bit."""
        stack, fresh, x = frozen_stack(), frozen_stack(seed=1), hidden_states()
        precision.prepare(stack, trainable=False)
        written = {name: tensor.contiguous() for name, tensor in precision.to_tensors(stack).items()}
        save_file(written, tmp_path / "stack.safetensors")
        precision.from_tensors(fresh, load_file(tmp_path / "stack.safetensors"))
        assert differing(bits_of(precision, fresh), bits_of(precision, stack)) == []
        assert all(not parameter.requires_grad for parameter in fresh.parameters())
        assert torch.equal(output(precision, fresh, x), output(precision, stack, x))

    def test_a_stack_that_trains_keeps_its_masters(self, precision: Precision) -> None:
        """Preparing a stack for training leaves every weight in fp32 and to the bit."""
        if not precision.trainable:
            pytest.skip("full weights can't train at this precision")
        stack = frozen_stack()
        before = {name: parameter.clone() for name, parameter in stack.named_parameters()}
        precision.prepare(stack, trainable=True)
        after = dict(stack.named_parameters())
        assert set(after) == set(before)
        assert {parameter.dtype for parameter in after.values()} == {torch.float32}
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_every_weight_that_trains_gets_a_gradient(self, precision: Precision) -> None:
        """One step, with the loss scaler if there is one, moves every parameter and leaves it finite."""
        if not precision.trainable:
            pytest.skip("full weights can't train at this precision")
        stack = frozen_stack()
        precision.prepare(stack, trainable=True)
        stack.requires_grad_(True)
        before = {name: parameter.detach().clone() for name, parameter in stack.named_parameters()}
        optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-3, weight_decay=0)
        scaler = precision.loss_scaler(CPU)
        with precision.autocast(CPU):
            loss = stack.norm(stack(hidden_states(), everything_visible())).float().square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
        still = [name for name, parameter in stack.named_parameters() if torch.equal(parameter, before[name])]
        assert still == []
        assert all(bool(parameter.isfinite().all()) for parameter in stack.parameters())
