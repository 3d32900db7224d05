"""Batches laid out ahead: a thread prepares the next steps while the current one runs.

Laying out a batch is the host's work. Done between two steps, it would be time of the measured window in which the
device has nothing to do. The thread takes the items in their order and draws no random numbers, so every result is
what it would be without a thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from howlow.trial.threads import thread_beside_steps

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
STEPS_AHEAD = 4
"""Enough for a batch that takes long to lay out among short ones; a batch on the host is small beside its step."""


@contextmanager
def prefetched(prepare: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[Iterator[ResultT]]:
    """The results of `prepare` for the items, in their order, made by a thread at most `STEPS_AHEAD` ahead.

    An error is raised where its result is asked for. At the end of the context the thread is gone, and what was made
    ahead is dropped.
    """
    thread = thread_beside_steps("howlow-prefetch")
    try:
        yield _results(thread, prepare, iter(items))
    finally:
        thread.shutdown(cancel_futures=True)


def _results(thread: Executor, prepare: Callable[[ItemT], ResultT], items: Iterator[ItemT]) -> Iterator[ResultT]:
    waiting: deque[Future[ResultT]] = deque(thread.submit(prepare, item) for item in islice(items, STEPS_AHEAD))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(thread.submit(prepare, item) for item in islice(items, 1))
        yield result
