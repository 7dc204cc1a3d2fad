"""Runs whose blocks are compiled."""

from collections import Counter

import pytest
import torch
from attrs import evolve

from stackwise_core.engine.events.events import StepDone
from stackwise_core.engine.rack import compiled_blocks, forward
from stackwise_core.engine.rack.compiled_blocks import missing_for_compiling, through_block
from stackwise_core.errors import UnavailableError
from tests.interrupted_runs import break_everywhere
from tests.run_bits import bits, same
from tests.tiny import TinyRun, run_tiny

COMPILED = {"run.compile": True, "training.epochs_per_stack": 1, "rack.stacks": 2}


@pytest.fixture
def captured(monkeypatch):
    """Blocks are captured as graphs, which aren't compiled; the rows of what passes them, by whether it trains."""
    torch._dynamo.reset()
    function, rows = torch.compile(through_block, fullgraph=True, dynamic=False, backend="aot_eager"), Counter()
    monkeypatch.setattr(compiled_blocks, "block_function", lambda: function)
    for room in ("phases.setup", "loop.engine"):
        monkeypatch.setattr(f"stackwise_core.engine.{room}.missing_for_compiling", lambda device: "")
    through = forward.through_compiled

    def counted(block, hidden, context):
        rows[torch.is_grad_enabled(), len(hidden)] += 1
        return through(block, hidden, context)

    monkeypatch.setattr(forward, "through_compiled", counted)
    yield rows
    torch._dynamo.reset()


@pytest.mark.slow
def test_training_batches_and_boundaries_pass_compiled_blocks(tmp_path, captured):
    """Short batches, validation and evaluation don't: their shapes would each need a graph."""
    changes = {"evaluation": {"every": 2, "sequences": 20}, "training.batch_size": 5, "training.window": 32}
    ran = run_tiny(tmp_path / "compiled", COMPILED | changes)
    assert captured.keys() == {(True, 5), (False, 128)}
    eager = run_tiny(tmp_path / "eager", COMPILED | changes | {"run.compile": False})
    assert ran.losses == pytest.approx(eager.losses, rel=1e-4)
    assert [each.compiles for each in ran.plan.phases] == [True, True]
    assert "Blocks are compiled" in " ".join(ran.plan.notes)


@pytest.mark.slow
def test_a_boundary_of_compiled_blocks_has_a_name_of_its_own(tmp_path, captured):
    """Its last bits are others."""
    placement = run_tiny(tmp_path, COMPILED).engine.placement
    compiled = placement.fingerprint(0)
    placement.compiles = False
    assert placement.fingerprint(0) != compiled


@pytest.mark.slow
def test_a_resumed_run_stays_compiled_though_it_would_not_be_now(tmp_path, captured, monkeypatch):
    """With the bits of an undisturbed one."""
    through = run_tiny(tmp_path / "through", COMPILED)
    lives = 0

    def decided(planned, setup):
        nonlocal lives
        lives += 1
        return [evolve(each, compiles=lives == 1) for each in planned], []

    monkeypatch.setattr("stackwise_core.engine.plan.plan.with_compiling", decided)
    directory, _, _ = break_everywhere(tmp_path / "broken", COMPILED)
    assert lives > 2
    assert same(bits(directory), bits(through.directory))


@pytest.mark.slow
def test_a_compiled_run_is_not_resumed_where_nothing_can_be_compiled(tmp_path, captured, monkeypatch):
    """Its bits would be others; nothing is lost."""

    def stop(event) -> None:
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    run = TinyRun.of(tmp_path, COMPILED)
    begun = run.engine(stop)
    with pytest.raises(KeyboardInterrupt):
        begun.run()
    monkeypatch.setattr("stackwise_core.engine.loop.engine.missing_for_compiling", lambda device: "there is none")
    with pytest.raises(UnavailableError, match="began with compiled blocks, and there is none"):
        run.engine(lambda event: None, begun.files).run()
    assert begun.directory.exists()


@pytest.mark.slow
def test_a_streamed_compiled_run_has_the_bits_of_one_in_memory(tmp_path):
    """With torch's own compiler, and activation checkpointing in memory."""
    if missing := missing_for_compiling(torch.device("cpu")):
        pytest.skip(missing)
    changes = COMPILED | {"trainer_mode": {"use": "end_to_end"}, "training.offload": "disk"}
    checkpointing = {"training.residency": "memory", "training.activation_checkpointing": True}
    resident = run_tiny(tmp_path / "memory", changes | checkpointing)
    streamed = run_tiny(tmp_path / "stream", changes | {"training.residency": "stream"})
    eager = run_tiny(tmp_path / "eager", changes | checkpointing | {"run.compile": False})
    assert streamed.losses == resident.losses
    assert same(bits(streamed.directory), bits(resident.directory))
    assert resident.losses == pytest.approx(eager.losses, rel=1e-4)
    assert resident.losses != eager.losses
