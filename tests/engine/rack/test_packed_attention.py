import pytest
import torch
import torch.nn.functional as F

from stackwise_core.engine.rack.attention_context import Documents
from stackwise_core.engine.rack.packed_attention import attend_on_cuda, packed_attention

SEGMENTS = {
    "documents in a row": [[1] * 7 + [2] * 12 + [3], [1] * 20, [1] * 20, [1] * 10 + [2] * 10],
    "padding": [[1] * 7 + [2] * 9 + [0] * 4, [0] * 20],
    "special tokens within": [[0] + [1] * 5 + [0] + [1] * 4 + [0, 2, 2, 0, 3, 2, 2, 2, 3], [1, 0] * 10],
}


def through_a_mask(q, k, v, segments, causal):
    """Attend with everybody's view written out: bool [B, 1, T, T]."""
    segments = torch.tensor(segments)
    visible = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    visible = visible.tril() if causal else visible
    visible = visible | torch.eye(segments.shape[1], dtype=torch.bool)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=True).transpose(1, 2)


def drawn(rows, kv_heads, dtype):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, 20, heads, 16, dtype=dtype, generator=generator).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_packed_documents_are_attended_to_as_through_a_mask(segments, causal, kv_heads, dtype):
    """Outputs and gradients, with and without key-value heads of their own."""
    expected_of, packed_of = drawn(len(segments), kv_heads, dtype), drawn(len(segments), kv_heads, dtype)
    expected = through_a_mask(*expected_of, segments, causal)
    documents = Documents.of(torch.tensor(segments)).on(torch.device("cpu"))
    packed = packed_attention(*packed_of, documents, causal=causal)
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(packed, expected, rtol=error, atol=error)
    arriving = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    expected.backward(arriving)
    packed.backward(arriving)
    for one, other in zip(packed_of, expected_of, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=error, atol=4 * error)


def test_a_document_has_the_same_bits_whatever_lies_beside_it():
    """Alone in its row or packed, in whichever row."""
    q, k, v = (each.detach() for each in drawn(4, 4, torch.float32))
    documents = Documents.of(torch.tensor(SEGMENTS["documents in a row"])).on(torch.device("cpu"))
    packed = packed_attention(q, k, v, documents, causal=False)
    alone = packed_attention(*(each[:1, 7:] for each in (q, k, v)), alone_of([1] * 12 + [2]), causal=False)
    assert torch.equal(packed[:1, 7:], alone)


def alone_of(segments):
    return Documents.of(torch.tensor([segments])).on(torch.device("cpu"))


@pytest.mark.parametrize("causal", [False, True])
def test_operations_are_what_torch_asks_of_them(causal):
    """Shapes without data, gradients and aliasing are consistent, as torch.library checks them."""
    q, k, v = (each.flatten(0, 1) for each in drawn(2, 4, torch.float64))
    bounds = torch.tensor([0, 7, 19, 20, 40], dtype=torch.int32)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.stackwise.attend_each, (q, k, v, bounds, causal), test_utils=tests)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "efficient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_a_gpu_are_called_with_arguments_that_fit(dtype, flash):
    """Forwards and backwards on tensors without data, since there may be no GPU here."""
    documents = Documents.of(torch.tensor(SEGMENTS["special tokens within"])).on(torch.device("meta"))
    documents = documents._replace(flash=flash)
    q, k, v = (torch.empty(40, heads, 16, dtype=dtype, device="meta", requires_grad=True) for heads in (4, 2, 2))
    y = attend_on_cuda(q, k, v, documents, causal=True)
    y.sum().backward()
    assert (y.shape, y.dtype) == ((40, 4, 16), dtype)
    assert [each.grad.shape for each in (q, k, v)] == [each.shape for each in (q, k, v)]
