"""Questions to a driver, each asked as often as it is cheap.

On some devices one question takes a thousand times as long as the others (the energy counter of an H100: 2 to 4 ms).
What a question takes is measured when the device is opened. A slow one is asked at most once a second for the timeline.
"""

import math
from collections.abc import Callable
from typing import Generic, TypeVar

from howlow.meters import clock

SLOW_S = 0.0005
EVERY_S = 1.0
_TRIES = 3  # the fastest counts: the others may have been interrupted

_T = TypeVar("_T")


class Question(Generic[_T]):
    """One question; `is_slow` says whether it is asked at most once a second. None: it is measured here.

    The first `if_due` always asks. Later ones also count the answers that `now` gave.
    """

    def __init__(self, ask: Callable[[], _T | None], is_slow: bool | None = None) -> None:
        self._ask = ask
        self.is_slow = _fastest_s(ask) > SLOW_S if is_slow is None else is_slow
        self._next_s = -math.inf

    def now(self) -> _T | None:
        """The answer, however long it takes."""
        if self._next_s > -math.inf:
            self._next_s = clock.now_s() + EVERY_S
        return self._ask()

    def if_due(self) -> _T | None:
        """The answer; None where the question is slow and was asked within the last second."""
        now_s = clock.now_s()
        if self.is_slow and now_s < self._next_s:
            return None
        self._next_s = now_s + EVERY_S
        return self._ask()


def _fastest_s(ask: Callable[[], object]) -> float:
    return min(_taken_s(ask) for _ in range(_TRIES))


def _taken_s(ask: Callable[[], object]) -> float:
    started_s = clock.now_s()
    ask()
    return clock.now_s() - started_s
