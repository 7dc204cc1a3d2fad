import pytest
from attrs import evolve
from rich.console import Console

from stackwise_core.cli.plan_table import print_prices
from stackwise_core.engine.events.events import RunStarted, StepDone
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan import cache_choice
from stackwise_core.engine.plan import plan as planning
from stackwise_core.engine.plan.cache_choice import BoundarySeconds, boundary_seconds
from stackwise_core.engine.plan.plan import Plan, make_plan
from stackwise_core.engine.plan.speed import Speed, phase_seconds
from stackwise_core.engine.plan.store_rates import StoreRates
from tests.interrupted_runs import Broken, engine
from tests.tiny import run_tiny, tiny_config

ENTRY = 32 * 32 * 2


def plan_at(tmp_path, monkeypatch, speed: Speed, rates: StoreRates | None, changes=None) -> tuple[Plan, list[str]]:
    """The plan at known speeds, and the formats of the stores that were measured for it."""
    measured: list[str] = []
    monkeypatch.setattr(planning, "measure_speed", lambda *_: speed)
    monkeypatch.setattr(cache_choice, "measure_store", lambda _, layout, place: measured.append(layout.dtype) or rates)
    cache = {"cache_backend": {"use": "disk"}, "rack.stacks": 4}
    return make_plan(set_up(*tiny_config(tmp_path, cache | (changes or {})))), measured


SLOW_DEVICE, FAST_DEVICE = Speed(1e6, 1e6), Speed(1e15, 1e15)
SLOW, FAST = StoreRates(1e4, 1e4), StoreRates(1e15, 1e15)


def test_both_ways_take_what_can_be_counted_by_hand(tmp_path, monkeypatch, capsys):
    """A boundary is written once a draw, and read once an epoch and for the boundary above."""
    plan, _ = plan_at(tmp_path, monkeypatch, SLOW_DEVICE, FAST)
    print_prices(Console(width=200), plan)
    assert "time cached" not in capsys.readouterr().out
    setup = set_up(*tiny_config(tmp_path, {"cache_backend": {"use": "disk"}, "rack.stacks": 4}))
    phases = [planned.phase for planned in plan.phases]
    samples = len(setup.corpus.train)
    for place, below in ((1, 0), (2, 2), (3, 2)):
        planned = plan.phases[place]
        found = boundary_seconds(planned, phases[:place], setup, FAST_DEVICE, StoreRates(100.0, 1000.0))
        assert found.cached == pytest.approx(samples * ENTRY * (2 / 100 + (3 + below) / 1000), rel=1e-3)
        assert found.recomputed < 1e-3
        slow = boundary_seconds(planned, phases[:place], setup, SLOW_DEVICE, FAST)
        steps = phase_seconds(evolve(planned, flops=planned.step_flops), setup, SLOW_DEVICE)
        a_flop = cache_choice.FORWARD * steps / planned.step_flops
        assert slow.cached == pytest.approx(a_flop * planned.boundary.cached)
        assert slow.recomputed == pytest.approx(a_flop * planned.boundary.recomputed)


def test_a_margin_and_a_second_are_between_them():
    """An estimate that is nearly equal, or about a run of a second, leaves the cache on."""
    cases = (((11, 8), True), ((9, 8), False), ((1.5, 0.6), False), ((1.7, 0.6), True), ((5, 50), False))
    assert [BoundarySeconds(*seconds).favour_recomputing for seconds, _ in cases] == [each for _, each in cases]


def test_a_slow_store_is_left_alone(tmp_path, monkeypatch, capsys):
    """The plan shows both prices, says why, needs no disk, and no phase is made from a boundary that isn't kept."""
    monkeypatch.setattr(cache_choice, "SLOWEST", SLOW)
    plan, measured = plan_at(tmp_path, monkeypatch, FAST_DEVICE, SLOW)
    assert plan.recomputed == {"stack 1", "stack 2", "stack 3"}
    assert set(measured) == {"bf16"}
    assert [planned.disk for planned in plan.phases] == [0] * 4
    assert not any(planned.made_from_below for planned in plan.phases)
    for planned in plan.phases[1:]:
        assert planned.boundary.cached_seconds > 10 > planned.boundary.recomputed_seconds
        assert planned.flops == planned.step_flops + planned.boundary.recomputed
    (said,) = (note for note in plan.notes if "The cache is off" in note)
    assert said.startswith("The cache is off in stack 1, stack 2, stack 3: computing boundaries anew takes about ")
    assert '(10 kB/s written, 10 kB/s read). The bits are the same; training.boundaries = "cache"' in said
    print_prices(Console(width=200), plan)
    table = capsys.readouterr().out
    assert "time cached" in table
    assert table.count("made anew") == 1 + 3
    record = plan.to_json()["phases"][1]
    assert record["recomputed"] is True
    assert record["boundary"]["cached_seconds"] == plan.phases[1].boundary.cached_seconds


def test_a_fast_store_is_used_and_a_small_run_measures_none(tmp_path, monkeypatch):
    """A slow device has use for the cache, and nothing is measured where it can't matter, or where it can't be."""
    monkeypatch.setattr(cache_choice, "SLOWEST", SLOW)
    for speed, rates, count in ((FAST_DEVICE, FAST, 3), (SLOW_DEVICE, SLOW, 0), (FAST_DEVICE, None, 1)):
        plan, measured = plan_at(tmp_path, monkeypatch, speed, rates)
        assert (plan.recomputed, len(measured)) == (frozenset(), count)
        assert plan.phases[2].made_from_below
        assert not [note for note in plan.notes if "The cache is off" in note]
    monkeypatch.undo()
    assert plan_at(tmp_path, monkeypatch, FAST_DEVICE, SLOW)[1] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"training.boundaries": "cache"},
        {"cache_backend": {"use": "disk", "keep": "rack"}},
        {"cache_backend": {"use": "disk", "directory": "/somewhere/else"}},
        {"cache_backend": None},
    ],
)
def test_a_cache_that_was_asked_for_is_on(tmp_path, monkeypatch, changes):
    """By name, to be looked at, or to be shared; without a cache there is no choice."""
    monkeypatch.setattr(cache_choice, "SLOWEST", SLOW)
    plan, measured = plan_at(tmp_path, monkeypatch, FAST_DEVICE, SLOW, changes)
    assert (plan.recomputed, measured) == (frozenset(), [])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_recomputed_boundaries_have_the_bits_of_cached_ones(tmp_path, dtype):
    """In the cache's own format, which a boundary is rounded to wherever it is held; nothing is stored."""
    changes = {"cache_backend": {"use": "disk", "dtype": dtype}, "training.window": 64, "training.chunk_tokens": 512}
    ways = {
        way: run_tiny(tmp_path / way, changes | {"training.boundaries": way}) for way in ("auto", "cache", "recompute")
    }
    assert ways["auto"].plan.recomputed == ways["cache"].plan.recomputed == frozenset()
    assert ways["recompute"].plan.recomputed == {"stack 1", "stack 2"}
    assert ways["cache"].losses == ways["auto"].losses == ways["recompute"].losses
    counts = {way: ran.result.phases[2].boundaries_computed for way, ran in ways.items()}
    assert counts["recompute"] > counts["cache"]
    (said,) = (note for note in ways["recompute"].plan.notes if "cache" in note)
    assert said == 'The cache is off in stack 1, stack 2: training.boundaries = "recompute".'


@pytest.mark.slow
def test_a_run_may_resume_the_other_way(tmp_path):
    """Interrupted in each phase, and each time the boundaries are elsewhere from then on: the same weights."""
    changes = {
        "cache_backend": {"use": "disk", "shard_entries": 16},
        "checkpoint": {"steps": 1},
        "training.window": 64,
        "training.chunk_tokens": 512,
        "training.epochs_per_stack": 2,
    }
    undisturbed = run_tiny(tmp_path / "whole", changes)
    directory, steps = None, 0

    def listen(event) -> None:
        nonlocal directory, steps
        if isinstance(event, RunStarted):
            directory = event.directory
        steps += isinstance(event, StepDone)
        if isinstance(event, StepDone) and steps % 15 == 0:
            raise Broken

    for way in ("cache", "recompute") * 10:
        try:
            engine(tmp_path, changes | {"training.boundaries": way}, listen, directory).run()
        except Broken:
            continue
        break
    for name in ("stacks/001", "stacks/002"):
        found, expected = (root / f"{name}.safetensors" for root in (directory, undisturbed.directory))
        assert found.read_bytes() == expected.read_bytes()
    assert not list(directory.glob("cache/**/*.safetensors"))
