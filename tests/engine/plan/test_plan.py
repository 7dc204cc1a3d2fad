import shutil

import pytest
import torch
from attrs import evolve, frozen

from stackwise_cache.disk import DiskStore
from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.estimates.disk_estimate import boundary_bytes
from stackwise_core.engine.phases.phase_boundaries import boundaries_by_draw
from stackwise_core.engine.phases.phase_steps import sample_order
from stackwise_core.engine.phases.plan_checks import check_phases, resolve_routes
from stackwise_core.engine.phases.setup import select_device, set_up
from stackwise_core.engine.plan.plan import Plan, make_plan
from stackwise_core.engine.plan.plan_limits import check_disk
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.objective import Objective, ObjectiveOptions
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import BandRoute, Route
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_masking.schedules import Linear
from tests.tiny import run_tiny, telling, tiny_config


def plan_of(tmp_path, changes=None):
    return make_plan(set_up(*tiny_config(tmp_path, changes)))


@pytest.mark.slow
def test_the_runs_own_files_are_counted(tmp_path):
    """Masters of all stacks so far, and as many checkpoints as there can be; on disk with the boundaries."""
    sizes = []

    def listen(event, directory):
        files = [each for each in directory.rglob("*.safetensors") if "cache" not in each.relative_to(directory).parts]
        sizes.append(sum(each.stat().st_size for each in files))

    changes = {"cache_backend": {"use": "disk"}, "checkpoint.steps": 1, "precision.trunk": "nf4"}
    ran = run_tiny(tmp_path, changes, before=telling(listen))
    *_, last = ran.plan.phases
    assert last.on_disk == last.disk + last.run_files
    assert 0.7 * last.run_files < max(sizes) < 1.2 * last.run_files


@pytest.mark.slow
def test_steps_and_parameters_are_those_of_the_run(tmp_path):
    """What is planned is what happens: steps, tokens' worth of steps, trainable and frozen weights."""
    ran = run_tiny(tmp_path, {"training.batch_size": 7, "training.window": 40})
    assert [planned.steps for planned in ran.plan.phases] == [phase.steps for phase in ran.result.phases]
    spec = ran.setup.spec
    first, second, _ = ran.plan.phases
    assert first.trainable_parameters == spec.stack_parameters(0) + spec.embedding_parameters
    # The first stack's exit norm is read no longer.
    assert (second.trainable_parameters, second.frozen_parameters) == (
        spec.stack_parameters(1),
        first.trainable_parameters - spec.d_model,
    )


@pytest.mark.slow
def test_steps_per_stack_wins_over_epochs(tmp_path):
    """A budget in steps is kept to the step, across epochs."""
    ran = run_tiny(tmp_path, {"training.steps_per_stack": 31})
    assert [phase.steps for phase in ran.result.phases] == [31] * 3


@pytest.mark.slow
def test_disk_is_what_the_cache_takes(tmp_path, monkeypatch):
    """The plan's bytes on disk are the payload that the shards hold at their peak, when a chunk was just written."""
    sizes, put = [], DiskStore.put

    def measured(store, keys, entries):
        put(store, keys, entries)
        sizes.append(sum(shard.stat().st_size for shard in tmp_path.glob("runs/*/cache/*/*.safetensors")))

    monkeypatch.setattr(DiskStore, "put", measured)
    # Shards of four: what waits in memory for a shard to fill is not on disk.
    ran = run_tiny(tmp_path, {"cache_backend": {"use": "disk", "shard_entries": 4}})
    assert max(phase.disk for phase in ran.plan.phases) == pytest.approx(max(sizes), rel=0.1)


@pytest.mark.slow
def test_flops_of_end_to_end_training_are_what_torch_counts(tmp_path):
    """The estimate is within a few per cent of torch's own count of every operation of the run."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    uncounted = {  # on a CPU; backwards there are two products for each one forwards
        attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, q, k, v, *_, **__: 2 * sdpa_flop_count(q, k, v)
        ),
    }

    changes = {
        "trainer_mode": {"use": "end_to_end"},
        "data.validation_fraction": 0.0,
        "training.steps_per_stack": 5,
        "training.batch_size": 64,
    }
    plan_of(tmp_path, changes)  # which measures the machine, with operations of its own
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
        ran = run_tiny(tmp_path, changes)
    assert ran.plan.phases[0].flops == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 3}, r"expected phases\[0\].name to be a string, found 3"),
        ({"masks_per_sample": 2.0}, r"expected phases\[0\].masks_per_sample to be an integer, found 2.0"),
        ({"lr": torch.tensor(1.0)}, "Tensor is not JSON serializable"),
    ],
)
def test_a_plan_that_could_not_be_read_again_is_refused(tmp_path, changes, said):
    """A mode's phases have the types of their fields, or a finished run couldn't be used."""

    class Loose(TrainerMode):
        def plan(self, rack, budget):
            phase = Phase(name="all", path=range(rack.stacks), trains=range(rack.stacks), embedding=True, head=True)
            return [evolve(phase, **changes)]

    setup = set_up(*tiny_config(tmp_path))
    with pytest.raises(ContractError, match=rf"^Loose: plan\(\) gave phases that can't be written: .*{said}"):
        make_plan(evolve(setup, implementations=evolve(setup.implementations, mode=Loose(None))))


def test_a_cache_makes_the_plan_cheaper(tmp_path):
    """Reading boundaries costs less than running the trunk again, and the plan says so."""
    cached, recomputed = plan_of(tmp_path), plan_of(tmp_path, {"cache_backend": None})
    assert cached.phases[2].flops < recomputed.phases[2].flops
    assert cached.phases[0].flops == recomputed.phases[0].flops


def test_memory_counts_what_trains(tmp_path):
    """Gradients and optimizer state are those of one stack, whatever the depth; end to end they are the rack's."""
    sizes = {"rack.stacks": 6, "training.batch_size": 64}
    blockwise, whole = plan_of(tmp_path, sizes), plan_of(tmp_path, sizes | {"trainer_mode": {"use": "end_to_end"}})
    assert len({planned.memory.optimizer for planned in blockwise.phases[1:]}) == 1
    # Of the six exit norms only the last has a gradient.
    assert whole.phases[0].memory.optimizer == 8 * (whole.spec.parameters - 5 * whole.spec.d_model)
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


def test_what_is_left_out_of_a_data_set_is_said(tmp_path):
    """The plan names the splits that are trained and measured on, and what else lies there."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text(f"This is the text of {split}. " * 20)
    data = {"corpus": str(folder), "seq_len": 32, "tokens_directory": str(tmp_path / "tokens")}
    plan = plan_of(tmp_path, {"data": data})
    said = f"{folder}: split train is trained on; split validation is measured on; left out: split test."
    assert said in plan.notes


def test_a_phase_without_masks_is_refused(tmp_path):
    """Over depth a schedule from 0 leaves the first stack nothing to predict."""
    schedule = {"use": "linear", "min_fraction": 0.0}
    with pytest.raises(UsageError, match=r'phase "stack 0" has the mask fraction 0.*min_fraction'):
        plan_of(tmp_path, {"training.over": "depth", "mask_schedule": schedule})


def test_a_phase_may_set_its_own_weighting(tmp_path):
    """What a mode asks for wins over what the configuration leaves open."""

    class Mean(TrainerMode):
        def plan(self, rack, budget):
            return [Phase(name="x", path=(0,), trains={0}, embedding=True, head=True, weighting="mean")]

        def routes(self, rack):
            return [Route(path=(0,))]

    setup = set_up(*tiny_config(tmp_path))
    plan = make_plan(evolve(setup, implementations=evolve(setup.implementations, mode=Mean(None))))
    assert plan.phases[0].phase.weighting == "mean"


def test_routes_use_what_was_trained(tmp_path):
    """A rack isn't read through stacks that no phase passes: the modes that train a part have routes of their own."""

    class Half(TrainerMode):
        def plan(self, rack, budget):
            return [Phase(name="x", path=(0,), trains={0}, embedding=True, head=True)]

    setup = set_up(*tiny_config(tmp_path))
    with pytest.raises(StackwiseError, match=r"no phase passes stack 1.*routes\(\) of its own"):
        make_plan(evolve(setup, implementations=evolve(setup.implementations, mode=Half(None))))


def test_time_steps_are_shared_out_whole(tmp_path):
    """A time step that would belong to two stacks in part is refused, over both and in a banded rack."""
    for changes in ({"training.over": "both"}, {"trainer_mode": {"use": "banded"}}):
        plan_of(tmp_path, {**changes, "training.time_steps": 6})
        with pytest.raises(UsageError, match=r"4 time steps can't be divided evenly.*multiple"):
            plan_of(tmp_path, {**changes, "training.time_steps": 4})


def test_nothing_is_masked_in_causal_training(tmp_path):
    """A plan for clm has no band, and a draw a sample."""
    plan = plan_of(tmp_path, {"objective": "clm"})
    assert [planned.band for planned in plan.phases] == [None] * 3
    assert {planned.phase.masks_per_sample for planned in plan.phases} == {1}


def test_a_short_phase_computes_whole_windows(tmp_path):
    """What is planned on disk is what a phase writes that ends within its first window."""
    changes = {"training.steps_per_stack": 2, "training.window": 40, "cache_backend": {"use": "memory"}}
    ran = run_tiny(tmp_path, changes)
    entry = ran.setup.config.data.seq_len * ran.setup.spec.d_model * 2
    order = sample_order(ran.setup)
    for planned, measured in zip(ran.plan.phases[1:], ran.result.phases[1:], strict=True):
        assert boundaries_by_draw(planned.phase, order, cached=True).total() == measured.boundaries_computed
        assert measured.boundaries_computed > 2 * ran.setup.config.training.batch_size
    assert boundary_bytes(ran.plan.phases[1].phase, [], ran.setup) == measured.boundaries_computed * entry


def test_a_file_that_does_not_shrink_counts_until_it_is_dropped(tmp_path):
    """A boundary made from the one below stands beside all of that in LMDB, and beside a shard of it in shards."""
    shards = plan_of(tmp_path, {"cache_backend": {"use": "disk", "shard_entries": 4}})
    lmdb = plan_of(tmp_path, {"cache_backend": {"use": "lmdb", "batch_entries": 4}})
    whole = lmdb.phases[1].disk
    assert [planned.disk for planned in lmdb.phases] == [0, whole, 2 * whole]
    assert whole == shards.phases[1].disk < shards.phases[2].disk < 2 * whole
    both_full = plan_of(tmp_path, {"cache_backend": {"use": "lmdb", "batch_entries": 4, "capacity": whole // 2}})
    assert [planned.disk for planned in both_full.phases] == [0, whole // 2, whole // 2 * 2]


def test_what_a_store_has_no_room_for_counts_as_memory(tmp_path):
    """A window that the capacity doesn't hold is held by the run while it trains."""

    def held(capacity: int) -> int:
        # A step needs more than a window in the trunk does.
        sizes = {"training.batch_size": 64, "rack.blocks_per_stack": 4}
        cache = {"use": "disk", "capacity": capacity, "shard_entries": 1}
        return plan_of(tmp_path, sizes | {"cache_backend": cache}).phases[1].memory.boundaries

    window = 100 * 32 * 32 * 2  # all of the text
    assert held(window // 2) - held(2 * window) == window


def test_a_mode_that_ignores_the_depth_is_refused(tmp_path):
    """A plan that gives each stack the whole schedule, which is to run over depth, isn't what was asked for."""

    @frozen
    class Forgetful(TrainerMode):
        high: float

        def plan(self, rack, budget):
            first = Phase(name="stack 0", path=[0], trains={0}, embedding=True, progress=(0, self.high))
            later = (Phase(name=f"stack {k}", path=range(k + 1), trains={k}, progress=(0, self.high)) for k in (1, 2))
            return [first, *later]

    def planned(over: str, high: float) -> Plan:
        setup = set_up(*tiny_config(tmp_path, {"training.over": over}))
        return make_plan(evolve(setup, implementations=evolve(setup.implementations, mode=Forgetful(high))))

    for over, high in (("depth", 1.0), ("depth", 0.5), ("both", 1.0)):
        with pytest.raises(UsageError, match=rf'over = "{over}".*phase "stack 0" of Forgetful has no place for that'):
            planned(over, high)
    for over, high in (("time", 1.0), ("both", 0.5)):
        assert planned(over, high).phases


def test_one_fixed_mask_is_warned_of(tmp_path):
    """A stack that always sees the same mask of a sample overfits to it."""
    assert any("masks_per_sample = 1" in note for note in plan_of(tmp_path, {"training.masks_per_sample": 1}).notes)
    assert not any("masks_per_sample = 1" in note for note in plan_of(tmp_path).notes)


def test_a_budget_that_another_key_overrides_is_mentioned(tmp_path):
    """Steps win over epochs, also over those that were just typed."""
    said = "training.steps_per_stack is set, so that training.epochs_per_stack says nothing."
    assert said in plan_of(tmp_path, {"training.steps_per_stack": 5, "training.epochs_per_stack": 3}).notes
    assert said not in plan_of(tmp_path, {"training.steps_per_stack": 5, "training.epochs_per_stack": 1}).notes
    assert said not in plan_of(tmp_path).notes


def test_a_rack_of_boundaries_that_nobody_can_keep_is_mentioned(tmp_path):
    """A cache in memory is gone with the run."""
    for use, mentioned in (("memory", True), ("disk", False)):
        notes = plan_of(tmp_path, {"cache_backend": {"use": use, "keep": "rack"}}).notes
        assert any("leaves nothing when the run ends" in note for note in notes) == mentioned


def test_a_cache_that_is_read_once_is_mentioned(tmp_path):
    """With as many draws as epochs a boundary is trained on once."""
    assert any("trained on once" in note for note in plan_of(tmp_path, {"training.epochs_per_stack": 2}).notes)
    assert not any("trained on once" in note for note in plan_of(tmp_path).notes)


def test_a_capacity_that_is_too_small_is_mentioned(tmp_path):
    """The plan says how much the boundaries need."""

    def said(capacity: str, window: int) -> str:
        changes = {"cache_backend": {"use": "disk", "capacity": capacity}, "training.window": window}
        return " ".join(plan_of(tmp_path, changes).notes)

    assert "capacity = 400 kB is less than the 819 kB" in said("400 kB", 64)
    assert "capacity" not in said("1 MB", 64)


def test_phases_that_share_no_draws_share_no_boundaries(tmp_path):
    """Over depth each phase has masks of its own, so the whole trunk runs again, and the plan prices that."""
    time, depth = plan_of(tmp_path), plan_of(tmp_path, {"training.over": "depth"})
    assert [planned.made_from_below for planned in time.phases] == [False, False, True]
    assert [planned.made_from_below for planned in depth.phases] == [False, False, False]
    growth = [plan.phases[2].flops - plan.phases[1].flops for plan in (time, depth)]
    assert growth[1] > growth[0]


def test_the_bound_is_refused_where_it_means_nothing(tmp_path):
    """One mask fraction has no band; masks that aren't independent have no such weight."""
    constant = {"mask_schedule": {"use": "constant"}, "training.weighting": "nelbo"}
    with pytest.raises(UsageError, match=r"has the one mask fraction 0\.5"):
        plan_of(tmp_path, constant)

    class Spans(Linear):
        def place(self, tokens, scorable, fraction, rng):
            return tokens < 0

    setup = set_up(*tiny_config(tmp_path, {"training.weighting": "nelbo"}))
    spans = Noise(Spans(setup.noise.schedule.options))
    with pytest.raises(UsageError, match="independently masked"):
        make_plan(evolve(setup, noise=spans))
    open_weighting = set_up(*tiny_config(tmp_path))
    left_open = make_plan(evolve(open_weighting, noise=spans))
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
        (TooMuch, r"TooMuch: fraction\(\) gave 1\.\d+, expected numbers in \[0, 1\]"),
        (ThereAndBack, r"ThereAndBack: fraction\(\) rises and falls between 0 and 1"),
        (WithoutSlope, r"WithoutSlope: fraction\(\) can't be differentiated"),
    ):
        with pytest.raises(StackwiseError, match=message):
            make_plan(evolve(setup, noise=Noise(schedule(None))))


@pytest.mark.slow
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
        (Phase(name="x", path=(0, 1), trains={1}, adapts={1}), "trains all of a stack, and its adapters only"),
        (Phase(name="x", path=(0, 1), trains={1}, adapts={0}, adapters=((0, "mine"),)), "names adapters"),
        (Phase(name="x", path=(0,), trains={0}, begins=-1), "begins before the first step"),
        (Phase(name="x", path=(0,), trains={0}, lr=-0.5), "negative learning rate"),
        (Phase(name="x", path=(0,), trains={0}, start="copy"), "starts stack 0 as a copy of nothing"),
        (Phase(name="x", path=(0, 1), trains={1}, start="copy"), "starts stack 0 as a copy of stack 1, which wasn't"),
        (Phase(name="x", path=(0,), trains={0}, masks="foo"), "has masks = 'foo', expected 'fixed' or 'resampled'"),
        (Phase(name="x", path=(0,), trains={0}, weighting="foo"), "expected 'nelbo' or 'mean' or None"),
        ("no phase", "no list of phases"),
    ],
)
def test_a_plan_that_makes_no_sense_is_the_mode_s_fault(tmp_path, phase, message):
    """The engine refuses what it can't execute, and names mode and phase."""
    spec = set_up(*tiny_config(tmp_path)).spec
    with pytest.raises(StackwiseError, match=message) as refused:
        check_phases([phase], spec, 'trainer_mode "mine" of mine.py')
    assert str(refused.value).startswith('trainer_mode "mine" of mine.py: ')


def test_a_copy_needs_a_neighbour_of_its_size(tmp_path):
    """It was trained before, lies beside the new one in the path or is named, and has as many blocks."""
    spec = set_up(*tiny_config(tmp_path)).spec
    first = Phase(name="first", path=(0,), trains={0}, embedding=True, head=True)
    copy = Phase(name="x", path=(0, 1), trains={1}, start="copy")
    check_phases([first, copy], spec, "mine")
    check_phases([copy], evolve(spec, given={0}), "mine")
    check_phases([evolve(copy, path=(1, 2))], evolve(spec, given={2}), "mine")
    several = Phase(name="y", path=(0, 1, 2), trains={1, 2}, start="copy")
    with pytest.raises(StackwiseError, match="stack 2 as a copy of stack 1, which wasn't trained before"):
        check_phases([first, several], spec, "mine")
    check_phases([first, evolve(several, copies=((1, 0), (2, 0)))], spec, "mine")
    with pytest.raises(StackwiseError, match="another number of blocks"):
        check_phases([first, copy], evolve(spec, blocks=(2, 1, 1)), "mine")
    with pytest.raises(StackwiseError, match="stack 2 as a copy of nothing"):
        check_phases([first, evolve(copy, path=(2,), trains={2})], spec, "mine")


def test_stacks_with_ends_of_their_own_train_them_one_by_one(tmp_path):
    """A path of several has no one embedding below it and head above it."""
    spec = evolve(set_up(*tiny_config(tmp_path)).spec, ends="per_stack")
    check_phases([Phase(name="x", path=(1,), trains={1}, embedding=True, head=True)], spec, "mine")
    with pytest.raises(StackwiseError, match="each of which has an embedding and a head of its own"):
        check_phases([Phase(name="x", path=(0, 1), trains={1}, embedding=True, head=True)], spec, "mine")


def settled(spec: RackSpec, noise: Noise, *progress: tuple[float, float]) -> tuple[BandRoute, ...]:
    routes = [Route(path=(k,), progress=stretch) for k, stretch in enumerate(progress)]
    return resolve_routes(routes, spec, noise, "mine")


def test_routes_divide_all_mask_fractions_between_them(tmp_path):
    """Also what the schedule leaves out of (0, 1], and under a schedule that falls."""
    setup = set_up(
        *tiny_config(tmp_path, {"mask_schedule": {"use": "linear", "min_fraction": 0.2, "max_fraction": 0.8}})
    )
    halves = ((0.5, 1.0), (0.0, 0.5))
    rising = settled(setup.spec, setup.noise, *halves)
    assert [(route.path, route.band) for route in rising] == [((1,), (0.0, 0.5)), ((0,), (0.5, 1.0))]

    class Falling(Linear):
        def fraction(self, progress):
            return 1 - super().fraction(progress)

    falling = Falling(setup.noise.schedule.options)
    for noise in (Noise(falling), Noise.of(falling, TrainingConfig(time_steps=4))):
        turned = settled(setup.spec, noise, *halves)
        assert [route.path for route in turned] == [(0,), (1,)]
        assert [fraction for route in turned for fraction in route.band] == pytest.approx([0, 0.5, 0.5, 1])
    stepped = settled(setup.spec, Noise(setup.noise.schedule, (0.1, 0.3, 0.7)), (0.0, 1 / 3), (1 / 3, 1.0))
    assert [route.band for route in stepped] == [(0.0, 0.1), (0.1, 1.0)]


@pytest.mark.parametrize(
    "progress", [[], [(0.0, 0.9)], [(0.1, 1.0)], [(0.0, 0.4), (0.5, 1.0)], [(0.0, 0.6), (0.5, 1.0)]]
)
def test_routes_with_gaps_or_overlaps_are_refused(tmp_path, progress):
    """Every mask fraction has one route."""
    setup = set_up(*tiny_config(tmp_path))
    with pytest.raises(StackwiseError, match=r"^mine: routes\(\) gave the progress .*all of \[0, 1\]"):
        settled(setup.spec, setup.noise, *progress)
    with pytest.raises(StackwiseError, match=r"routes\(\) gave a stack that isn't there, expected 0 to 2"):
        resolve_routes([Route(path=(0, 3))], setup.spec, setup.noise, "mine")


@pytest.mark.parametrize(
    ("stacks", "expected"),
    [
        (2, [0.24375, 0.9]),
        (4, [0.24375, 0.43125, 0.7125, 0.9]),
        (8, [0.24375, 0.3375, 0.43125, 0.525, 0.61875, 0.7125, 0.80625, 0.9]),
    ],
)
def test_time_steps_are_spread_over_the_depth(tmp_path, stacks, expected):
    """Eight steps from 15 to 90 %: the first stack has the first, the last one the last, the others theirs between."""
    depth = {"training.over": "depth", "training.time_steps": 8, "rack.stacks": stacks}
    plan = plan_of(tmp_path, depth)
    assert [planned.band for planned in plan.phases] == [pytest.approx((fraction, fraction)) for fraction in expected]
    assert {planned.phase.weighting for planned in plan.phases} == {"mean"}


def test_given_time_steps_are_those_of_the_depth(tmp_path):
    """With a step a stack each has the fraction that the table or the list gives it."""
    depth = {"training.time": "depth", "training.time_steps": 3}
    for fractions in ((0.2, 0.5, 0.8), {0: 0.2, 2: 0.8}):
        plan = plan_of(tmp_path, depth | {"training.time_step_fractions": fractions})
        assert [planned.band[0] for planned in plan.phases] == pytest.approx([0.2, 0.5, 0.8])


def test_stacks_are_counted_as_they_are_built_or_as_they_stand(tmp_path):
    """Prepended, the first to be built is at the top: it has the lightest noise, by position the heaviest."""
    prepend = {"training.over": "depth", "trainer_mode": {"use": "progressive", "building": "prepend"}}
    for index, fractions in (("build", [0.15, 0.525, 0.9]), ("position", [0.9, 0.525, 0.15])):
        plan = plan_of(tmp_path, prepend | {"training.noise_index": index})
        assert [planned.phase.trains for planned in plan.phases] == [{2}, {1}, {0}]
        assert [planned.band[0] for planned in plan.phases] == pytest.approx(fractions)


def test_mlm_is_the_mean_over_masked_tokens(tmp_path):
    """It is no bound, whatever the schedule; clm has one draw a sample."""
    mlm = plan_of(tmp_path, {"objective": "mlm"})
    assert {planned.phase.weighting for planned in mlm.phases} == {"mean"}
    clm = plan_of(tmp_path, {"objective": "clm", "rack.attention": "causal"})
    assert {(p.phase.weighting, p.phase.masks, p.phase.masks_per_sample) for p in clm.phases} == {("mean", "fixed", 1)}


def test_a_mode_can_not_ask_for_a_weighting_that_the_objective_lacks(tmp_path):
    """A plan with ``nelbo`` is refused under mlm, whose loss is no bound."""

    class Bound(TrainerMode):
        def plan(self, rack, budget):
            return [Phase(name="x", path=range(3), trains={0, 1, 2}, embedding=True, head=True, weighting="nelbo")]

    setup = set_up(*tiny_config(tmp_path, {"objective": "mlm"}))
    with pytest.raises(UsageError, match=r'"x" is planned with weighting = "nelbo", which objective "mlm" of'):
        make_plan(evolve(setup, implementations=evolve(setup.implementations, mode=Bound(None))))


def test_an_objective_that_is_a_bound_only_needs_a_band(tmp_path):
    """Without ``mean`` a phase of one mask fraction is refused, and nothing tells to take ``mean``."""

    class BoundOptions(ObjectiveOptions):
        weightings = ("nelbo",)

    setup = set_up(*tiny_config(tmp_path, {"mask_schedule": "constant"}))
    only = evolve(setup.implementations, objective=Objective(BoundOptions()))
    with pytest.raises(UsageError, match=r"no band to bound a likelihood over\. Use a schedule"):
        make_plan(evolve(setup, implementations=only))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inputs, mask, most: inputs.fill(0), r"corrupt\(\) changed a position that isn't masked"),
        (lambda inputs, mask, most: inputs.__setitem__(mask, most), r"corrupt\(\) gave ids outside of 0 to 257"),
    ],
)
def test_a_corruption_that_is_none_is_refused(tmp_path, change, said):
    """Before anything runs, with the objective's name."""

    class Corrupting(Objective):
        def corrupt(self, inputs, tokens, mask, *, mask_id, vocab_size, rng):
            change(inputs, mask, vocab_size)

    setup = set_up(*tiny_config(tmp_path))
    changed = evolve(setup.implementations, objective=Corrupting(ObjectiveOptions()))
    with pytest.raises(ContractError, match=f"^Corrupting: {said}"):
        make_plan(evolve(setup, implementations=changed))


def test_clm_has_no_bands_to_divide(tmp_path):
    """A banded rack has nothing to tell its stacks apart by."""
    with pytest.raises(UsageError, match='"clm" masks nothing, and trainer_mode "banded" of stackwise-modes'):
        plan_of(tmp_path, {"objective": "clm", "rack.attention": "causal", "trainer_mode": {"use": "banded"}})


def test_a_multiplier_names_a_stack_that_is_there(tmp_path):
    """Counted from 0, as everywhere."""
    with pytest.raises(UsageError, match="stack_lr_multipliers names stack 3, and the rack's stacks are 0 to 2"):
        plan_of(tmp_path, {"training.stack_lr_multipliers": {3: 0.5}})


def test_boundaries_that_do_not_fit_on_the_disk_are_refused(tmp_path, monkeypatch):
    """The message says what is needed, what is free, and which keys change it."""
    plan = plan_of(tmp_path, {"cache_backend": {"use": "disk"}})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UsageError, match=r"need .* on disk, and .* has 1 kB free.*cache_backend\.capacity"):
        check_disk(plan, tmp_path / "not" / "there" / "yet")


def test_auto_takes_the_device_that_there_is(device):
    """A CUDA device, if torch finds one."""
    assert select_device("auto").type == select_device(device.type).type == device.type


@pytest.mark.cpu
def test_a_missing_cuda_device_is_unavailable():
    """run.device = "cuda" never falls back to the processor."""
    with pytest.raises(StackwiseError, match="finds no CUDA device") as refused:
        select_device("cuda")
    assert refused.value.exit_code == 3
    assert select_device("auto").type == "cpu"
