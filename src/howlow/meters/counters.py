"""What the readings of an energy counter show of it: how often it is updated, where it wraps and where it was reset."""

from dataclasses import dataclass

from howlow.meters.energy_bounds import MOST_W

NOMINAL_PERIOD_S = 0.1  # taken for the update period until it is known
_FAST_READINGS, _CHANGES = 600, 5
_SLOW_READINGS, _SLOW_CHANGES = 3000, 2  # a slow counter is watched until one whole period has been seen


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


@dataclass
class _Plateau:
    """Consecutive readings that show the same value; `before_s` is the last reading that showed another."""

    value_j: float
    first_s: float
    before_s: float | None = None
    last_s: float = 0.0

    @property
    def length_s(self) -> float:
        """How long the value was seen unchanged: the counter's update period is no shorter."""
        return max(0.0, self.last_s - self.first_s)

    def length_at_most_s(self, next_s: float) -> float:
        """How long the value can have been unchanged, where the next reading showed another."""
        return next_s - (self.first_s if self.before_s is None else self.before_s)


@dataclass
class UpdatePeriod:
    """Finds how often a counter is updated (`period_s`), and by how much at once (`step_j`): the largest of each seen.

    Fast readings come first. Later readings can only lengthen the period: a counter whose value stays the same for
    longer is a slower one.
    """

    period_s: float | None = None
    step_j: float = 0.0
    _readings: int = 0
    _changes: int = 0
    _plateau: _Plateau | None = None

    @property
    def wants_fast_readings(self) -> bool:
        """Whether the period is not yet known well enough."""
        if self._changes < _SLOW_CHANGES:
            return self._readings < _SLOW_READINGS
        return self._readings < _FAST_READINGS and self._changes < _CHANGES

    def add_fast(self, time_s: float, counter_j: float | None) -> None:
        """Take a fast reading into account."""
        self._readings += 1
        before = self._plateau
        self.add(time_s, counter_j)
        if before is None or counter_j is None or self._plateau is before:
            return
        self._changes += 1
        if self._changes > 1 and counter_j > before.value_j:  # the first change came in the middle of a period
            self.period_s = max(self.period_s or 0.0, before.length_at_most_s(time_s))
            self.step_j = max(self.step_j, counter_j - before.value_j)

    def add(self, time_s: float, counter_j: float | None) -> None:
        """Take any reading into account: it may show that the counter is slower than was known."""
        if counter_j is None:
            return
        plateau, known_s = self._plateau, self.period_s or 0.0
        if plateau is None or counter_j != plateau.value_j:
            if plateau is not None and plateau.length_s >= known_s > 0 and counter_j > plateau.value_j:
                self.period_s = plateau.length_at_most_s(time_s)
            self._plateau = _Plateau(counter_j, time_s, None if plateau is None else plateau.last_s, time_s)
        else:
            plateau.last_s = time_s
            if plateau.length_s > max(known_s, NOMINAL_PERIOD_S):
                self.period_s = plateau.length_s
