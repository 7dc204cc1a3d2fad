from attrs import evolve

from stackwise_core.engine.estimates.pass_estimate import (
    Pass,
    head_at_work,
    head_tensors,
    kept_by_a_block,
    kept_by_kernels,
    weight_copies,
)
from stackwise_core.interfaces.rack_spec import RackSpec

SPEC = RackSpec(blocks=(2,), vocab_size=5000, seq_len=256, d_model=64, n_heads=4, n_kv_heads=2, d_ff=160)
PASS = Pass(tokens=1024, predicted=500, half=True, on_cpu=False)


def test_attention_in_full_precision_keeps_keys_of_each_head():
    """Its kernel takes no grouped ones; nothing grows with the square of the tokens."""
    alone = evolve(SPEC, n_kv_heads=4)
    for half, shared in ((True, True), (False, False)):
        grouped, each = (sum(kept_by_a_block(spec, evolve(PASS, half=half))) for spec in (SPEC, alone))
        assert (grouped < each) == shared
    longer = evolve(SPEC, seq_len=4 * SPEC.seq_len)
    assert kept_by_a_block(longer, PASS) == kept_by_a_block(SPEC, PASS)


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


def test_a_cpu_keeps_kernels_for_the_numbers_of_rows_that_it_meets():
    """In two bytes, and more of them the more those numbers differ; a CUDA device has none."""
    on_cpu = evolve(PASS, on_cpu=True)
    same, some, more = (kept_by_kernels(SPEC, evolve(on_cpu, spread=spread)) for spread in (0, 64, 128))
    assert 0 < same < some < more
    assert kept_by_kernels(SPEC, evolve(PASS, spread=64)) == 0
    assert kept_by_kernels(SPEC, evolve(on_cpu, half=False, spread=64)) == 0
