"""Settings that ask for more than there is: what the plan says and prices, against what the engine is given."""

import pytest

from stackwise_core.engine.phases.phase_steps import sample_order
from stackwise_core.engine.phases.setup import Setup, set_up
from stackwise_core.engine.plan.plan import Plan, make_plan
from tests.tiny import run_tiny, tiny_config

ONE = {"rack.stacks": 1, "training.epochs_per_stack": 1}


def planned(tmp_path, changes) -> tuple[Setup, Plan]:
    setup = set_up(*tiny_config(tmp_path, ONE | changes))
    return setup, make_plan(setup)


def notes(tmp_path, changes, about: str) -> list[str]:
    return [note for note in planned(tmp_path, changes)[1].notes if about in note]


def step_sizes(setup: Setup) -> list[int]:
    """Sequences of each step of the first epoch, as the engine takes them."""
    return [sum(map(len, step)) for window in sample_order(setup).epoch(0) for step in window.steps]


def test_a_batch_beyond_the_text_is_planned_as_it_will_be(tmp_path):
    """It costs what a batch of all the text costs, and is said; a batch of just all the text isn't."""
    setup, plan = planned(tmp_path, {"training.batch_size": 10**6})
    whole = len(setup.corpus.train)
    assert step_sizes(setup) == [whole]
    said = f"training.batch_size = 1000000 is more than the {whole} sequences of the training split: a step has no more"
    assert any(note.startswith(said) for note in plan.notes)
    other, as_many = planned(tmp_path, {"training.batch_size": whole})
    assert step_sizes(other) == [whole]
    parts = [each.phases[0].memory for each in (plan, as_many)]
    assert [each.activations for each in parts] == [parts[0].activations] * 2
    assert not [note for note in as_many.notes if "batch_size" in note]


def test_accumulation_beyond_the_text_is_said(tmp_path):
    """Together they ask for more than there is, though a single forward pass doesn't; the run takes what there is."""
    ran = run_tiny(tmp_path, ONE | {"training.batch_size": 16, "training.gradient_accumulation": 100})
    assert ran.result.phases[0].steps == 1
    said = [
        note for note in ran.plan.notes if "training.batch_size x gradient_accumulation = 1600 is more than" in note
    ]
    assert len(said) == 1


@pytest.mark.parametrize(("batch_size", "cut_short"), [(96, True), (52, False), (8, False)])
def test_steps_that_windows_cut_short_are_said(tmp_path, batch_size, cut_short):
    """The average is that of the steps that the engine takes; an epoch's last short step alone is no news."""
    chunks = {"training.window": 104, "training.chunk_tokens": 64, "data.seq_len": 8}  # of eight sequences
    setup, plan = planned(tmp_path, {"training.batch_size": batch_size, **chunks})
    sizes = step_sizes(setup)
    assert sizes[:2] == ([96, 8] if cut_short else [batch_size] * 2)
    said = [note for note in plan.notes if "on average" in note]
    assert len(said) == int(cut_short)
    assert all(note.startswith(f"A step has {sum(sizes) / len(sizes):.3g} sequences on average") for note in said)


def test_a_window_of_less_than_a_chunk_is_said(tmp_path):
    """Chunks are never divided; windows of whole chunks are what they say."""
    about = "training.window = "
    setup, plan = planned(tmp_path, {"training.window": 8, "training.chunk_tokens": 4096, "data.seq_len": 16})
    (said,) = (note for note in plan.notes if about in note)
    whole = len(setup.corpus.train)
    assert said == f"training.window = 8 comes to {whole} sequences: a window holds whole chunks of 256 sequences."
    assert notes(tmp_path, {"training.window": 128}, about) == []


def test_masks_that_no_epoch_comes_to_are_said(tmp_path):
    """Of sixteen masks three epochs use three; the default says nothing, nor do as many epochs."""
    about = "masks_per_sample = 16"
    (said,) = notes(tmp_path, {"training.masks_per_sample": 16, "training.epochs_per_stack": 3}, about)
    assert said.endswith("the text is passed 3 times at most, so that 3 of them are used.")
    assert notes(tmp_path, {"training.masks_per_sample": 16, "training.epochs_per_stack": 16}, about) == []
    assert notes(tmp_path, {"training.masks_per_sample": 16, "training.masks": "resampled"}, about) == []
    clm = {"objective": "clm", "rack.attention": "causal"}
    assert notes(tmp_path, clm, "masks_per_sample") == notes(tmp_path, {}, "masks_per_sample") == []


def test_validations_that_never_come_are_said(tmp_path):
    """With the phases that are too short for one, and sequences beyond the split."""
    there = len(planned(tmp_path, {})[0].corpus.validation)
    (said,) = notes(tmp_path, {"evaluation.sequences": 10**6}, "evaluation.sequences")
    assert said == f"evaluation.sequences = 1000000: the validation split has {there}, and all are used."
    assert notes(tmp_path, {"evaluation.sequences": there}, "evaluation.sequences") == []
    often = {"training.steps_per_stack": 5, "evaluation.every": 6, "training.patience": 1}
    (said,) = notes(tmp_path, often, "evaluation.every")
    assert said == "evaluation.every = 6 is more than the steps of stack 0: no validation, and so no early stop there."
    assert notes(tmp_path, often | {"evaluation.every": 5}, "evaluation.every") == []
