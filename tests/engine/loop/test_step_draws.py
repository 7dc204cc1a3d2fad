import threading

import pytest

from stackwise_core.engine.events.events import Event, StepDone
from stackwise_core.engine.loop.step_draws import StepDraws
from stackwise_core.interfaces.component import ContractError
from tests.run_bits import bits, same
from tests.tiny import run_tiny, telling


def workers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("stackwise-ahead")]


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_workers_gives_the_same_bits(tmp_path, count):
    """Weights, losses and boundaries of a run whose steps draw for themselves."""
    changes = {"training.masks": "resampled", "training.gradient_accumulation": 2, "training.window": 16}
    inline = run_tiny(tmp_path / "inline", changes | {"data.workers": 0})
    ahead = run_tiny(tmp_path / "ahead", changes | {"data.workers": count})
    assert same(bits(ahead.directory), bits(inline.directory))
    assert ahead.losses == inline.losses
    assert not workers()


def test_workers_make_the_batches(tmp_path, monkeypatch):
    """Threads of their own do, and with none of them the main thread does."""
    make, seen = StepDraws._make, set[str]()

    def watched(draws: StepDraws, *arguments):
        seen.add(threading.current_thread().name.rpartition("_")[0])
        return make(draws, *arguments)

    monkeypatch.setattr(StepDraws, "_make", watched)
    changes = {"rack.stacks": 1, "training.steps_per_stack": 4}
    run_tiny(tmp_path / "ahead", changes)
    assert seen == {"stackwise-ahead"}
    seen.clear()
    run_tiny(tmp_path / "inline", changes | {"data.workers": 0})
    assert seen == {""}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_no_worker_outlives_a_run_that_is_broken_off(tmp_path, error):
    """Whatever ends it in the middle of a phase."""

    def end(event: Event, _) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            assert workers()
            raise error

    with pytest.raises(error):
        run_tiny(tmp_path, {"data.workers": 2}, telling(end))
    assert not workers()


def test_what_a_worker_raises_ends_the_run(tmp_path, monkeypatch):
    """With the error itself, not with one of the thread."""

    def corrupt(ran) -> None:
        def weights(predicted):
            return predicted.weights[:-1]

        monkeypatch.setattr(ran.setup.implementations.objective, "weights", weights)

    with pytest.raises(ContractError, match=r"weights\(\) gave a tensor"):
        run_tiny(tmp_path, {"rack.stacks": 1}, corrupt)
