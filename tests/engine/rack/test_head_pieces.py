"""The head in pieces of rows, against the whole."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from stackwise_core.engine.events.events import Validated
from stackwise_core.engine.objective.mask_diffusion import MaskDiffusion
from stackwise_core.engine.rack import head_pieces
from stackwise_core.engine.rack.head_pieces import ROWS_MULTIPLE, losses_in_pieces, piece_rows, weighted_loss
from stackwise_core.interfaces.component import ContractError
from tests.tiny import run_tiny

VOCAB, WIDTH, TOKENS, MASK = 37, 16, 2 * ROWS_MULTIPLE + 83, 36
PARTS = {"mask_id": MASK, "rows": ROWS_MULTIPLE}


def squares(logits, targets):
    """Losses that a plugin might have: a token's cross entropy squared, beside a term of all its logits."""
    possible = logits[:, :MASK]
    return cross_entropy(logits, targets, reduction="none") ** 2 + 0.1 * possible.logsumexp(1) ** 2


def plain(logits, targets):
    """Cross entropies."""
    return cross_entropy(logits, targets, reduction="none")


def inputs(dtype, seed=0):
    """Hidden states, head, targets and weights."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, MASK, (TOKENS,), generator=generator)
    return hidden, head, targets, torch.rand(TOKENS, generator=generator, dtype=torch.float64)


def whole(hidden, head, targets, weights, losses_of, dtype):
    """The weighted sum, with all logits at once."""
    logits = linear(hidden.to(dtype), head.to(dtype))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = losses_of(logits.index_fill(1, torch.tensor([MASK]), -torch.inf), targets)
    return (weights.to(losses) * losses).sum()


ERRORS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Norm of the difference over the norm, by the number format of the products."""


@pytest.mark.parametrize("losses_of", [plain, squares])
@pytest.mark.parametrize("dtype", list(ERRORS))
def test_losses_and_gradients_are_those_of_the_whole(dtype, losses_of):
    """For cross entropies and a plugin's losses, in fp64 to 1e-12, in others to their rounding."""
    held = torch.float64 if dtype == torch.float64 else torch.float32
    found = []
    for of in (weighted_loss, whole):
        hidden, head, targets, weights = inputs(held)
        given = {**PARTS, "dtype": dtype} if of is weighted_loss else {"dtype": dtype}
        loss = of(hidden, head, targets, weights, losses_of, **given)
        (0.25 * loss / TOKENS).backward()  # as a loss scaler and the step's normaliser multiply it
        assert hidden.grad.dtype == head.grad.dtype == held
        found.append((loss.detach(), hidden.grad, head.grad))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < ERRORS[dtype]


@pytest.mark.parametrize("trains", ["hidden", "head", "nothing"])
def test_only_what_trains_gets_a_gradient(trains):
    """A frozen head, or frozen hidden states, leave the other's gradient as it is."""
    hidden, head, targets, weights = inputs(torch.float64)
    weighted_loss(hidden, head, targets, weights, plain, dtype=torch.float64, **PARTS).backward()
    expected = {"hidden": hidden.grad, "head": head.grad}
    again, frozen_head, *_ = inputs(torch.float64)
    given = {"hidden": again, "head": frozen_head}
    for name, tensor in given.items():
        tensor.requires_grad_(name == trains)
    loss = weighted_loss(again, frozen_head, targets, weights, plain, dtype=torch.float64, **PARTS)
    assert loss.requires_grad is (trains != "nothing")
    if loss.requires_grad:
        loss.backward()
    for name, tensor in given.items():
        assert tensor.grad is None if name != trains else torch.equal(tensor.grad, expected[name])


def test_gradients_add_up_over_forward_passes():
    """A head that has a gradient already keeps it, and the hidden states' own reach what is below them."""
    hidden, head, targets, weights = inputs(torch.float64)
    below = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
    for factor in (1.0, 2.0):
        (factor * weighted_loss(hidden * below, head, targets, weights, plain, dtype=torch.float64, **PARTS)).backward()
    ours = head.grad, below.grad
    hidden, head, targets, weights = inputs(torch.float64)
    below = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
    (3 * whole(hidden * below, head, targets, weights, plain, torch.float64)).backward()
    for each, theirs in zip(ours, (head.grad, below.grad), strict=True):
        torch.testing.assert_close(each, theirs, rtol=1e-12, atol=1e-12)


def test_a_head_without_a_gradient_takes_the_tensor_itself(monkeypatch):
    """No second tensor of the head's size is made when the gradient arrives there."""
    made = []

    def zeros_like(like, make=torch.zeros_like):
        zeros = make(like)
        made.append((zeros.shape, zeros.data_ptr()))
        return zeros

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    hidden, head, targets, weights = inputs(torch.float32)
    (weighted_loss(hidden, head, targets, weights, plain, dtype=torch.float32, **PARTS) / 7).backward()
    assert (head.shape, head.grad.data_ptr()) in made


def test_losses_of_pieces_are_those_of_the_whole():
    """Those that an evaluation reads, in the order of the tokens."""
    hidden, head, targets, _ = inputs(torch.float64)
    with torch.no_grad():
        losses = losses_in_pieces(hidden, head, targets, plain, dtype=torch.float64, **PARTS)
        logits = linear(hidden, head).index_fill(1, torch.tensor([MASK]), -torch.inf)
    torch.testing.assert_close(losses, plain(logits, targets), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["trains", "measured"])
def test_no_two_pieces_have_logits_at_once(way):
    """A piece's logits are gone when those of the next one are there."""
    seen = []

    def watched(logits, targets):
        assert len(logits) <= ROWS_MULTIPLE
        assert all(storage() is None for storage in seen)
        seen.append(weak(logits))
        return plain(logits, targets)

    hidden, head, targets, weights = inputs(torch.float32)
    with torch.set_grad_enabled(way == "trains"):
        weighted_loss(hidden, head, targets, weights, watched, dtype=torch.float32, **PARTS)
    assert len(seen) == 3
    assert all(storage() is None for storage in seen)


def weak(tensor):
    """Return a function that gives a tensor's storage while anything holds it."""
    from torch.multiprocessing.reductions import StorageWeakRef

    reference = StorageWeakRef(tensor.untyped_storage())
    return lambda: None if reference.expired() else reference


def test_rows_of_a_piece_are_whole_multiples(monkeypatch, device):
    """As many as the device's room for logits holds, and never none."""
    monkeypatch.setitem(head_pieces.PIECE_NUMBERS, device.type, 1000 * ROWS_MULTIPLE)
    assert [piece_rows(size, device) for size in (100, 300, 1000, 1001, 10**6)] == [
        10 * ROWS_MULTIPLE,
        3 * ROWS_MULTIPLE,
        ROWS_MULTIPLE,
        ROWS_MULTIPLE,
        ROWS_MULTIPLE,
    ]


@pytest.fixture
def small_pieces(monkeypatch, device):
    """A function that makes the head compute 32 rows at a time."""

    def shrink():
        monkeypatch.setitem(head_pieces.PIECE_NUMBERS, device.type, 1)
        monkeypatch.setattr(head_pieces, "ROWS_MULTIPLE", 32)

    return shrink


JOINT = {"trainer_mode": {"use": "end_to_end"}, "training.epochs_per_stack": 1, "evaluation.every": 2}
RUNS = {
    "tied": JOINT | {"rack.tie_embeddings": True, "training.gradient_accumulation": 2},
    "untied": JOINT | {"rack.tie_embeddings": False},
    "clm": JOINT | {"objective": "clm", "rack.attention": "causal"},
    "mlm": JOINT | {"objective": {"use": "mlm", "random": 0.1, "keep": 0.1}},
    "time": JOINT | {"training.time": "input"},
    "frozen head": {"training.epochs_per_stack": 1},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_run_is_the_same_in_pieces(tmp_path, small_pieces, changes):
    """Losses of steps, of validations and of depths, to the rounding of fp32."""
    whole = run_tiny(tmp_path / "whole", changes)
    small_pieces()
    ran = run_tiny(tmp_path / "pieces", changes)
    assert ran.losses == pytest.approx(whole.losses, rel=1e-4)
    assert ran.losses != whole.losses
    assert validated(ran) == pytest.approx(validated(whole), rel=1e-4)
    for ours, theirs in zip(ran.result.likelihoods, whole.result.likelihoods, strict=True):
        assert ours.nats_per_token == pytest.approx(theirs.nats_per_token, rel=1e-4)


def validated(ran):
    """Losses on held-out text while a run trained."""
    return [event.loss for event in ran.events if isinstance(event, Validated)]


@pytest.mark.parametrize("active", ["fp32", "bf16"])
def test_streamed_stacks_give_the_same_bits_in_pieces(tmp_path, small_pieces, active):
    """Tied head and all, over several forward passes."""
    small_pieces()
    changes = RUNS["tied"] | {"precision": {"active": active, "trunk": active}}
    in_memory, streamed = (
        run_tiny(tmp_path / residency, changes | {"training.residency": residency})
        for residency in ("memory", "stream")
    )
    assert in_memory.losses == streamed.losses


def test_an_objective_s_mistake_is_named(tmp_path, small_pieces, monkeypatch):
    """As clearly as where the logits are one tensor."""
    monkeypatch.setattr(MaskDiffusion, "losses", lambda self, logits, targets: logits)
    small_pieces()
    with pytest.raises(ContractError, match=r"losses\(\) gave a tensor \[32, 258\], expected one number for each"):
        run_tiny(tmp_path, JOINT)
