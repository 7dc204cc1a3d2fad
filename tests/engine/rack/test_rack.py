import itertools
import math

import pytest
import torch
from attrs import evolve

from stackwise_core.engine.rack.head_pieces import cross_entropies
from stackwise_core.engine.rack.rack import Ends, Stack, TimeEmbedding, new_ends, new_stack
from stackwise_core.interfaces.rack_spec import RackSpec

SPEC = RackSpec(blocks=(2, 1), vocab_size=40, seq_len=24, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
MASK = 39


def forward(ends: Ends, stacks: list[Stack], ids: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a rack, read out at its last stack."""
    context = ends.context(torch.ones_like(ids) if segments is None else segments)
    hidden = ends.embed(ids, torch.zeros(len(ids), dtype=torch.float64))
    for stack in stacks:
        hidden = stack(hidden, context)
    return ends.logits(hidden, stacks[-1].norm)


def rack_of(spec: RackSpec, seed: int = 0) -> tuple[Ends, list[Stack]]:
    return new_ends(spec, MASK, seed), [new_stack(spec, index, seed) for index in range(spec.stacks)]


def llama_state(ends: Ends, stacks: list[Stack]) -> dict[str, torch.Tensor]:
    """The rack's weights under Llama's names: a renaming and nothing else."""
    state = {"model.embed_tokens.weight": ends.embed_tokens.weight, "model.norm.weight": stacks[-1].norm.weight}
    state["lm_head.weight"] = ends.embed_tokens.weight if ends.lm_head is None else ends.lm_head.weight
    blocks = [block for stack in stacks for block in stack.layers]
    for place, block in enumerate(blocks):
        state |= {f"model.layers.{place}.{name}": tensor for name, tensor in block.state_dict().items()}
    return state


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_transformers_llama(tied, kv_heads):
    """With the same weights a causal rack and transformers' Llama give the same logits."""
    from tests.llama import llama_like  # which takes seconds

    spec = evolve(SPEC, attention="causal", tie_embeddings=tied, n_kv_heads=kv_heads, rope_theta=5000.0)
    ends, stacks = rack_of(spec)
    for stack in stacks:  # norms that do something
        for name, parameter in stack.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    llama = llama_like(spec, spec.vocab_size).eval()
    missing, unexpected = llama.load_state_dict(llama_state(ends, stacks), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    ids = torch.randint(0, spec.vocab_size, (3, spec.seq_len))
    with torch.no_grad():
        torch.testing.assert_close(forward(ends, stacks, ids), llama(ids).logits, rtol=1e-5, atol=1e-6)


def test_bidirectional_attention_sees_later_tokens_and_causal_does_not():
    """A change of the last token reaches the first position only without causal attention."""
    ids = torch.randint(0, 30, (1, 10))
    other = ids.clone()
    other[0, -1] += 1
    for attention, reaches in (("bidirectional", True), ("causal", False)):
        rack = rack_of(evolve(SPEC, attention=attention))
        first, second = forward(*rack, ids)[0, 0], forward(*rack, other)[0, 0]
        assert torch.equal(first, second) is not reaches


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_documents_of_a_row_do_not_see_each_other(attention):
    """A document packed beside others and padding gives the logits that it gives alone."""
    ends, stacks = rack_of(evolve(SPEC, attention=attention))
    ids = torch.randint(0, 30, (1, 20))
    segments = torch.tensor([[1] * 7 + [2] * 9 + [0] * 4])
    packed = forward(ends, stacks, ids, segments)
    torch.testing.assert_close(packed[:, :7], forward(ends, stacks, ids[:, :7]))
    torch.testing.assert_close(packed[:, 7:16], forward(ends, stacks, ids[:, 7:16]), rtol=1e-4, atol=1e-5)
    assert packed.isfinite().all()


def test_special_token_within_a_document_is_not_attended_to():
    """Changing a token of segment 0 changes no other position."""
    ends, stacks = rack_of(SPEC)
    ids = torch.randint(0, 30, (1, 12))
    other = ids.clone()
    other[0, 5] = 31
    segments = torch.ones_like(ids)
    segments[0, 5] = 0
    first, second = forward(ends, stacks, ids, segments), forward(ends, stacks, other, segments)
    keep = torch.arange(12) != 5
    assert torch.equal(first[:, keep], second[:, keep])
    assert not torch.equal(first[:, 5], second[:, 5])


def test_mask_token_is_never_predicted():
    """Probabilities over all other tokens sum to one."""
    ends, _ = rack_of(SPEC)
    norm = torch.nn.Identity()
    hidden = torch.randn(1, SPEC.d_model)
    losses = cross_entropies(ends.predictions(hidden, norm).expand(SPEC.vocab_size, -1), torch.arange(SPEC.vocab_size))
    assert losses[MASK].isinf()
    assert float(torch.exp(-losses.detach()).sum()) == pytest.approx(1.0, abs=1e-6)


def test_blocks_begin_alike_however_they_are_cut_into_stacks():
    """A block's first weights depend on its place in the rack alone."""
    cut = evolve(SPEC, blocks=(1, 1, 1))
    together = [block for stack in rack_of(SPEC)[1] for block in stack.layers]
    apart = [block for stack in rack_of(cut)[1] for block in stack.layers]
    for one, other in zip(together, apart, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_weights_depend_on_the_seed_and_differ_between_blocks():
    """No two blocks, and no two seeds, begin alike."""

    def first(seed, index):
        return new_stack(SPEC, index, seed).layers[0].mlp.up_proj.weight

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))


def test_counts_of_parameters_are_those_of_the_modules():
    """The plan's arithmetic counts what the modules hold."""
    times = ({}, {"time_encoding": "sinusoidal"}, {"time_encoding": "learned", "time_fractions": (0.2, 0.6, 1.0)})
    for tied, time in itertools.product((True, False), times):
        spec = evolve(SPEC, tie_embeddings=tied, **time)
        ends, stacks = rack_of(spec)
        held = sum(p.numel() for module in (ends, *stacks) for p in module.parameters())
        assert spec.parameters == held
        assert spec.stack_parameters(0) == sum(p.numel() for p in stacks[0].parameters())


def test_counts_of_flops_are_those_that_torch_counts():
    """A stack's forward pass takes the operations that torch's own counter sees."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    ends, stacks = rack_of(evolve(SPEC, n_kv_heads=4))
    spec = ends.spec
    hidden = torch.randn(2, spec.seq_len, spec.d_model)
    context = ends.context(torch.ones(2, spec.seq_len, dtype=torch.int32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        stacks[0](hidden, context)
    assert counter.get_total_flops() == spec.stack_flops(0) * 2 * spec.seq_len


def test_time_has_no_effect_at_first():
    """A network with a time input begins as the one without it."""
    ids = torch.randint(0, 30, (2, 5))
    fractions = torch.tensor([0.2, 0.9], dtype=torch.float64)
    plain = new_ends(SPEC, MASK, 0).embed(ids, fractions)
    for encoding in ("sinusoidal", "learned"):
        timed = new_ends(evolve(SPEC, time_encoding=encoding, time_fractions=(0.5, 1.0)), MASK, 0)
        assert torch.equal(timed.embed(ids, fractions), plain)
        torch.nn.init.normal_(timed.embed_time.weight)
        added = timed.embed(ids, fractions) - plain
        assert (added.abs().amax(dim=(1, 2)) > 0.1).all()
        torch.testing.assert_close(added, added[:, :1].expand_as(added))  # a sequence's own, at each of its tokens


def test_sinusoidal_time_is_what_the_formula_says():
    """cos and sin of 1000 t / 10000^(2i/D), i = 0..D/2-1, through the projection."""
    embedding = TimeEmbedding(evolve(SPEC, time_encoding="sinusoidal")).double()
    torch.nn.init.eye_(embedding.weight)
    times, width = [0.0, 0.15, 1 / 3, 1.0], SPEC.d_model
    features = embedding(torch.tensor(times, dtype=torch.float64))
    for time, row in zip(times, features.tolist(), strict=True):
        angles = [1000 * time / 10_000 ** (2 * i / width) for i in range(width // 2)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-9)


def test_discrete_time_is_the_nearest_step_s():
    """A learned time has a row a step; a sinusoidal one is that of the step's fraction."""
    steps = (0.25, 0.5, 1.0)
    learned = TimeEmbedding(evolve(SPEC, time_encoding="learned", time_fractions=steps))
    torch.nn.init.normal_(learned.weight)
    asked = torch.tensor([0.5, 0.01, 0.7, 0.8, 1.0], dtype=torch.float64)
    assert torch.equal(learned(asked), learned.weight[[1, 0, 1, 2, 2]])
    sinusoidal = TimeEmbedding(evolve(SPEC, time_encoding="sinusoidal", time_fractions=steps))
    torch.nn.init.normal_(sinusoidal.weight)
    # A matrix product's last bit can depend on how many rows it has.
    of_steps = sinusoidal(torch.tensor(steps, dtype=torch.float64))
    torch.testing.assert_close(sinusoidal(asked), of_steps[[1, 0, 1, 2, 2]], rtol=1e-5, atol=1e-6)
