"""Batches laid out ahead: a thread prepares the next steps while the current one runs.

Laying out a batch is the host's work. Done between two steps, it would be time of the measured window in which the
device has nothing to do. The thread takes the items in their order and draws no random numbers, so every result is
what it would be without a thread.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Generic, NoReturn, TypeVar

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
    ahead = _Ahead(prepare, iter(items))
    try:
        yield iter(ahead)
    finally:
        ahead.stop()


class _Ahead(Generic[ItemT, ResultT]):
    """The thread, and what it has made: each result as a function that returns it, or raises its error.

    Between two steps only queues are touched, whose locks nobody keeps: a pool of `concurrent.futures` would make a
    step wait where its thread loses its core while it holds a lock.
    """

    def __init__(self, prepare: Callable[[ItemT], ResultT], items: Iterator[ItemT]) -> None:
        self._prepare, self._items = prepare, items
        self._asked: SimpleQueue[ItemT | _End] = SimpleQueue()
        self._made: SimpleQueue[Callable[[], ResultT]] = SimpleQueue()
        self._waiting, self._is_over = 0, False
        self._ask(STEPS_AHEAD)
        self._thread = thread_beside_steps("howlow-prefetch", self._run)

    def _ask(self, count: int) -> None:
        for item in islice(self._items, count):
            self._waiting += 1
            self._asked.put(item)

    def _run(self) -> None:
        while not isinstance(item := self._asked.get(), _End) and not self._is_over:
            self._made.put(self._outcome(item))

    def _outcome(self, item: ItemT) -> Callable[[], ResultT]:
        try:
            result = self._prepare(item)
        except BaseException as error:  # whatever it is, the trial raises it
            return partial(_raise, error)
        return lambda: result

    def __iter__(self) -> Iterator[ResultT]:
        while self._waiting:
            result = self._made.get()
            self._waiting -= 1
            self._ask(1)
            yield result()

    def stop(self) -> None:
        """Drop what is left, and wait for the end of the thread."""
        self._is_over = True
        self._asked.put(_End())
        self._thread.join()


class _End:
    """Behind the last item."""


def _raise(error: BaseException) -> NoReturn:
    raise error
