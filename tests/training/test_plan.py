import shutil

import pytest
from attrs import evolve

from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.training.plan import check_disk, check_phases, make_plan
from stackwise_core.training.setup import select_device, set_up
from stackwise_masking.schedules import Linear
from tests.tiny import run_tiny, tiny_config


def plan_of(tmp_path, changes=None):
    return make_plan(set_up(*tiny_config(tmp_path, changes)))


def test_steps_and_parameters_are_those_of_the_run(tmp_path):
    """What is planned is what happens: steps, tokens' worth of steps, trainable and frozen weights."""
    ran = run_tiny(tmp_path, {"training.batch_size": 7, "training.window": 40})
    assert [planned.steps for planned in ran.plan.phases] == [phase.steps for phase in ran.result.phases]
    spec = ran.setup.spec
    first, second, _ = ran.plan.phases
    assert first.trainable_parameters == spec.stack_parameters(0) + spec.embedding_parameters
    assert (second.trainable_parameters, second.frozen_parameters) == (
        spec.stack_parameters(1),
        first.trainable_parameters,
    )


def test_steps_per_stack_wins_over_epochs(tmp_path):
    """A budget in steps is kept to the step, across epochs."""
    ran = run_tiny(tmp_path, {"training.steps_per_stack": 31})
    assert [phase.steps for phase in ran.result.phases] == [31] * 3


def test_disk_is_what_the_cache_takes(tmp_path):
    """The plan's bytes on disk are the payload that the shards hold at their peak."""
    peak = 0

    def watch(ran):
        listener = ran.engine._listener

        def listen(event):
            nonlocal peak
            shards = ran.engine._directory.cache.glob("*/*.safetensors")
            peak = max(peak, sum(shard.stat().st_size for shard in shards))
            listener(event)

        ran.engine._listener = listen

    # Shards of four: what waits in memory for a shard to fill is not on disk.
    ran = run_tiny(tmp_path, {"cache_backend": {"use": "disk", "shard_entries": 4}}, before=watch)
    planned = max(phase.disk for phase in ran.plan.phases)
    assert planned == pytest.approx(peak, rel=0.1)


def test_flops_of_end_to_end_training_are_what_torch_counts(tmp_path):
    """The estimate is within a few per cent of torch's own count of every operation of the run."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    changes = {
        "trainer_mode": {"use": "end_to_end"},
        "data.validation_fraction": 0.0,
        "training.steps_per_stack": 5,
        "training.batch_size": 64,
    }
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ran = run_tiny(tmp_path, changes)
    assert ran.plan.phases[0].flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_cache_makes_the_plan_cheaper(tmp_path):
    """Reading boundaries costs less than running the trunk again, and the plan says so."""
    cached, recomputed = plan_of(tmp_path), plan_of(tmp_path, {"cache_backend": None})
    assert cached.phases[2].flops < recomputed.phases[2].flops
    assert cached.phases[0].flops == recomputed.phases[0].flops


def test_memory_counts_what_trains(tmp_path):
    """Gradients and optimizer state are those of one stack, whatever the depth; end to end they are the rack's."""
    blockwise = plan_of(tmp_path, {"rack.stacks": 6})
    whole = plan_of(tmp_path, {"rack.stacks": 6, "trainer_mode": {"use": "end_to_end"}})
    assert len({planned.memory.optimizer for planned in blockwise.phases[1:]}) == 1
    assert whole.phases[0].memory.optimizer == 8 * whole.spec.parameters
    assert whole.phases[0].memory.total > blockwise.phases[-1].memory.total


def test_what_is_never_trained_is_said(tmp_path):
    """Where the phases' bands leave gaps in (0, 1], the plan says which fractions are trained."""

    def said(changes):
        return " ".join(plan_of(tmp_path, changes).notes)

    assert "the mask fractions 15-90 % and no others" in said({})
    assert "the mask fractions 15 %, 52.5 %, 90 % and no others" in said({"training.over": "depth"})
    whole = {"mask_schedule": {"use": "cosine", "min_fraction": 0.0, "max_fraction": 1.0}}
    assert "no others" not in said(whole)
    assert "no others" not in said(whole | {"training.over": "both"})


def test_a_phase_without_masks_is_refused(tmp_path):
    """Over depth a schedule from 0 leaves the first stack nothing to predict."""
    schedule = {"use": "linear", "min_fraction": 0.0}
    with pytest.raises(UsageError, match=r'phase "stack 0" has the mask fraction 0.*min_fraction'):
        plan_of(tmp_path, {"training.over": "depth", "mask_schedule": schedule})


def test_a_phase_may_settle_its_own_weighting(tmp_path):
    """What a mode asks for wins over what the configuration leaves open."""

    class Mean(TrainerMode):
        def plan(self, rack, training):
            return [Phase(name="x", path=(0,), trains={0}, embedding=True, head=True, weighting="mean")]

    setup = set_up(*tiny_config(tmp_path))
    plan = make_plan(evolve(setup, implementations=evolve(setup.implementations, mode=Mean(None))))
    assert plan.phases[0].phase.weighting == "mean"


def test_one_fixed_mask_is_warned_of(tmp_path):
    """A stack that always sees the same mask of a sample overfits to it."""
    assert any("masks_per_sample = 1" in note for note in plan_of(tmp_path, {"training.masks_per_sample": 1}).notes)
    assert not any("masks_per_sample = 1" in note for note in plan_of(tmp_path).notes)


def test_a_cache_that_is_read_once_is_mentioned(tmp_path):
    """With as many draws as epochs a boundary is trained on once."""
    assert any("trained on once" in note for note in plan_of(tmp_path, {"training.epochs_per_stack": 2}).notes)
    assert not any("trained on once" in note for note in plan_of(tmp_path).notes)


def test_a_capacity_that_is_too_small_is_mentioned(tmp_path):
    """The plan says how much the boundaries need, and when even a window doesn't fit."""

    def said(capacity: str, window: int) -> str:
        changes = {"cache_backend": {"use": "disk", "capacity": capacity}, "training.window": window}
        return " ".join(plan_of(tmp_path, changes).notes)

    assert "capacity = 500 kB is less than the 819 kB" in said("500 kB", 64)
    assert "capacity = 100 kB doesn't hold the 410 kB of two windows" in said("100 kB", 1024)
    assert "capacity" not in said("1 MB", 64)


def test_phases_that_share_no_draws_share_no_boundaries(tmp_path):
    """Over depth each phase has masks of its own, so the whole trunk runs again, and the plan prices that."""
    time, depth = plan_of(tmp_path), plan_of(tmp_path, {"training.over": "depth"})
    assert [planned.made_from_below for planned in time.phases] == [False, False, True]
    assert [planned.made_from_below for planned in depth.phases] == [False, False, False]
    on_disk = {"cache_backend": {"use": "disk"}}
    assert (
        plan_of(tmp_path, on_disk).phases[2].disk
        == 2 * plan_of(tmp_path, on_disk | {"training.over": "depth"}).phases[2].disk
    )
    growth = [plan.phases[2].flops - plan.phases[1].flops for plan in (time, depth)]
    assert growth[1] > growth[0]


def test_the_bound_is_refused_where_it_means_nothing(tmp_path):
    """One mask fraction has no band; masks that aren't independent have no such weight."""
    constant = {"mask_schedule": {"use": "constant"}, "training.weighting": "nelbo"}
    with pytest.raises(UsageError, match=r"has the one mask fraction 0\.5"):
        plan_of(tmp_path, constant)

    class Spans(Linear):
        def place(self, tokens, scorable, fraction, rng):
            raise AssertionError

    setup = set_up(*tiny_config(tmp_path, {"training.weighting": "nelbo"}))
    spans = evolve(setup.implementations, schedule=Spans(setup.implementations.schedule.options))
    with pytest.raises(UsageError, match="independently masked"):
        make_plan(evolve(setup, implementations=spans))
    open_weighting = set_up(*tiny_config(tmp_path))
    left_open = make_plan(evolve(open_weighting, implementations=spans))
    assert {planned.phase.weighting for planned in left_open.phases} == {"mean"}


def test_a_schedule_that_breaks_its_contract_is_refused(tmp_path):
    """A third-party schedule that overshoots, turns or has no slope is named before anything runs."""

    class TooMuch(Linear):
        def fraction(self, progress):
            return 1.5 * progress

    class ThereAndBack(Linear):
        def fraction(self, progress):
            return 4 * progress * (1 - progress)

    class WithoutSlope(Linear):
        def fraction(self, progress):
            return progress.detach()

    setup = set_up(*tiny_config(tmp_path))
    for schedule, message in (
        (TooMuch, r"TooMuch gave the fraction 1\.\d+, outside of"),
        (ThereAndBack, "ThereAndBack rises and falls between 0 and 1"),
        (WithoutSlope, "WithoutSlope can't be differentiated"),
    ):
        with pytest.raises(StackwiseError, match=message):
            make_plan(evolve(setup, implementations=evolve(setup.implementations, schedule=schedule(None))))


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase(name="x", path=(0, 3), trains={0}), "path"),
        (Phase(name="x", path=(0, 0), trains={0}), "path"),
        (Phase(name="x", path=(0,), trains={1}), "isn't in its path"),
        (Phase(name="x", path=(0,), trains=()), "trains nothing"),
        (Phase(name="x", path=(0,), trains={0}, head=True), "transpose"),
        (Phase(name="x", path=(0,), trains={0}, progress=(0.5, 1.5)), "progress"),
        (Phase(name="x", path=(0,), trains={0}, epochs=0), "has no budget"),
        (Phase(name="x", path=(0,), trains={0}, masks_per_sample=0), "has no budget"),
        (Phase(name="x", path=(0, 1), trains={1}, adapts={0}), "no adapters"),
        ("no phase", "no list of phases"),
    ],
)
def test_a_plan_that_makes_no_sense_is_the_mode_s_fault(tmp_path, phase, message):
    """The engine refuses what it can't execute, and names mode and phase."""
    spec = set_up(*tiny_config(tmp_path)).spec
    with pytest.raises(StackwiseError, match=message) as refused:
        check_phases([phase], spec, "mine")
    assert 'trainer mode "mine"' in str(refused.value)


def test_boundaries_that_do_not_fit_on_the_disk_are_refused(tmp_path, monkeypatch):
    """The message says what is needed, what is free, and which keys change it."""
    plan = plan_of(tmp_path, {"cache_backend": {"use": "disk"}})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UsageError, match=r"need .* on disk, and .* has 1 kB free.*cache_backend\.capacity"):
        check_disk(plan, tmp_path / "not" / "there" / "yet")


def test_a_missing_cuda_device_is_unavailable():
    """run.device = "cuda" never falls back to the processor."""
    import torch

    if torch.cuda.is_available():
        assert select_device("cuda").type == "cuda"
        return
    with pytest.raises(StackwiseError, match="finds no CUDA device") as refused:
        select_device("cuda")
    assert refused.value.exit_code == 3
    assert select_device("auto").type == "cpu"
