"""Contract that every adapter must hold."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stackwise_core.interfaces.adapter import Adapter, SavedAdapter
from stackwise_core.interfaces.precision import Precision
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states, small_rack, through_graphs


def fill(parameters: Sequence[nn.Parameter], seed: int) -> None:
    """Give an adapter weights, as training would: large enough to be seen in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1, generator=generator)


class AdapterContract:
    """Contract of an adapter: subclass it and provide the fixture ``adapter``, once for each precision it supports."""

    tolerance = 1e-5
    """Largest difference, relative and absolute, of outputs that should be the same but for rounding."""
    precision: Precision | None = None
    """Precision of the stacks; None for fp32."""

    @pytest.fixture
    def adapter(self) -> Adapter:
        """Return the adapter to test; with dropout, if it has any, at 0."""
        raise NotImplementedError("the subclass provides the fixture `adapter`")

    def new_stack(self) -> nn.Module:
        """Return a frozen stack with the same weights each time."""
        stack = frozen_stack()
        if self.precision is not None:
            self.precision.prepare(stack, trainable=False)
        return stack

    @pytest.fixture
    def stack(self) -> nn.Module:
        """Return the stack that a test puts adapters on."""
        return self.new_stack()

    def forward(self, stack: nn.Module, x: Tensor) -> Tensor:
        """Compute hidden states [B, T, D] at the exit of a stack."""
        with nullcontext() if self.precision is None else self.precision.autocast(torch.device("cpu")):
            return stack(x, everything_visible())

    def output(self, stack: nn.Module) -> Tensor:
        """Compute hidden states at the stack's exit, for one fixed input."""
        with torch.no_grad():  # with a gradient, attention may compute in another format
            return self.forward(stack.eval(), hidden_states())

    def close(self, left: Tensor, right: Tensor) -> bool:
        """Return whether two outputs are the same but for rounding."""
        return torch.allclose(left, right, rtol=self.tolerance, atol=self.tolerance)

    def filled(self, adapter: Adapter, stack: nn.Module, name: str, seed: int) -> None:
        """Attach an adapter and give it weights."""
        adapter.attach(stack, name, 0, 4)
        fill(adapter.trainable(stack, [name]), seed)

    def test_attaching_leaves_the_output(self, adapter: Adapter, stack: nn.Module) -> None:
        """A fresh adapter changes nothing yet, first or second."""
        before = self.output(stack)
        adapter.attach(stack, "first", 0, 4)
        assert self.close(self.output(stack), before)
        fill(adapter.trainable(stack, ["first"]), 1)
        filled = self.output(stack)
        adapter.attach(stack, "second", 0, 4)
        assert self.close(self.output(stack), filled)

    def test_an_adapter_is_in_the_path(self, adapter: Adapter, stack: nn.Module) -> None:
        """The weights of an adapter change the output, at every place in the rack."""
        before = self.output(stack)
        adapter.attach(stack, "late", 3, 4)
        fill(adapter.trainable(stack, ["late"]), 1)
        assert not self.close(self.output(stack), before)

    def test_only_the_named_train(self, adapter: Adapter, stack: nn.Module) -> None:
        """``trainable`` gives the parameters of the named adapters, and nothing else asks for a gradient."""
        own = {id(parameter): parameter for parameter in stack.parameters()}  # kept, so that no other gets their ids
        for name in ("first", "second"):
            adapter.attach(stack, name, 0, 4)
        named = {name: {id(each) for each in adapter.trainable(stack, [name])} for name in ("first", "second")}
        assert named["first"]
        assert named["second"]
        assert not named["first"] & named["second"]
        for names in (["first"], ["second"], ["first", "second"], []):
            given = {id(parameter) for parameter in adapter.trainable(stack, names)}
            asking = {id(parameter) for parameter in stack.parameters() if parameter.requires_grad}
            assert given == asking == set().union(*(named[name] for name in names))
            assert not given & own.keys()

    def test_its_size_is_as_declared(self, adapter: Adapter, stack: nn.Module) -> None:
        """``size`` is how many weights train, which the plan counts with."""
        for index in (0, 3):
            adapter.attach(stack, f"at_{index}", index, 4)
            found = sum(each.numel() for each in adapter.trainable(stack, [f"at_{index}"]))
            assert found == adapter.size(small_rack(2, 2, 2, 2), index)

    def test_the_stack_s_own_weights_are_left(self, adapter: Adapter, stack: nn.Module) -> None:
        """Choosing which adapters train freezes and unfreezes none of the stack's own weights."""
        if adapter.rewrites_base:
            pytest.skip("the stack's own weights can't train beside it")
        own = [parameter for parameter in stack.parameters() if parameter.is_floating_point()]
        adapter.attach(stack, "first", 0, 4)
        for asks in (True, False):
            for parameter in own:
                parameter.requires_grad_(asks)
            adapter.trainable(stack, ["first"])
            assert all(parameter.requires_grad == asks for parameter in own)

    def test_frozen_adapters_stay_active(self, adapter: Adapter, stack: nn.Module) -> None:
        """The output doesn't depend on which adapter trains."""
        for seed, name in enumerate(("first", "second")):
            self.filled(adapter, stack, name, seed)
        both = self.output(stack)
        for names in (["first"], ["second"], []):
            adapter.trainable(stack, names)
            assert self.close(self.output(stack), both)

    def test_gradients_reach_the_named(self, adapter: Adapter, stack: nn.Module) -> None:
        """Every parameter of an adapter that has weights gets a gradient, and the input gets one too."""
        self.filled(adapter, stack, "first", 1)
        parameters, x = adapter.trainable(stack, ["first"]), hidden_states().requires_grad_()
        self.forward(stack, x).square().sum().backward()
        assert all(each.grad is not None and bool(each.grad.any()) for each in [*parameters, x])

    def test_its_blocks_are_graphs_if_it_says_so(self, adapter: Adapter, stack: nn.Module) -> None:
        """``torch.compile`` captures a block whole that two adapters are on, and the graph computes the same."""
        if not adapter.compiles:
            pytest.skip("blocks that it is on are never compiled")
        for seed, name in enumerate(("first", "second")):
            self.filled(adapter, stack, name, seed)
        x = hidden_states().requires_grad_()
        with nullcontext() if self.precision is None else self.precision.autocast(torch.device("cpu")):
            found = through_graphs(stack, x)
        assert self.close(found, self.forward(stack, x))

    def test_files_bring_it_back(self, adapter: Adapter, stack: nn.Module, tmp_path: Path) -> None:
        """A stack without adapters gets the same output from the files."""
        self.filled(adapter, stack, "first", 1)
        with_first = self.output(stack)
        self.filled(adapter, stack, "second", 2)
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            adapter.save(stack, name, tmp_path / name)
        both, fresh = self.output(stack), self.new_stack()
        adapter.load(fresh, "first", tmp_path / "first")
        assert self.close(self.output(fresh), with_first)
        adapter.load(fresh, "second", tmp_path / "second")
        assert self.close(self.output(fresh), both)

    def test_merging_keeps_the_output(self, adapter: Adapter) -> None:
        """Merging adapters into fp32 weights, one after the other, keeps the output each time."""
        if adapter.unmergeable:
            pytest.skip(f"it can't be merged: {adapter.unmergeable}")
        stack, self.precision, self.tolerance = frozen_stack(), None, 1e-4
        weights = sum(parameter.numel() for parameter in stack.parameters())
        for seed, name in enumerate(("first", "second")):
            self.filled(adapter, stack, name, seed)
        both = self.output(stack)
        adapter.merge(stack, "first")
        assert self.close(self.output(stack), both)
        fill(adapter.trainable(stack, ["second"]), 7)
        assert not self.close(self.output(stack), both), "the other adapter was taken out of the path"
        changed = self.output(stack)
        adapter.merge(stack, "second")
        assert self.close(self.output(stack), changed)
        assert sum(parameter.numel() for parameter in stack.parameters()) == weights

    def test_each_stack_s_part_is_exported(self, adapter: Adapter, tmp_path: Path) -> None:
        """The files for other libraries are the same each time, and others if the adapter of any stack is another."""
        if adapter.unexportable:
            pytest.skip(f"it can't be exported: {adapter.unexportable}")

        def exported(name: str, *seeds: int) -> dict[str, bytes]:
            stacks = []
            for place, seed in enumerate(seeds):
                stack = self.new_stack()
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    self.filled(adapter, stack, "first", seed)
                saved, blocks = tmp_path / f"{name}-{place}", len(list(stack.get_submodule("layers").children()))
                saved.mkdir()
                adapter.save(stack, "first", saved)
                stacks.append(SavedAdapter(saved, place * blocks, blocks))
            directory = tmp_path / name
            directory.mkdir()
            adapter.export(stacks, sum(each.blocks for each in stacks), directory)
            files = [path for path in directory.rglob("*") if path.is_file()]
            return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}

        files = exported("before", 1, 2)
        assert files
        assert exported("again", 1, 2) == files
        assert exported("lower", 3, 2) != files, "the lower stack's adapter isn't in it"
        assert exported("upper", 1, 3) != files, "the upper stack's adapter isn't in it"

    def test_what_it_cannot_do_has_a_reason(self, adapter: Adapter) -> None:
        """A reason is a part of a sentence, which messages end: a line of words without a full stop."""
        for reason in (adapter.float_only, adapter.unmergeable, adapter.unexportable):
            assert isinstance(reason, str)
            assert len(reason.splitlines()) <= 1
            assert reason == reason.strip().rstrip(".")
