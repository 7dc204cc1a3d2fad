import pytest
from attrs import evolve

from stackwise_core.engine.estimates.pass_estimate import (
    Pass,
    at_work_in_a_block,
    attention_kernel,
    head_at_work,
    head_tensors,
    kept_by_a_block,
    weight_copies,
)
from stackwise_core.interfaces.rack_spec import RackSpec

SPEC = RackSpec(blocks=(2,), vocab_size=5000, seq_len=256, d_model=64, n_heads=4, n_kv_heads=2, d_ff=160)
PASS = Pass(tokens=1024, predicted=500, half=True, on_cpu=False)


@pytest.mark.parametrize(
    ("masked", "half", "grouped", "kernel"),
    [
        (False, True, True, "fused"),
        (True, True, False, "fused with a bias"),
        (True, True, True, "math"),
        (False, False, False, "fused"),
        (False, False, True, "math"),
    ],
)
def test_grouped_queries_under_a_mask_take_the_slow_kernel(masked, half, grouped, kernel):
    """Flash attention takes them without a mask in two bytes, and the other fused kernel not at all."""
    spec = SPEC if grouped else evolve(SPEC, n_kv_heads=4)
    assert attention_kernel(spec, masked=masked, half=half) == kernel


def test_attention_without_a_fused_kernel_keeps_a_number_for_each_pair_of_tokens():
    """Of each head, in fp32; fused, it keeps its inputs, its output and a number a row."""
    fused, math = (sum(kept_by_a_block(SPEC, evolve(PASS, kernel=kernel))) for kernel in ("fused", "math"))
    pairs = 4 * SPEC.n_heads * SPEC.seq_len * PASS.tokens
    assert pairs < math - fused < pairs + 16 * SPEC.d_model * PASS.tokens
    assert at_work_in_a_block(SPEC, evolve(PASS, kernel="math")) > at_work_in_a_block(SPEC, PASS)


def test_a_compiled_block_keeps_less():
    """silu(gate) is computed anew."""
    eager, compiled = (sum(kept_by_a_block(SPEC, evolve(PASS, compiled=each))) for each in (False, True))
    assert eager - compiled == 2 * (SPEC.d_ff + SPEC.d_model) * PASS.tokens


def test_two_bytes_a_number_need_copies_of_the_weights():
    """Autocast's, of those that are in fp32."""
    in_full = evolve(PASS, half=False)
    assert (weight_copies(100, PASS), weight_copies(100, in_full)) == (200, 0)
    assert sum(kept_by_a_block(SPEC, in_full)) > sum(kept_by_a_block(SPEC, PASS))
    assert head_tensors(SPEC, PASS) - head_tensors(SPEC, evolve(PASS, predicted=0)) == 500 * 6 * SPEC.d_model


def test_logits_are_those_of_a_piece():
    """Three tensors in fp32 over the rows that are in memory together, however many tokens are predicted."""
    whole, pieces, few = (head_at_work(SPEC, evolve(PASS, rows=rows), trains=False) for rows in (None, 100, 1000))
    assert whole == few == 12 * 500 * SPEC.vocab_size
    assert pieces == 12 * 100 * SPEC.vocab_size
    assert head_at_work(SPEC, evolve(PASS, rows=1), trains=True) > 6 * SPEC.vocab_size * SPEC.d_model
