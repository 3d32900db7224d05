"""When burn-in ends, and whether the measured steps are steady: their two halves must agree in speed.

The speed of a step is its computed tokens divided by its time. The halves disagree where their mean speeds differ by
more than 5 % and by more than three standard errors of that difference. So neither a small drift nor plain noise raises
an alarm. With too few steps nothing can be said.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, variance
from typing import Literal

FEWEST_STEPS = 6
LARGEST_DRIFT = 0.05
_STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class Drift:
    """The relative change of speed from the first half to the second, with its standard error."""

    relative: float
    error: float

    @property
    def is_steady(self) -> bool:
        """Whether the halves agree."""
        return abs(self.relative) <= max(LARGEST_DRIFT, _STANDARD_ERRORS * self.error)


def drift(speeds: Sequence[float]) -> Drift | None:
    """Compare the halves of a series of speeds; None where the series is too short."""
    if len(speeds) < FEWEST_STEPS:
        return None
    first, second = speeds[: len(speeds) // 2], speeds[len(speeds) // 2 :]
    level = fmean(first)
    error = math.sqrt(variance(first) / len(first) + variance(second) / len(second))
    return Drift(fmean(second) / level - 1, error / level)


def steady_from(speeds: Sequence[float]) -> int | None:
    """After how many further burn-in steps the halves of the rest agree; None where they never do."""
    for skipped in range(1, len(speeds) - FEWEST_STEPS + 1):
        found = drift(speeds[skipped:])
        if found is not None and found.is_steady:
            return skipped
    return None


class BurnIn:
    """Which steps of a phase are burn-in: a given number, or with "auto" until the halves of the last six steps agree.

    samples: the samples of each step of the phase. Burn-in has at most half of the steps and leaves at least a quarter
    of the samples: the few examples that a large batch leaves for the last step say nothing about its speed.
    """

    def __init__(self, asked: int | Literal["auto"], samples: Sequence[int]) -> None:
        self._asked, most = asked, 0.75 * sum(samples)
        self._longest = min(len(samples) // 2, bisect_right(list(accumulate(samples)), most))
        self._speeds: list[float] = []
        self._is_steady = False

    @property
    def is_over(self) -> bool:
        """Whether the next step is measured."""
        if self._asked == "auto":
            return self._is_steady or len(self._speeds) >= self._longest
        return len(self._speeds) >= min(self._asked, self._longest)

    @property
    def ran_out(self) -> bool:
        """Whether burn-in ended at that bound, before its number of steps or a steady speed was reached."""
        wanted = not self._is_steady if self._asked == "auto" else self._asked > self._longest
        return self.is_over and wanted

    @property
    def steps(self) -> int:
        """The burn-in steps so far."""
        return len(self._speeds)

    def add(self, speed: float) -> None:
        """Take the speed of a burn-in step that ended into account."""
        self._speeds.append(speed)
        if self._asked == "auto":
            found = drift(self._speeds[-FEWEST_STEPS:])
            self._is_steady = found is not None and found.is_steady
