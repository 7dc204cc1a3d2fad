import math

import pytest
import torch
from attrs import evolve

from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.rack.rack import INTO_RESIDUAL, new_ends, new_stack
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.phase import Phase
from stackwise_precision.floats import Bf16, Fp16, Fp32
from stackwise_precision.fp8 import Fp8
from stackwise_precision.options import Fp8Options, Fp16Options
from tests.masters_in_memory import ADAPTERS, MASK, SPEC, Shelf, placement, trained


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("path", "new", "neighbour"), [((0, 1), 1, 0), ((1, 2), 1, 2), ((0, 2), 2, 0), ((0, 1, 2), 1, 0)]
)
def test_a_copy_is_its_neighbour_to_the_bit(path, new, neighbour):
    """Appended it is the stack below it in the path, prepended the one above, and its weights are its own."""
    held = placement(masters=trained(*set(path) - {new}))
    held.place(Phase(name="copy", path=path, trains={new}, start="copy"))
    assert equal(held.stack(new).state_dict(), held.loader.masters.read_stack(neighbour))
    with torch.no_grad():
        held.stack(new).norm.weight.add_(1)
    assert not equal(held.stack(new).state_dict(), held.stack(neighbour).state_dict())


def test_stacks_that_begin_together_copy_what_was_there():
    """Not one another, and each the one that the phase names."""
    held = placement(masters=trained(0))
    held.place(Phase(name="all", path=(0, 1, 2), trains={0, 1, 2}, start="copy", copies=((1, 0), (2, 0))))
    for new in (1, 2):
        assert equal(held.stack(new).state_dict(), held.loader.masters.read_stack(0))


@pytest.mark.parametrize("path", [(0, 1), (1, 2)])
def test_a_stack_of_zero_output_changes_nothing_at_first(path):
    """Hidden states leave it as they came, to the bit, though its other weights are random."""
    held = placement(masters=trained(0 if path == (0, 1) else 2))
    held.place(Phase(name="silent", path=path, trains={1}, start="zero_output"))
    hidden = torch.randn(2, 12, 32)
    forward = Forward(held, window=4)
    assert torch.equal(forward.through(1, hidden, forward.context(torch.ones(2, 12))), hidden)
    random = new_stack(SPEC, 1, seed=0).state_dict()
    for name, tensor in held.stack(1).state_dict().items():
        if name.endswith(INTO_RESIDUAL):
            assert not tensor.any()
        elif name != "norm.weight":
            assert torch.equal(tensor, random[name])


class Watched(Shelf):
    """Masters that remember which stacks were read."""

    def __init__(self, shelf=()) -> None:
        super().__init__()
        self.update(shelf)
        self.reads: list[int] = []

    def read_stack(self, index):
        self.reads.append(index)
        return super().read_stack(index)


FIRST = Phase(name="first", path=(0,), trains={0})
SECOND = Phase(name="second", path=(0, 1), trains={1})


def train(held: Placement, index: int) -> None:
    """Change a stack that trains, and write its masters."""
    with torch.no_grad():
        for parameter in held.stack(index).parameters():
            parameter.add_(0.25)
    held.loader.masters.write_stack(index, held.master(index))


@pytest.mark.parametrize("trunk", [Fp32(None), Bf16(None), Fp8(Fp8Options())], ids=["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_trained_stack_joins_the_trunk_from_memory(trunk, streams):
    """Where its masters were just written they aren't read, and its bits are those that reading gives."""
    held = placement(masters=Watched(), trunk=trunk)
    held.place(FIRST)
    train(held, 0)
    held.were_written(FIRST.trains)
    held.place(SECOND, streams=streams)
    masters = held.loader.masters
    reread = placement(masters=Watched(masters), trunk=trunk)
    reread.bring((0,), active=())
    with held.visiting(0):
        assert equal(held.tensors(0), reread.tensors(0))
    assert masters.reads == ([0] if streams and not trunk.quantises else [])  # which has no codes to be read


def test_a_new_stack_takes_the_written_norm_below_it():
    """From memory, as it stands in the file; also where a precision of the trunk rounds."""
    held = placement(masters=Watched(), trunk=Bf16(None))
    held.place(FIRST)
    train(held, 0)
    held.were_written(FIRST.trains)
    held.place(SECOND)
    assert torch.equal(held.stack(1).norm.weight, held.loader.masters[0]["norm.weight"])
    assert held.loader.masters.reads == []


@pytest.mark.parametrize("between", ["let go", "trained on"])
def test_masters_that_may_be_others_are_read(between):
    """Where a stack was let go of since, or another phase began, memory isn't taken for the file."""
    held = placement(masters=Watched(), trunk=Fp8(Fp8Options()))
    held.place(FIRST)
    train(held, 0)
    held.were_written(FIRST.trains)
    if between == "let go":
        held.let_go([0])
    else:
        held.place(FIRST)
    held.loader.masters[0]["norm.weight"].add_(1)
    held.place(SECOND)
    assert held.loader.masters.reads
    assert torch.equal(held.stack(0).norm.weight, held.loader.masters[0]["norm.weight"])


def test_start_is_for_new_stacks_only():
    """A stack that was trained comes back as it was, whatever the phase says of new ones."""
    masters = trained(0, 1)
    held = placement(masters=masters)
    for start in ("copy", "zero_output"):
        held.place(Phase(name=start, path=(0, 1), trains={1}, start=start))
        assert equal(held.stack(1).state_dict(), masters[1])
        held.bring((0,), active=())


def test_a_new_stack_is_read_through_the_norm_below_it():
    """It is nearly the identity at first; at the bottom there is none."""
    held = placement(masters=trained(0, 2))
    held.bring((0, 1, 2), active={1})
    assert torch.equal(held.stack(1).norm.weight, held.loader.masters[0]["norm.weight"])
    assert torch.equal(held.stack(1).layers[0].mlp.up_proj.weight, new_stack(SPEC, 1, 0).layers[0].mlp.up_proj.weight)


def test_only_the_path_is_in_memory():
    """What a phase doesn't pass isn't there."""
    held = placement(masters=trained(0, 1, 2))
    held.bring((0, 1, 2), active={2})
    held.bring((1,), active={1})
    assert [index in held for index in range(3)] == [False, True, False]


def test_a_stack_is_at_its_role_s_precision():
    """From the trunk it comes back into training from its full-precision master."""
    masters = trained(0, 1)
    held = placement(masters=masters, trunk=Bf16(None))
    held.bring((0, 1), active={1})
    assert held.tensors(0)["layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    held.bring((0, 1), active={0})
    assert equal(held.stack(0).state_dict(), masters[0])
    assert held.tensors(1)["layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def requiring(held: Placement) -> set[str]:
    return {name for name, _ in held.trainable()}


def test_a_phase_unfreezes_just_what_it_names():
    """Stacks, embedding with the time's, head, and of the exit norms the last one where its stack trains."""
    spec = evolve(SPEC, tie_embeddings=False, time_encoding="sinusoidal")
    held = placement(spec, trained(0, 1, 2))

    def unfrozen(**phase) -> set[str]:
        held.place(Phase(name="x", **phase))
        return {".".join(name.split(".")[:2]) + (".norm" if ".norm." in name else "") for name in requiring(held)}

    every = range(3)
    assert unfrozen(path=every, trains=every, embedding=True, head=True) == {
        "embed_tokens.weight",
        "embed_time.weight",
        "lm_head.weight",
        "stacks.0",
        "stacks.1",
        "stacks.2",
        "stacks.2.norm",
    }
    assert unfrozen(path=every, trains={0}) == {"stacks.0"}
    assert unfrozen(path=every, trains={2}, head=True) == {"stacks.2", "stacks.2.norm", "lm_head.weight"}
    assert unfrozen(path=every, trains=(), embedding=True) == {"embed_tokens.weight", "embed_time.weight"}


def test_each_stack_may_have_ends_of_its_own():
    """Begun alike, loaded and trained apart, those of the path alone in memory; shared ends are one."""
    held = placement(evolve(SPEC, ends="per_stack"), trained(0, 1, 2))
    assert held.owners == (0, 1, 2)
    assert held.ends(1) is not held.ends(0)
    weight = torch.rand(40, 32)
    held.load_ends({1: {"embed_tokens.weight": weight}})
    begun = new_ends(SPEC, MASK, 0).embed_tokens.weight
    assert torch.equal(held.ends(1).embed_tokens.weight, weight)
    assert torch.equal(held.ends(0).embed_tokens.weight, begun)
    held.place(Phase(name="x", path=[1], trains={1}, embedding=True, head=True))
    assert [(owner, ends.embed_tokens.weight.requires_grad) for owner, ends in held.all_ends()] == [(1, True)]
    ids = torch.tensor([[3, 4]])
    assert torch.equal(Forward(held, window=4).embed(1, ids, torch.zeros(1)), weight[ids])
    shared = placement()
    assert shared.ends(2) is shared.ends(0)
    assert [owner for owner, _ in shared.all_ends()] == [None]
    held.keep_all_ends()
    held.bring((0,), active=())
    assert [owner for owner, _ in held.all_ends()] == [1, 0, 2]


def test_what_is_given_is_not_drawn(monkeypatch):
    """Ends that were written or loaded come into memory without drawing what they take the place of."""
    monkeypatch.setattr("stackwise_core.engine.rack.rack.fill", lambda wanted: asked.append(len(wanted)))
    asked = []
    spec = evolve(SPEC, tie_embeddings=False)
    weights = {"embed_tokens.weight": torch.rand(40, 32), "lm_head.weight": torch.rand(40, 32)}
    placement(spec).load_ends({None: weights})
    placement(spec).load_ends({None: {"embed_tokens.weight": torch.rand(40, 32)}})
    assert asked == [0, 1]
    assert placement(spec).ends(0) is not None
    assert asked == [0, 1, 2]


def adapter_weights(held: Placement, index: int, name: str) -> dict[str, torch.Tensor]:
    """A stack's adapter by the names of its tensors."""
    tensors = held.adapter_weights(index)
    return {key: tensors[key].detach().clone() for key in tensors if f".{name}." in key}


@pytest.mark.parametrize("place", [0, 2])
def test_fresh_adapters_depend_on_seed_name_and_place_alone(place):
    """Not on what was drawn before, nor on the other adapter."""

    def fresh(seed: int, names: tuple[str, ...], index: int, name: str) -> dict[str, torch.Tensor]:
        held = placement(masters=trained(0, 1, 2), seed=seed)
        held.bring((index,), active=(), adapters={index: names})
        return adapter_weights(held, index, name)

    alone = fresh(3, ("stack",), place, "stack")
    assert equal(fresh(3, ("stack", "trunk"), place, "stack"), alone)
    assert not equal(fresh(4, ("stack",), place, "stack"), alone)
    assert not equal(fresh(3, ("stack",), 1, "stack"), alone)


def test_an_adapter_comes_back_as_it_was_saved(tmp_path):
    """From its files, whenever its stack is brought, whether the phase names it or not."""
    masters = trained(0)
    held = placement(masters=masters)
    held.bring((0,), active=(), adapters={0: ["trunk"]})
    with torch.no_grad():
        for tensor in held.adapter_weights(0).values():
            tensor.add_(0.5)
    left = adapter_weights(held, 0, "trunk")
    held.save_adapter(0, "trunk", tmp_path)
    masters.files[0, "trunk"] = tmp_path
    for names in ((), ("trunk",), ("stack",)):
        held.let_go({0})
        held.bring((0,), active=(), adapters={0: names})
        assert equal(adapter_weights(held, 0, "trunk"), left)
        assert [each for each in ("stack", "trunk") if ADAPTERS[each] in held.adapters(0)] == sorted({"trunk", *names})


def test_a_stack_stays_while_its_adapters_and_role_do():
    """What is in memory already isn't read again; another adapter or role, or letting go, brings it anew."""
    held = placement(masters=trained(0, 1))
    held.bring((0,), active=())
    before = held.stack(0)
    held.bring((0, 1), active={1})
    assert held.stack(0) is before
    for change in (
        lambda: held.bring((0,), active=(), adapters={0: ["stack"]}),
        lambda: held.bring((0,), active={0}, adapters={0: ["stack"]}),
        lambda: (held.let_go({0}), held.bring((0,), active={0}, adapters={0: ["stack"]})),
    ):
        change()
        assert held.stack(0) is not before
        before = held.stack(0)


def test_a_quantised_stack_is_kept_as_it_was_prepared():
    """It is made from the master once and read back to the bit; floats are not kept, nor is a stack that trains."""
    masters, fp8 = trained(0, 1), Fp8(Fp8Options())
    held = placement(masters=masters, trunk=fp8)
    held.bring((0, 1), active={1})
    assert list(masters.prepared) == [0]
    made = {name: tensor.clone() for name, tensor in held.tensors(0).items()}
    again = placement(masters=masters, trunk=fp8)
    masters[0] = {name: tensor + 1 for name, tensor in masters[0].items()}  # would show if it were made again
    again.bring((0,), active=())
    assert made.keys() == again.tensors(0).keys()
    assert all(torch.equal(made[name].view(torch.uint8), again.tensors(0)[name].view(torch.uint8)) for name in made)
    plain = placement(masters=trained(0), trunk=Bf16(None))
    plain.bring((0,), active=())
    assert plain.loader.masters.prepared == {}


def test_stacks_have_precisions_of_their_own():
    """When they are frozen; a stack that trains is at the active precision whatever it is named."""
    held = placement(masters=trained(0, 1, 2), trunk=Fp8(Fp8Options()), stacks={1: Bf16(None), 2: Bf16(None)})
    held.bring((0, 1, 2), active={2})
    up_proj = [held.stack(index).layers[0].mlp.up_proj for index in range(3)]
    assert type(up_proj[0]) is not torch.nn.Linear
    assert (up_proj[1].weight.dtype, up_proj[2].weight.dtype) == (torch.bfloat16, torch.float32)
    held.bring((0, 1, 2), active={1})
    assert held.stack(1).layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert held.stack(2).layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_phase_unfreezes_just_the_adapters_that_it_names():
    """Beside weights that train or over frozen ones; a stack that has two trains the one that is named."""
    held = placement(masters=trained(0, 1), trunk=Fp8(Fp8Options()))

    def unfrozen(**phase) -> set[tuple[str, ...]]:
        held.place(Phase(name="x", path=(0, 1), **phase))
        found = {tuple(name.split(".")) for name in requiring(held)}
        return {(part, stack, *((rest[-2],) if part == "adapters" else ())) for part, stack, *rest in found}

    both = {"trains": {1}, "adapts": {0}}
    assert unfrozen(**both, adapters=((0, "stack"), (0, "trunk"))) == {
        ("stacks", "1"),
        ("adapters", "0", "stack"),
        ("adapters", "0", "trunk"),
    }
    # Each call begins anew, since nothing was saved: only what is named is there.
    assert unfrozen(**both, adapters=((0, "trunk"),)) == {("stacks", "1"), ("adapters", "0", "trunk")}
    assert unfrozen(trains={1}, adapters=((1, "stack"),)) == {("stacks", "1"), ("adapters", "1", "stack")}


def test_an_adapter_that_is_not_named_is_frozen_and_active(tmp_path):
    """It has its part in the output, and no gradient."""
    masters = trained(0)
    held = placement(masters=masters)
    forward = Forward(held, window=4)
    held.place(Phase(name="x", path=[0], trains=(), adapts={0}, adapters=((0, "stack"),)))
    with torch.no_grad():
        for tensor in held.adapter_weights(0).values():
            tensor.add_(0.1)
    held.save_adapter(0, "stack", tmp_path)
    hidden, context = torch.randn(2, 12, 32), forward.context(torch.ones(2, 12))
    with torch.no_grad():
        expected = forward.through(0, hidden, context)
    masters.files[0, "stack"] = tmp_path
    held.place(Phase(name="x", path=[0], trains=(), adapts={0}, adapters=((0, "trunk"),)))
    assert {name.split(".")[-2] for name in requiring(held)} == {"trunk"}
    assert torch.equal(forward.through(0, hidden, context), expected)  # a fresh LoRA changes nothing


def test_a_weight_that_the_trunk_cannot_hold_is_named_with_its_stack():
    """Beyond fp16, and not a number in full precision; whatever the format, the stack and the tensor are said."""
    for trunk, value, said in (
        (
            Fp16(Fp16Options()),
            70000.0,
            r"^stack 1, layers\.0\.mlp\.up_proj\.weight can't be held in fp16: 70000 at \[2, 3\]",
        ),
        (Fp32(None), math.nan, r"^stack 1, layers\.0\.mlp\.up_proj\.weight isn't finite: nan at \[2, 3\]"),
        (Fp8(Fp8Options()), math.inf, r"^stack 1, layers\.0\.mlp\.up_proj\.weight isn't finite: inf at \[2, 3\]"),
    ):
        masters = Shelf()
        for index in range(3):
            masters.write_stack(index, new_stack(SPEC, index, seed=1).state_dict())
        masters[1]["layers.0.mlp.up_proj.weight"][2, 3] = value
        rack = placement(masters=masters, trunk=trunk)
        rack.bring((0,), active=())
        with pytest.raises(StackwiseError, match=said):
            rack.bring((0, 1), active=())


class Careless(Fp16):
    """A stranger's fp16, which looks at nothing."""

    def prepare(self, stack, *, trainable):
        stack.to(torch.float16)


def test_a_precision_that_makes_infinite_weights_is_to_blame():
    """The core looks at what any plugin made of finite masters, and names the plugin, the stack and the tensor."""
    masters = Shelf()
    masters.write_stack(0, new_stack(SPEC, 0, seed=1).state_dict())
    rack = placement(masters=masters, trunk=Careless(Fp16Options()))
    rack.bring((0,), active=())
    masters[0]["layers.0.mlp.up_proj.weight"][2, 3] = 70000.0
    rack.let_go([0])
    with pytest.raises(
        ContractError, match=r"prepare\(\) left layers\.0\.mlp\.up_proj\.weight of stack 0 with numbers"
    ):
        rack.bring((0,), active=())


def test_ends_that_are_not_finite_are_refused():
    """An embedding with a NaN in it is named when it is loaded."""
    ends = new_ends(SPEC, MASK, seed=2).state_dict()
    ends["embed_tokens.weight"][4, 5] = math.nan
    with pytest.raises(StackwiseError, match=r"^embed_tokens\.weight isn't finite: nan at \[4, 5\]"):
        placement().load_ends({None: ends})
