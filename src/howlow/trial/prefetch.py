"""Batches laid out ahead: before the first step, and by a thread while steps run.

Laying out a batch is the host's work. Done between two steps, it would be time of the measured window in which the
device has nothing to do. A thread that works beside every step does little better where a step keeps all cores busy: it
then holds Python's lock while it waits for a core. So as many batches as `AHEAD_TOKENS` allow are ready before the
first step, and the thread goes on only when half of them are used, with many at once.

It takes the items in their order and draws no random numbers, so every result is what it would be without a thread.
"""

from collections import deque
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
"""The least: enough for a batch that takes long to lay out among short ones, and small beside its step."""
AHEAD_TOKENS = 1 << 16
"""About 4 MB of the host's memory, at some eight integers a token."""


def steps_ahead(samples: int, length: int) -> int:
    """How many steps of some `samples`, of at most `length` tokens each, are laid out ahead."""
    return max(STEPS_AHEAD, AHEAD_TOKENS // (samples * length))


@contextmanager
def prefetched(
    prepare: Callable[[ItemT], ResultT], items: Iterable[ItemT], ahead: int = STEPS_AHEAD
) -> Iterator[Iterator[ResultT]]:
    """The results of `prepare` for the items, in their order, made by a thread and at most `ahead` ahead.

    The first is given when that many are ready, or all. An error is raised where its result is asked for. At the end of
    the context the thread is gone, and what was made ahead is dropped.
    """
    made = _Ahead(prepare, iter(items), ahead)
    try:
        yield iter(made)
    finally:
        made.stop()


class _Ahead(Generic[ItemT, ResultT]):
    """The thread, and what it has made: each result as a function that returns it, or raises its error.

    Between two steps only queues are touched, whose locks nobody keeps: a pool of `concurrent.futures` would make a
    step wait where its thread loses its core while it holds a lock.
    """

    def __init__(self, prepare: Callable[[ItemT], ResultT], items: Iterator[ItemT], ahead: int) -> None:
        self._prepare, self._items, self._most = prepare, items, ahead
        self._asked: SimpleQueue[ItemT | _End] = SimpleQueue()
        self._made: SimpleQueue[Callable[[], ResultT]] = SimpleQueue()
        self._waiting, self._is_over = 0, False
        self._ask(ahead)
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
        ready = deque(self._made.get() for _ in range(self._waiting))
        self._waiting = 0
        while ready or self._waiting:
            if not ready:
                ready.append(self._made.get())
                self._waiting -= 1
            result = ready.popleft()
            left = len(ready) + self._waiting
            if left <= self._most // 2:
                self._ask(self._most - left)
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
