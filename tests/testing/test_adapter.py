"""Each check of AdapterContract refuses an adapter that is wrong in just that."""

import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.testing.adapter import AdapterContract
from stackwise_core.testing.small import frozen_stack

RANK = 4


class Adapted(nn.Module):
    """A linear layer, with x A B beside it for each adapter."""

    def __init__(self, base):
        super().__init__()
        self.base, self.downs, self.ups, self.active = base, nn.ParameterDict(), nn.ParameterDict(), set()

    def forward(self, x):
        return self.base(x) + sum(x @ self.downs[name] @ self.ups[name] for name in sorted(self.active))


class Right(Adapter):
    """Low-rank adapters on the down projections."""

    def layers(self, stack):
        return [block.mlp for block in stack.layers]

    def size(self, rack, index):
        return rack.blocks[index] * RANK * (rack.d_ff + rack.d_model)

    def attach(self, stack, name, index, count):
        for mlp in self.layers(stack):
            if not isinstance(mlp.down_proj, Adapted):
                mlp.down_proj = Adapted(mlp.down_proj)
            adapted, weight = mlp.down_proj, getattr(mlp.down_proj, "base", mlp.down_proj).weight
            adapted.downs[name] = nn.Parameter(torch.randn(weight.shape[1], RANK), requires_grad=False)
            adapted.ups[name] = nn.Parameter(torch.zeros(RANK, weight.shape[0]), requires_grad=False)
            adapted.active.add(name)

    def trainable(self, stack, names):
        of_all = [weights for mlp in self.layers(stack) for weights in (mlp.down_proj.downs, mlp.down_proj.ups)]
        for weights in of_all:
            for name, parameter in weights.items():
                parameter.requires_grad_(name in names)
        return [weights[name] for weights in of_all for name in names]

    def save(self, stack, name, directory):
        tensors = {}
        for place, mlp in enumerate(self.layers(stack)):
            tensors |= {f"{place}.down": mlp.down_proj.downs[name].data, f"{place}.up": mlp.down_proj.ups[name].data}
        save_file(tensors, directory / "low_rank.safetensors")

    def load(self, stack, name, directory):
        self.attach(stack, name, 0, 1)
        tensors = load_file(directory / "low_rank.safetensors")
        for place, mlp in enumerate(self.layers(stack)):
            mlp.down_proj.downs[name].data = tensors[f"{place}.down"]
            mlp.down_proj.ups[name].data = tensors[f"{place}.up"]

    def merge(self, stack, name):
        for mlp in self.layers(stack):
            adapted = mlp.down_proj
            adapted.base.weight.data += (adapted.downs[name] @ adapted.ups[name]).T.detach()
            self.take_off(adapted, name)

    def export(self, stacks, blocks, directory):
        tensors = {}
        for each in stacks:
            for name, tensor in load_file(each.directory / "low_rank.safetensors").items():
                place, _, side = name.partition(".")
                tensors[f"{each.first_block + int(place)}.{side}"] = tensor
        save_file(tensors, directory / "whole.safetensors")

    def take_off(self, adapted, name):
        del adapted.downs[name], adapted.ups[name]
        adapted.active.discard(name)


class TestRight(AdapterContract):
    @pytest.fixture
    def adapter(self):
        return Right(None)


class Bound(Right):
    """Nothing but trained: it can be neither merged nor exported, and says so."""

    unmergeable = "its weights come before a nonlinearity"
    unexportable = "no other library has it"
    merge, export = Adapter.merge, Adapter.export


class TestBound(AdapterContract):
    @pytest.fixture
    def adapter(self):
        return Bound(None)


class Breaks(Right):
    """Says that its blocks are graphs, and breaks them."""

    compiles = True

    def attach(self, stack, name, index, count):
        super().attach(stack, name, index, count)

        def stop(module, inputs):
            torch._dynamo.graph_break()

        for mlp in self.layers(stack):
            mlp.register_forward_pre_hook(stop)


class FreshNoise(Right):
    def attach(self, stack, name, index, count):
        super().attach(stack, name, index, count)
        for mlp in self.layers(stack):
            mlp.down_proj.ups[name].data.fill_(0.01)


class OnlyTheLatest(Right):
    """Attaching a second adapter takes the first out of the path, as peft does."""

    def attach(self, stack, name, index, count):
        super().attach(stack, name, index, count)
        for mlp in self.layers(stack):
            mlp.down_proj.active = {name}


class Idle(Right):
    def attach(self, stack, name, index, count):
        super().attach(stack, name, index, count)
        for mlp in self.layers(stack):
            mlp.down_proj.active.clear()


class Larger(Right):
    def size(self, rack, index):
        return 2 * super().size(rack, index)


class FreezesTheStack(Right):
    """As if no stack trained beside its adapter."""

    def trainable(self, stack, names):
        stack.requires_grad_(False)
        return super().trainable(stack, names)


class TrainsTheStack(Right):
    def trainable(self, stack, names):
        found = super().trainable(stack, names)
        stack.norm.requires_grad_(True)
        return found


class TrainsAll(Right):
    def trainable(self, stack, names):
        return super().trainable(stack, {*self.layers(stack)[0].down_proj.active, *names})


class OnlyTheTrainable(Right):
    def trainable(self, stack, names):
        for mlp in self.layers(stack):
            mlp.down_proj.active = set(names)
        return super().trainable(stack, names)


class NoGradient(Right):
    def attach(self, stack, name, index, count):
        super().attach(stack, name, index, count)
        stack.layers[1].register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), *inputs[1:]))


class Forgetful(Right):
    def load(self, stack, name, directory):
        self.attach(stack, name, 0, 1)


class ExportsNothing(Right):
    def export(self, stacks, blocks, directory):
        pass


class ExportsOne(Right):
    """Writes each stack's adapter over the one before."""

    def export(self, stacks, blocks, directory):
        super().export(stacks[-1:], blocks, directory)


class ExportsTheTime(Right):
    def export(self, stacks, blocks, directory):
        super().export(stacks, blocks, directory)
        (directory / "when.txt").write_text(str(time.time_ns()))


class OnlyYesOrNo(Right):
    unmergeable = True


class WholeSentence(Right):
    unexportable = "Nobody else has it."


class MergesTwice(Right):
    def merge(self, stack, name):
        for mlp in self.layers(stack):
            mlp.down_proj.ups[name].data *= 2
        super().merge(stack, name)


class MergeDropsOthers(Right):
    def merge(self, stack, name):
        super().merge(stack, name)
        for mlp in self.layers(stack):
            mlp.down_proj.active.clear()


class MergeLeavesIt(Right):
    """Merged, but its parameters still take room."""

    def take_off(self, adapted, name):
        adapted.active.discard(name)


WRONG = {
    Breaks: "test_its_blocks_are_graphs_if_it_says_so",
    FreshNoise: "test_attaching_leaves_the_output",
    OnlyTheLatest: "test_attaching_leaves_the_output",
    Idle: "test_an_adapter_is_in_the_path",
    Larger: "test_its_size_is_as_declared",
    FreezesTheStack: "test_the_stack_s_own_weights_are_left",
    TrainsTheStack: "test_only_the_named_train",
    TrainsAll: "test_only_the_named_train",
    OnlyTheTrainable: "test_frozen_adapters_stay_active",
    NoGradient: "test_gradients_reach_the_named",
    Forgetful: "test_files_bring_it_back",
    MergesTwice: "test_merging_keeps_the_output",
    MergeDropsOthers: "test_merging_keeps_the_output",
    MergeLeavesIt: "test_merging_keeps_the_output",
    ExportsNothing: "test_each_stack_s_part_is_exported",
    ExportsOne: "test_each_stack_s_part_is_exported",
    ExportsTheTime: "test_each_stack_s_part_is_exported",
    OnlyYesOrNo: "test_what_it_cannot_do_has_a_reason",
    WholeSentence: "test_what_it_cannot_do_has_a_reason",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_adapters_are_refused(wrong, refuses, tmp_path):
    """Each wrong adapter fails the check that is about it."""
    given = {"tmp_path": tmp_path} if "files" in WRONG[wrong] or "exported" in WRONG[wrong] else {}
    if not any(word in WRONG[wrong] for word in ("merging", "exported", "reason")):
        given["stack"] = frozen_stack()
    raised = (RuntimeError,) if wrong is Breaks else ()  # torch says where
    refuses(AdapterContract(), WRONG[wrong], *raised, adapter=wrong(None), **given)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(AdapterContract, WRONG.values())
