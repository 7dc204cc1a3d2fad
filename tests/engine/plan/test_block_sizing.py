"""Division of blocks into stacks by the plan."""

import pytest
from attrs import evolve

import stackwise_core as sw
from stackwise_core.engine.events.events import StepDone
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.block_sizing import AS_FAST, divisions, needed, set_up_divided, speed
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.errors import UsageError
from stackwise_core.options import ByteSize
from tests.command_line import CONFIG
from tests.tiny import tiny_config

AUTO = {
    "rack": {"blocks_per_stack": "auto", "blocks": 6, "d_model": 512, "n_heads": 2},
    "training.steps_per_stack": 20,
    "training.residency": "auto",
}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1,)]),
        (4, [(4,), (2, 2), (1, 1, 1, 1)]),
        (7, [(7,), (4, 3), (3, 2, 2), (2, 2, 2, 1), (1,) * 7]),
    ],
)
def test_blocks_are_divided_as_equally_as_may_be(count, expected):
    """The largest stacks come first, and no block is lost."""
    assert divisions(count) == expected


@pytest.mark.slow
def test_the_fastest_that_the_budget_holds_is_taken(tmp_path):
    """What is as fast and larger, or faster, needs more memory than there may be; a note says what was taken."""
    config, registry = tiny_config(tmp_path, AUTO)
    made = {}
    for blocks in divisions(6):
        setup = set_up(evolve(config, rack=config.rack.divided(blocks)), registry)
        made[blocks] = (setup, make_plan(setup))
    budget = needed(made[2, 2, 2][1]) + 2_000_000
    assert needed(made[3, 3][1]) > budget + 10_000_000
    config = evolve(config, training=evolve(config.training, memory_budget=ByteSize(budget)))
    setup, plan = set_up_divided(config, registry)
    chosen = setup.spec.blocks
    assert setup.config.rack.stack_blocks == chosen
    assert max(chosen) <= 2
    assert speed(*made[chosen]) >= 0.8 * AS_FAST * max(speed(*made[blocks]) for blocks in made if max(blocks) <= 2)
    assert plan.notes[-1].startswith('rack.blocks_per_stack = "auto": ')
    assert "the fastest of" in plan.notes[-1]


@pytest.mark.slow
def test_a_mode_that_needs_equal_stacks_has_them(tmp_path):
    """Copies are of stacks of the same size, so that seven blocks are one stack or seven."""
    changes = AUTO | {"rack": AUTO["rack"] | {"blocks": 7}, "trainer_mode": {"use": "blockwise", "start": "copy"}}
    setup, _ = set_up_divided(*tiny_config(tmp_path, changes))
    assert setup.spec.blocks in [(7,), (1,) * 7]


def test_without_room_for_any_the_smallest_need_is_taken(tmp_path):
    """And a note says so; the engine refuses it, or doesn't, as any other plan."""
    config, registry = tiny_config(tmp_path, AUTO | {"training.memory_budget": "1 MB"})
    setup, plan = set_up_divided(config, registry)
    assert setup.spec.blocks == (1,) * 6
    least = "6 stacks of 1 block, the division that needs least memory; the memory budget holds none."
    assert plan.notes[-1].endswith(least)


def test_what_no_division_allows_is_said_of_all(tmp_path):
    """With the first of them, which the user never wrote."""
    mode = {"use": "blockwise", "shares": [1.0] * 4}
    expected = "4 ways to divide the 6 blocks, and none can be planned. As 1 stack of 6 blocks: .*4 entries"
    with pytest.raises(UsageError, match=expected):
        set_up_divided(*tiny_config(tmp_path, AUTO | {"trainer_mode": mode}))


def test_a_mode_that_divides_blocks_itself_is_planned_once(tmp_path):
    """Every division is one stack a block to it."""
    _, plan = set_up_divided(*tiny_config(tmp_path, AUTO | {"trainer_mode": {"use": "layerwise"}}))
    assert "6 stacks of 1 block, the fastest of 1 divisions" in plan.notes[-1]


@pytest.mark.slow
def test_a_run_resumes_with_the_stacks_that_it_began_with(tmp_path, monkeypatch):
    """Its own configuration lists them, and the file that says "auto" means the same run, whatever would fit now."""
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("[rack]", '[rack]\nblocks_per_stack = "auto"\nblocks = 3')
    lines = [line for line in text.splitlines() if not line.startswith(("stacks =", "blocks_per_stack = 1"))]
    (tmp_path / "auto.toml").write_text("\n".join(lines))

    def stop(event):
        if isinstance(event, StepDone) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sw.run("auto.toml", listener=stop)
    (directory,) = (tmp_path / "runs").iterdir()
    began = sw.load_config(directory).config.rack
    assert sum(began.stack_blocks) == 3
    monkeypatch.setattr("stackwise_core.engine.plan.block_sizing.divisions", lambda count: [(2, 1)])
    result = sw.run("auto.toml")
    assert result.directory == directory
    assert sw.load_config(directory).config.rack == began
