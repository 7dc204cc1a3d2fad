"""The loop written by hand does the rack's mathematics, so that the engine is measured against the same work."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from stackwise_core.engine.rack.rack import new_ends, new_stack
from stackwise_core.interfaces.rack_spec import RackSpec
from tests.benchmarks.steps.by_hand import BLOCK, Batch, HandWritten, Widths

MASK_ID = 40
SPEC = RackSpec(blocks=(1, 2), vocab_size=48, seq_len=12, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, init_std=0.3)
WIDTHS = Widths(
    heads=4,
    kv_heads=2,
    norm_eps=SPEC.norm_eps,
    rope_theta=SPEC.rope_theta,
    mask_id=MASK_ID,
    dtype=torch.float32,
    lr=1e-2,
    weight_decay=0.1,
    max_grad_norm=0.5,
)


def rack():
    """Embedding and head, and two stacks."""
    ends = new_ends(SPEC, MASK_ID, seed=1)
    return ends, [new_stack(SPEC, index, seed=1) for index in range(2)]


def blocks_of(stack):
    """The weights of a stack's blocks, by name."""
    return [{name: layer.state_dict()[name] for name in BLOCK} for layer in stack.layers]


def batch():
    """Three sequences, a third of whose tokens are masked."""
    drawn = torch.Generator().manual_seed(2)
    tokens = torch.randint(MASK_ID, (3, SPEC.seq_len), generator=drawn)
    masked = torch.arange(0, tokens.numel(), 3)
    inputs = tokens.flatten().index_fill(0, masked, MASK_ID).view_as(tokens)
    return Batch(inputs, masked, tokens.flatten()[masked], torch.rand(len(masked), generator=drawn) / len(masked))


def loss_of(ends, stacks, batch, trains):
    """The loss that the rack's modules give, whose upper stacks train."""
    context = ends.context(torch.ones_like(batch.inputs, dtype=torch.int32))
    hidden = ends.embed(batch.inputs, torch.zeros(len(batch.inputs), dtype=torch.float64))
    for index, stack in enumerate(stacks):
        with torch.set_grad_enabled(index in trains):
            hidden = stack(hidden, context)
    logits = ends.predictions(hidden.flatten(0, 1)[batch.masked], stacks[-1].norm)
    return (batch.weights * cross_entropy(logits, batch.targets, reduction="none")).sum()


@pytest.mark.parametrize("recomputes", [False, True])
def test_all_that_trains_has_the_racks_loss_and_gradient(recomputes):
    """End to end, in fp32, with grouped heads; whether or not activations are computed again."""
    (ends, stacks), drawn = rack(), batch()
    hand = HandWritten(
        WIDTHS,
        ends.embed_tokens.weight,
        (),
        [blocks_of(stack) for stack in stacks],
        stacks[-1].norm.weight,
        embedding_trains=True,
        recomputes=recomputes,
    )
    expected, found = loss_of(ends, stacks, drawn, {0, 1}), hand.loss(drawn)
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected)
    layers = [layer for stack in stacks for layer in stack.layers]
    weights = [dict(layer.named_parameters())[name] for layer in layers for name in BLOCK]
    theirs = [stacks[-1].norm.weight, *weights, ends.embed_tokens.weight]
    for one, other in zip(hand.parameters, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_frozen_trunk_and_an_input_that_is_there_give_the_same():
    """The last stack's loss and norm, from the tokens through frozen blocks, or from what leaves them."""
    (ends, stacks), drawn = rack(), batch()
    expected = loss_of(ends, stacks, drawn, {1})
    with torch.no_grad():
        context = ends.context(torch.ones_like(drawn.inputs, dtype=torch.int32))
        hidden = stacks[0](ends.embed_tokens(drawn.inputs), context)
    found = []
    for trunk, given in ((blocks_of(stacks[0]), drawn), ((), drawn._replace(hidden=hidden))):
        hand = HandWritten(
            WIDTHS,
            ends.embed_tokens.weight,
            trunk,
            [blocks_of(stacks[1])],
            stacks[1].norm.weight,
            embedding_trains=False,
        )
        found.append([hand.step(given) for _ in range(3)])
    torch.testing.assert_close(found[0][0][0], expected.detach())
    torch.testing.assert_close(found[0], found[1])


def test_steps_move_weights_as_clipped_adamw_does():
    """By its definition, with decay on matrices alone."""
    (ends, stacks), drawn = rack(), batch()
    weights, norm = blocks_of(stacks[0]), stacks[0].norm.weight
    hand = HandWritten(WIDTHS, ends.embed_tokens.weight, (), [weights], norm, embedding_trains=True)
    hand.loss(drawn).backward()
    gradients = [each.grad.clone() for each in hand.parameters]
    before = [each.detach().clone() for each in hand.parameters]
    hand._optimizer.zero_grad()
    _, whole = hand.step(drawn)
    assert whole > WIDTHS.max_grad_norm
    for one, old, gradient in zip(hand.parameters, before, gradients, strict=True):
        clipped = gradient * WIDTHS.max_grad_norm / (whole + 1e-6)
        decayed = old * (1 - WIDTHS.lr * WIDTHS.weight_decay) if old.ndim == 2 else old
        expected = decayed - WIDTHS.lr * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(one.detach(), expected, rtol=1e-4, atol=1e-6)
