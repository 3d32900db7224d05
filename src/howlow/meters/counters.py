"""What the readings of an energy counter show of it: how often it is updated, where it wraps and where it was reset."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from howlow.meters.energy_bounds import MOST_W
from howlow.records import CounterPace

NOMINAL_PERIOD_S = 0.1  # taken for the update period until it is known
_FAST_READINGS, _CHANGES = 600, 6
_SLOW_READINGS, _SLOW_CHANGES = 3000, 2  # a slow counter is watched until one whole period has been seen
_LATENCIES = 50_000  # of them the median is taken
_WATCHED_S = 0.3  # between two readings that are compared with power
_STANDING = 0.8  # of the rise that is expected at least
_REGULAR = 1.5  # the longest period over the usual one, of a counter that is updated at equal times


@dataclass
class Unwrapping:
    """Makes a counter that never falls of one that wraps around at `range_j` (None: it does not wrap).

    Where a wrap cannot be distinguished from a reset, a new `epoch` begins; no energy is computed across it.
    """

    range_j: float | None
    epoch: int = 0
    _total_j: float = 0.0
    _last: tuple[float, float] | None = None

    def total_j(self, time_s: float, raw_j: float) -> float:
        """The counter without its wraps, from its next reading."""
        last, self._last = self._last, (time_s, raw_j)
        if last is None:
            self._total_j = raw_j
            return self._total_j
        elapsed_s, rise_j = time_s - last[0], raw_j - last[1]
        if rise_j < 0 and self.range_j is not None:
            rise_j += self.range_j
        may_have_wrapped_twice = self.range_j is not None and elapsed_s > self.range_j / MOST_W
        if rise_j < 0 or rise_j > MOST_W * (elapsed_s + 1) or may_have_wrapped_twice:
            self.epoch += 1
            rise_j = 0.0
        self._total_j += rise_j
        return self._total_j


@dataclass(frozen=True)
class Change:
    """A change of the counter, seen between the asking for one reading and the answer to the next."""

    earliest_s: float
    latest_s: float
    counter_j: float

    @property
    def time_s(self) -> float:
        """The middle of the two."""
        return (self.earliest_s + self.latest_s) / 2


@dataclass
class UpdatePeriod:
    """Finds how often a counter is updated, from readings that follow one another without a pause.

    Only such readings are given to it. The timeline's readings are too far apart to say anything of the period.
    """

    changes: list[Change] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    watched_s: float = 0.0
    _readings: int = 0
    _unit_uj: int = 0
    _first_s: float | None = None
    _last: tuple[float, float] | None = None

    def add_fast(self, time_s: float, counter_j: float | None, asked_s: float | None = None) -> None:
        """Take a reading into account; asked_s: when it was asked for, by default when it was answered."""
        self._readings += 1
        asked_s = time_s if asked_s is None else asked_s
        self._first_s = asked_s if self._first_s is None else self._first_s
        self.watched_s = time_s - self._first_s
        if counter_j is None:
            return
        if len(self.latencies_s) < _LATENCIES:
            self.latencies_s.append(time_s - asked_s)
        if self._last is not None and counter_j > self._last[1]:
            self.changes.append(Change(self._last[0], time_s, counter_j))
        if self._last is None or counter_j != self._last[1]:
            self._unit_uj = math.gcd(self._unit_uj, round(counter_j * 1e6))
        self._last = asked_s, counter_j

    @property
    def wants_fast_readings(self) -> bool:
        """Whether the period is not yet known well enough."""
        if len(self.changes) < _SLOW_CHANGES:
            return self._readings < _SLOW_READINGS
        return self._readings < _FAST_READINGS and len(self.changes) < _CHANGES

    @property
    def period_s(self) -> float | None:
        """The longest that two changes can have been apart: the counter is no faster; None before two changes."""
        return max((later.latest_s - sooner.earliest_s for sooner, later in pairwise(self.changes)), default=None)

    @property
    def usual_period_s(self) -> float | None:
        """The median time between two changes; None before two changes."""
        apart_s = [later.time_s - sooner.time_s for sooner, later in pairwise(self.changes)]
        return median(apart_s) if apart_s else None

    @property
    def step_j(self) -> float:
        """What the counter is a multiple of.

        Equal rises at equal times may be one unit each, and then the counter is exact whenever it changes.
        """
        rises = {round(1e6 * (later.counter_j - sooner.counter_j)) for sooner, later in pairwise(self.changes)}
        usual_s = self.usual_period_s
        if len(rises) == 1 and usual_s is not None and (self.period_s or 0.0) < _REGULAR * usual_s:
            return 0.0
        return self._unit_uj / 1e6

    def as_pace(self, device: str) -> CounterPace:
        """What was found, for the record."""
        return CounterPace(
            device=device,
            period_s=self.usual_period_s,
            longest_s=self.period_s,
            step_j=self.step_j,
            latency_s=median(self.latencies_s or [0.0]),
            largest_latency_s=max(self.latencies_s, default=0.0),
            watched_s=self.watched_s,
        )


@dataclass
class StandstillWatch:
    """Whether a counter that is read rarely seems to stand still, so that it should be read at once again.

    It seems so where the counter rose by less than the smallest power that was read since would have made it rise.
    """

    seems_to_stand: bool = False
    _least_w: float = math.inf
    _since: tuple[float, float] | None = None

    def power(self, power_w: float | None) -> None:
        """Take a reading of power into account."""
        if power_w is not None:
            self._least_w = min(self._least_w, power_w)

    def counter(self, time_s: float, counter_j: float) -> None:
        """Take a reading of the counter into account, unless it is too close to the last one."""
        if self._since is not None:
            elapsed_s, rise_j = time_s - self._since[0], counter_j - self._since[1]
            if elapsed_s < _WATCHED_S:
                return
            self.seems_to_stand = math.isfinite(self._least_w) and rise_j < _STANDING * self._least_w * elapsed_s
        self._since, self._least_w = (time_s, counter_j), math.inf
