"""When an instrument is read: once in each period, and polled power at a random moment of it.

Readings of power at equal distances beat with a load of the same period: they would all fall on its high or on its low
part. One reading at a random moment in each period (stratified sampling) keeps the mean rate, and the mean of the
readings is that of the load, whatever its period. The moments are pseudo-random, and the same for every trial. A
counter misses nothing between its readings, and equal distances show a standstill soonest.
"""

import random


class Schedule:
    """The moments at which an instrument is due; the first one is the start.

    name: the seed; instruments of different names are read at different moments. is_random: whether they are random.
    """

    def __init__(self, period_s: float, name: str, is_random: bool = True) -> None:
        self.period_s = period_s
        self._random = random.Random(name) if is_random else None
        self._begins_s = 0.0
        self.due_s = float("inf")

    def start(self, now_s: float) -> None:
        """The first reading is due now, and the first period begins."""
        self._begins_s = self.due_s = now_s

    def hurry(self, now_s: float) -> None:
        """A reading is wanted now; its period begins with it."""
        self.due_s = min(self.due_s, now_s)
        self._begins_s = min(self._begins_s, now_s)

    def taken(self, now_s: float) -> None:
        """A reading was taken: the next one is due in the next period. A late reading does not hurry the next."""
        self._begins_s = max(self._begins_s + self.period_s, now_s)
        self.due_s = self._begins_s + (self._random.random() * self.period_s if self._random else 0.0)
