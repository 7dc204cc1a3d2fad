"""Results of calls made ahead by worker threads: in order, and no more of them than asked for at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")


def made_ahead(calls: Iterable[Callable[[], Result]], workers: int, ahead: int) -> Generator[Result]:
    """Yield the results of calls in their order, ``ahead`` of which are under way or waiting at any time.

    Closing the iterator ends the workers: calls that haven't begun are dropped, those that have are waited for.

    Args:
        workers: threads that make them; 0: each is made when it is asked for.
    """
    if not workers:
        for call in calls:
            yield call()
        return
    left = iter(calls)
    with ThreadPoolExecutor(workers, thread_name_prefix="stackwise-ahead") as pool:
        coming = deque[Future[Result]](pool.submit(call) for call in islice(left, ahead))
        try:
            while coming:
                result = coming.popleft().result()
                coming.extend(pool.submit(call) for call in islice(left, 1))
                yield result
        finally:
            for future in coming:
                future.cancel()
