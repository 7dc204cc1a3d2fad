import numpy as np
import pytest
import torch

from stackwise_core.builtin.options import AdamWOptions
from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.draws.draws import corrupt
from stackwise_core.engine.loop.adamw import AdamW
from stackwise_core.engine.loop.optimizer import make_optimizer
from tests.llama import llama_like
from tests.tiny import backward, run_tiny


def test_unmasked_positions_have_no_part_in_the_loss(tmp_path):
    """Other true ids at unmasked positions leave the loss as it is, and the gradient there is nil."""
    ran = run_tiny(tmp_path, {"training.epochs_per_stack": 1})
    forward, split = ran.engine.forward, ran.setup.corpus.train
    samples = np.arange(4)
    rows = split.rows(samples)
    mask = np.random.default_rng(0).random(rows.tokens.shape) < 0.4
    progress = torch.full((4,), 0.4, dtype=torch.float64)
    draws = corrupt(rows, samples, mask, 256, progress, progress)

    hidden = forward.embed(0, draws.inputs, draws.fraction).detach().requires_grad_()
    masked, targets = (each.to(forward.device) for each in (draws.masked, draws.targets))
    losses = forward.cross_entropy(2, hidden.flatten(0, 1).index_select(0, masked), targets)
    losses.sum().backward()
    gradient = hidden.grad.abs().sum(-1).cpu().numpy()
    assert (gradient[mask] > 0).all()
    assert (gradient[~mask] == 0).all()

    tokens = np.where(mask, rows.tokens, (rows.tokens + 7) % 256).astype(rows.tokens.dtype)
    other = corrupt(type(rows)(tokens, rows.segments), samples, mask, 256, progress, progress)
    assert torch.equal(other.targets, draws.targets)
    assert torch.equal(other.masked, draws.masked)
    assert not torch.equal(other.inputs, draws.inputs)


def llama_of(forward, mask_id: int):
    """The rack as transformers' Llama, with a vocabulary that lacks the mask token."""
    spec = forward.placement.spec
    llama = llama_like(spec, spec.vocab_size - 1)
    embedding = forward.placement.ends(0).embed_tokens.weight
    keep = torch.arange(spec.vocab_size, device=embedding.device) != mask_id
    state = {"model.embed_tokens.weight": embedding[keep], "lm_head.weight": embedding[keep]}
    state["model.norm.weight"] = forward.placement.stack(spec.stacks - 1).norm.weight
    blocks = [block for index in range(spec.stacks) for block in forward.placement.stack(index).layers]
    for place, block in enumerate(blocks):
        state |= {f"model.layers.{place}.{name}": tensor for name, tensor in block.state_dict().items()}
    missing, unexpected = llama.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    return llama


def test_the_causal_loss_and_its_gradient_are_those_of_transformers_llama(tmp_path):
    """On the same weights: labels shifted by one, the mean over a sequence of one document."""
    mode = {"trainer_mode": {"use": "end_to_end"}, "objective": "clm", "rack.attention": "causal"}
    ran = run_tiny(tmp_path, mode | {"training.steps_per_stack": 4, "training.max_grad_norm": 0.0})
    forward, engine = ran.engine.forward, ran.engine
    forward.placement.place(ran.plan.phases[0].phase)
    llama = llama_of(forward, mask_id=256)
    draws = engine.training_drawer(ran.plan.phases[0]).draw([2, 5], 0)
    assert (draws.segments == 1).all()
    ids = draws.inputs
    assert int(ids.max()) < 256
    expected = llama(ids, labels=ids).loss
    expected.backward()
    _, loss = backward(engine, ran.plan.phases[0], [2, 5])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    theirs = dict(llama.named_parameters())
    for place in range(3):
        for name, parameter in forward.placement.stack(place).layers[0].named_parameters():
            expected = theirs[f"model.layers.{place}.{name}"].grad
            torch.testing.assert_close(parameter.grad.cpu(), expected, rtol=1e-3, atol=1e-5)


def test_each_part_has_its_own_learning_rate():
    """block_lr by stack, embedding_lr for both embeddings, head_lr, all times the phase's factor; matrices decay."""
    training = TrainingConfig(
        block_lr=1e-3, embedding_lr=2e-3, head_lr=3e-3, stack_lr_multipliers={1: 0.5, 2: 0.0}, weight_decay=0.1
    )
    shapes = {
        "embed_tokens.weight": (4, 2),
        "embed_time.weight": (2, 2),
        "lm_head.weight": (4, 2),
        "stacks.0.layers.0.mlp.up_proj.weight": (2, 2),
        "stacks.1.layers.0.mlp.up_proj.weight": (2, 2),
        "stacks.2.layers.0.mlp.up_proj.weight": (2, 2),
        "stacks.10.norm.weight": (2,),
    }
    named = [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
    optimizer = make_optimizer(AdamW(AdamWOptions()), named, training, factor=10)
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in named
        for group in optimizer.param_groups
        if any(parameter is member for member in group["params"])
    }
    rates = (2e-2, 2e-2, 3e-2, 1e-2, 5e-3, 0.0, 1e-2)
    decays = (0.1,) * 6 + (0.0,)
    assert list(found.values()) == [pytest.approx(pair) for pair in zip(rates, decays, strict=True)]


def test_a_last_row_with_nothing_to_predict_is_no_step(tmp_path):
    """Of 129 tokens the last has a row for itself: causally it has four sequences, with masks five."""
    (tmp_path / "text.txt").write_text(("the quick brown fox jumps over a dog " * 20)[: 4 * 32 + 1])
    alone = {
        "data.corpus": str(tmp_path / "text.txt"),
        "data.validation_fraction": 0.0,
        "rack.stacks": 1,
        "training.batch_size": 1,
        "training.epochs_per_stack": 1,
        "training.max_bad_steps": 0,
    }
    causal = run_tiny(tmp_path, alone | {"objective": "clm", "rack.attention": "causal"})
    assert (len(causal.setup.corpus.train), causal.result.phases[0].steps, causal.result.phases[0].bad_steps) == (
        4,
        4,
        0,
    )
    assert np.isfinite(causal.losses).all()
    left_out = "1 sequence without a token that has one of its document before it is left out"
    assert any(note.startswith(left_out) for note in causal.plan.notes)
    for objective in ("mask_diffusion", "mlm"):
        masked = run_tiny(tmp_path, alone | {"objective": objective})
        assert (len(masked.setup.corpus.train), masked.result.phases[0].bad_steps) == (5, 0)
