import threading
import time
from concurrent.futures import Future

import pytest

from stackwise_core.engine.process.ahead import made_ahead


def workers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("stackwise-ahead")]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_the_order_of_their_calls(count):
    """Though a later call may end first; and no thread is left when all are made."""

    def call(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return number

    calls = [lambda number=number: call(number) for number in range(20)]
    assert list(made_ahead(calls, count, 4)) == list(range(20))
    assert not workers()


@pytest.mark.parametrize("count", [0, 2])
def test_no_more_calls_are_begun_than_asked_for(count):
    """With three ahead, four have begun at most when the first result is there; inline it is one."""
    begun: list[int] = []
    calls = [lambda number=number: begun.append(number) for number in range(50)]
    results = made_ahead(calls, count, 3)
    next(results)
    deadline = time.monotonic() + 10
    while len(begun) < (4 if count else 1) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(begun) == (4 if count else 1)
    results.close()


def test_an_error_arrives_at_its_place():
    """The results before it come first; the workers end."""

    def fail() -> int:
        raise ValueError("the third")

    results = made_ahead([lambda: 1, lambda: 2, fail, lambda: 4], 2, 4)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert not workers()


def test_closing_ends_the_workers(monkeypatch):
    """Calls that haven't begun are never made."""
    gate, begun, cancel = threading.Event(), [], Future.cancel

    def wait() -> None:
        begun.append(True)
        gate.wait(10)

    def cancelled(future: Future) -> bool:
        done = cancel(future)
        canceled.append(done)
        if len(canceled) == 4:  # of all that were ahead
            gate.set()
        return done

    canceled: list[bool] = []
    monkeypatch.setattr(Future, "cancel", cancelled)
    results = made_ahead([lambda: None, *[wait] * 8], 1, 4)
    next(results)
    results.close()
    assert not workers()
    assert len(begun) == canceled.count(False) <= 1
