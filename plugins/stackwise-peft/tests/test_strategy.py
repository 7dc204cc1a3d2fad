"""Ranks and alphas by stack, and what is counted of them."""

import pytest

from stackwise_core.errors import UsageError
from stackwise_core.testing.small import frozen_stack, small_rack
from stackwise_peft.ia3 import Ia3
from stackwise_peft.lora import Dora, Lora
from stackwise_peft.options import Ia3Options, LoraOptions
from stackwise_peft.strategy import alpha_of, rank_of


def ranks(count=4, **options):
    return [rank_of(LoraOptions(**options), index, count) for index in range(count)]


def alphas(count=4, **options):
    return [alpha_of(LoraOptions(**options), index, count) for index in range(count)]


def progressive(pattern, growth="interpolated", **options):
    return {"strategy": "progressive", "rank_pattern": pattern, "pattern_growth": growth, **options}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rank": 8}, [8, 8, 8, 8]),
        # 16 x 4^(k/3), rounded; 16 x 4^(-k/3)
        (progressive("increasing"), [16, 25, 40, 64]),
        (progressive("decreasing"), [16, 10, 6, 4]),
        (progressive("increasing", rank=1, span=2.0), [1, 1, 2, 2]),
        (progressive("decreasing", rank=2, span=100.0), [2, 1, 1, 1]),
        (progressive("increasing", "doubling"), [16, 32, 64, 128]),
        (progressive("decreasing", "doubling", rank=7), [7, 3, 1, 1]),
        (progressive("constant", alpha_pattern="increasing"), [16, 16, 16, 16]),
        ({"strategy": "variable", "ranks": (4, 5, 6, 7)}, [4, 5, 6, 7]),
        ({"strategy": "variable", "ranks": {0: 4, 3: 32}}, [4, 16, 16, 32]),
    ],
)
def test_ranks_of_four_stacks(options, expected):
    """Each strategy gives these, worked out by hand."""
    assert ranks(**options) == expected


@pytest.mark.parametrize("growth", ["interpolated", "doubling"])
@pytest.mark.parametrize("pattern", ["increasing", "decreasing"])
def test_one_stack_has_the_rank_itself(pattern, growth):
    """There is nothing to progress along."""
    assert ranks(1, **progressive(pattern, growth, alpha_pattern=pattern)) == [16]
    assert alphas(1, **progressive(pattern, growth, alpha_pattern=pattern)) == [32.0]


def test_alpha_follows_its_own_pattern():
    """It is neither rounded nor capped, and goes its way whatever the rank's."""
    up = progressive("decreasing", "doubling", alpha_pattern="increasing")
    assert alphas(**up) == [32.0, 64.0, 128.0, 256.0]
    down = progressive("constant", alpha_pattern="decreasing", alpha=1.0, span=8.0)
    assert alphas(**down) == pytest.approx([1, 0.5, 0.25, 0.125])
    assert alphas(**progressive("increasing")) == [32.0] * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((4, 8), "expected 4, one a stack, found 2"),
        ({4: 8}, "stack 4 isn't among the 4 of the rack"),
    ],
)
def test_ranks_must_fit_the_rack(given, message):
    """The number of stacks is known when a rack is, which is before anything runs."""
    adapter = Lora(LoraOptions(strategy="variable", ranks=given))
    with pytest.raises(UsageError, match=message):
        adapter.size(small_rack(1, 1, 1, 1), 0)


def test_sizes_by_hand():
    """64 wide, keys and values 32, feed-forward 192, two blocks in the second stack."""
    rack = small_rack(1, 2)
    # q, o: 64 + 64; k, v: 64 + 32; gate, up, down: 64 + 192
    assert Lora(LoraOptions(rank=4)).size(rack, 0) == 4 * (2 * 128 + 2 * 96 + 3 * 256) == 4864
    assert Lora(LoraOptions(rank=4)).size(rack, 1) == 2 * 4864
    # and a magnitude for each output
    assert Dora(LoraOptions(rank=4)).size(rack, 0) == 4864 + 2 * 64 + 2 * 32 + 2 * 192 + 64
    # a rank of 40 is 32 on keys and values
    assert Lora(LoraOptions(rank=40, target_modules=("k_proj", "q_proj"))).size(rack, 0) == 32 * 96 + 40 * 128
    assert Ia3(Ia3Options()).size(rack, 1) == 2 * (32 + 32 + 192)
    assert Ia3(Ia3Options(target_modules=("q_proj", "up_proj"))).size(rack, 0) == 64 + 64


@pytest.mark.parametrize("kind", [Lora, Dora])
@pytest.mark.parametrize("options", [{"rank": 50}, {"rank": 1000, "target_modules": ("v_proj", "down_proj")}])
def test_capped_ranks_are_as_declared(kind, options):
    """An adapter has the declared size where a projection is narrower than the rank, and others are not."""
    adapter, stack = kind(LoraOptions(**options)), frozen_stack()
    adapter.attach(stack, "it", 0, 1)
    assert sum(each.numel() for each in adapter.trainable(stack, ["it"])) == adapter.size(small_rack(2), 0)


def test_the_cap_leaves_alpha():
    """Where the rank is capped, the scale is alpha over the rank that there is."""
    stack = frozen_stack()
    Lora(LoraOptions(rank=40, alpha=10.0)).attach(stack, "it", 0, 1)
    attention = stack.layers[0].self_attn
    assert attention.q_proj.scaling["it"] == 10.0 / 40
    assert attention.k_proj.scaling["it"] == 10.0 / 32
