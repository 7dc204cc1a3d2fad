import math

import pytest
import torch

from stackwise_core.engine.evaluation.validation import Plateau
from stackwise_core.engine.events.events import Validated
from stackwise_core.errors import StackwiseError
from tests.tiny import run_tiny


def test_a_plateau_is_so_many_validations_without_a_new_best():
    """A gain starts the count again; a tie is no gain; without a patience there is none."""
    plateau = Plateau(2)
    assert [plateau.reached(loss) for loss in (3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.5)] == [
        False,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert not any(Plateau(None).reached(1.0) for _ in range(100))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    changes = {"training.epochs_per_stack": 1, "evaluation.every": 5, "evaluation.sequences": 7}
    return run_tiny(tmp_path_factory.mktemp("validation"), changes)


def validation_of(ran, phase: int):
    return ran.engine.validation(ran.plan.phases[phase])


@pytest.mark.slow
def test_the_loss_is_the_objective_over_validation_text(ran):
    """Seven sequences of the validation split, sequence by sequence, through the whole path."""
    validation, forward = validation_of(ran, 2), ran.engine.forward
    split, total, scored = ran.setup.corpus.validation, 0.0, 0
    assert validation.drawer.split is split
    places = [round(at * (len(split) - 1) / 6) for at in range(7)]
    for sample in places:
        draws = validation.drawer.draw([sample], 0)
        with torch.no_grad():
            hidden, context = (
                forward.placement.ends(0).embed_tokens(draws.inputs),
                forward.placement.ends(0).context(draws.segments),
            )
            for index in range(3):
                hidden = forward.placement.stack(index)(hidden, context)
            logits = forward.placement.stack(2).norm(hidden)[0] @ forward.placement.ends(0).embed_tokens.weight.T
        logits[:, 256] = -torch.inf
        losses = torch.nn.functional.cross_entropy(logits[draws.masked], draws.targets, reduction="sum")
        total += float(losses) * 0.75 / (0.15 + 0.75 * draws.progress.item())
        scored += int((draws.segments > 0).sum())
    assert validation.loss(forward, range(3)) == pytest.approx(total / scored, rel=1e-5)
    assert validation.loss(forward, range(3)) == validation.loss(forward, range(3))


def test_a_predictor_that_knows_nothing_has_the_logarithm_of_the_vocabulary(tmp_path, monkeypatch):
    """Under the mean over masked tokens, at any depth."""
    changes = {"training.steps_per_stack": 1, "training.over": "depth", "evaluation.every": 5}
    ran = run_tiny(tmp_path, changes)
    ends = ran.engine.placement.ends(0)
    monkeypatch.setattr(ends, "logits", lambda hidden, norm: hidden.new_zeros(*hidden.shape[:-1], 258))
    for phase in range(3):
        loss = validation_of(ran, phase).loss(ran.engine.forward, range(phase + 1))
        assert loss == pytest.approx(math.log(257), abs=1e-6)


def test_validation_is_due_every_so_many_steps(ran):
    """Counted from the phase's first step."""
    assert [step for step in range(1, 21) if validation_of(ran, 0).is_due(step)] == [5, 10, 15, 20]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_causally_documents_of_one_token_have_no_part_in_it(tmp_path, batch_size):
    """Held-out text of which most rows have nothing to predict is measured on the others, as the evaluation does."""
    documents = ["a"] * 70 + ["The sun shone upon the hills, and the rain had not yet come."] + ["b"] * 70
    (tmp_path / "held_out.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in documents))
    changes = {
        "data.validation": str(tmp_path / "held_out.jsonl"),
        "objective": "clm",
        "rack.attention": "causal",
        "rack.stacks": 1,
        "training.steps_per_stack": 2,
        "training.batch_size": batch_size,
        "training.patience": 1,
        "evaluation.every": 1,
    }
    ran = run_tiny(tmp_path, changes)
    validated = [event.loss for event in ran.events if isinstance(event, Validated)]
    assert len(validated) == 2
    assert ran.result.likelihoods[0].tokens == len(documents[70]) - 3  # it lies in three rows
    assert validated[-1] == pytest.approx(ran.result.likelihoods[0].nats_per_token, abs=1e-6)


def test_a_loss_that_is_no_number_is_no_validation(tmp_path):
    """It would be the best there ever was; the stack and the tensor are named instead."""
    changes = {"training.steps_per_stack": 1, "rack.stacks": 2, "evaluation.every": 5, "training.patience": 1}
    ran = run_tiny(tmp_path, changes)
    forward = ran.engine.forward
    validation = validation_of(ran, 1)
    assert math.isfinite(validation.loss(forward, (0, 1)))
    with torch.no_grad():
        forward.placement.stack(1).layers[0].mlp.up_proj.weight[2, 3] = math.nan
    with pytest.raises(
        StackwiseError, match=r"^the held-out text has no loss: stack 1, layers\.0\.mlp\.up_proj\.weight"
    ):
        validation.loss(forward, (0, 1))
