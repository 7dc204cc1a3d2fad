"""One course of training over all phases: learning rates and moments."""

import pytest
import torch
from safetensors.torch import load_file

from stackwise_core.engine.events.events import Event, PhaseDone, StepDone
from stackwise_core.engine.loop.running_phase import RunningPhase
from stackwise_core.engine.phases.learning_rate import learning_rate_factor
from tests.interrupted_runs import break_everywhere
from tests.run_bits import bits
from tests.tiny import Ran, run_tiny

pytestmark = pytest.mark.slow

GROWING = {
    "trainer_mode": {"use": "progressive", "start": "copy", "finale": 0.4},
    "training.course": "run",
    "training.steps_per_stack": 6,
    "rack.stacks": 2,
}


def test_the_learning_rate_has_one_schedule_over_all_phases(tmp_path):
    """Warm-up in the first phase alone, decay in the last: as a single phase of all steps has it."""
    ran = run_tiny(tmp_path, GROWING)
    training = ran.setup.config.training
    found = [event.learning_rate for event in ran.events if isinstance(event, StepDone)]
    expected = [training.block_lr * learning_rate_factor(step, len(found), training) for step in range(len(found))]
    assert len(ran.plan.phases) == 3
    assert found == pytest.approx(expected)
    by_phase = run_tiny(tmp_path / "phase", GROWING | {"training.course": "phase"})
    assert [event.learning_rate for event in by_phase.events if isinstance(event, StepDone)] != pytest.approx(expected)


@pytest.fixture
def watched(monkeypatch) -> list[dict]:
    """The optimizer's state by name at the beginning and at the end of each phase."""
    found: list[dict] = []
    resume, run = RunningPhase._resume, RunningPhase.run

    def look(phase: RunningPhase) -> None:
        found.append({name: _copy(value) for name, value in phase.step.moments})

    def resumed(phase):
        resume(phase)
        look(phase)

    def ran(phase):
        result = run(phase)
        look(phase)
        return result

    monkeypatch.setattr(RunningPhase, "_resume", resumed)
    monkeypatch.setattr(RunningPhase, "run", ran)
    return found


def _copy(value):
    return value.to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("residency", ["memory", "stream"])
def test_what_trains_again_goes_on_with_its_moments_and_a_copy_has_copies(tmp_path, watched, residency):
    """Embedding, stacks and their counts of steps, to the bit; nothing of them is left in the end."""
    changes = GROWING | {"training.residency": residency, "training.offload": "disk"}
    ran = run_tiny(tmp_path, changes)
    first_begins, first, second_begins, second, finale_begins, _ = watched
    assert first_begins == {}
    in_first = {name.split(".", 2)[2]: value for name, value in first.items() if name.startswith("stacks.0.")}
    in_second = {name.split(".", 2)[2]: value for name, value in second_begins.items()}
    assert {name.split(".")[1] for name in second_begins} == {"1"}
    assert in_second.keys() == in_first.keys()
    assert all(torch.equal(in_second[name], in_first[name]) for name in in_first)
    expected = {**first, **second}
    assert {name for name in finale_begins if name.startswith("stacks.")} <= expected.keys()
    assert any(name.startswith("embed_tokens") for name in finale_begins)
    assert any(name.startswith("stacks.0.") for name in finale_begins)
    assert all(torch.equal(value, expected[name]) for name, value in finale_begins.items())
    assert not (ran.directory / "moments").exists()


def test_a_run_of_one_course_resumes_to_the_same_bits(tmp_path):
    """Interrupted in each phase and between them, streamed where stacks train together."""
    changes = GROWING | {"checkpoint.steps": 1, "training.residency": "stream", "training.offload": "disk"}
    undisturbed = run_tiny(tmp_path / "undisturbed", changes)
    directory, lives, _ = break_everywhere(tmp_path / "broken", changes)
    assert len(lives) > 5
    expected, found = bits(undisturbed.directory), bits(directory)
    assert {**found, "config.toml": ""} == {**expected, "config.toml": ""}


def test_moments_are_in_files_by_name_between_phases(tmp_path):
    """Of embedding and head, and of each stack that trained so far."""
    seen: list[set[str]] = []

    def watch(ran: Ran) -> None:
        listener = ran.engine.listener

        def listen(event: Event) -> None:
            if isinstance(event, PhaseDone):
                seen.append({path.name for path in ran.engine.directory.glob("moments/*")})
                if len(seen) == 1:
                    tensors = load_file(ran.engine.directory / "moments" / "000.safetensors")
                    assert "stacks.0.layers.0.mlp.up_proj.weight/exp_avg" in tensors
            listener(event)

        ran.engine.listener = listen

    run_tiny(tmp_path, GROWING, watch)
    both = {"ends.safetensors", "000.safetensors", "001.safetensors"}
    assert seen == [both - {"001.safetensors"}, both, set()]


def test_each_stack_s_own_embedding_has_its_own_moments(tmp_path, watched):
    """Where ends are per stack, those of one aren't another's."""
    mode = {"use": "banded", "shared": "per_stack", "cycles": 2}
    run_tiny(tmp_path, GROWING | {"trainer_mode": mode, "rack.stacks": 2})
    begins, ends = watched[::2], watched[1::2]
    assert begins[:2] == [{}, {}]
    for place in (2, 3):  # the second cycle goes on where the first one left the same stack
        assert begins[place].keys() == ends[place - 2].keys()
        assert all(torch.equal(begins[place][name], ends[place - 2][name]) for name in begins[place])


def test_moments_of_what_didn_t_train_last_are_kept(tmp_path, watched):
    """A head that trains in every phase doesn't take the embedding's moments away."""
    changes = {"rack.tie_embeddings": False, "training.head": "trains"}
    run_tiny(tmp_path, GROWING | changes)
    first, second, finale_begins = watched[1], watched[3], watched[4]
    assert any(name.startswith("embed_tokens") for name in first)
    assert not any(name.startswith("embed_tokens") for name in second)
    expected = {**first, **second}
    assert {name.split(".")[0] for name in finale_begins} == {"embed_tokens", "lm_head", "stacks"}
    assert all(torch.equal(value, expected[name]) for name, value in finale_begins.items())


def test_an_adapter_that_was_folded_away_leaves_no_moments(tmp_path, watched):
    """The fresh one of the same name begins without."""
    lora = {"use": "lora", "rank": 2}
    changes = {
        "trainer_mode": {"use": "progressive", "trunk": "adapters"},
        "precision": {"active": "fp32", "trunk": "nvfp4"},
        "adapter": {"trunk": lora, "growth": "merge"},
        "rack.stacks": 3,
    }
    ran = run_tiny(tmp_path, GROWING | changes)
    merging = [place for place, planned in enumerate(ran.plan.phases) if planned.phase.merges]
    assert merging
    for place in merging:
        stacks = {stack for stack, _ in ran.plan.phases[place].phase.merges}
        assert not any(name.startswith(f"adapters.{stack}.") for name in watched[2 * place] for stack in stacks)
        assert any(name.startswith("adapters.") for name in watched[2 * place + 1])
