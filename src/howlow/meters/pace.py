"""How an energy counter behaves: its update period, the time that a reading takes, and how far it lags.

The counter is read without a pause, first while nothing runs. Where a load can be switched on the device, it is then
switched on, left on, and switched off. The lag follows from the counter's slopes. Three lines are fitted to its ticks:
before the load, during it and after it. Without a lag, neighbouring lines meet when the load was switched. They meet
later by as much as the counter lags. A load whose power rises or falls slowly looks like a lag, so the lag is never
underestimated by it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median
from threading import Event

from howlow.meters import clock
from howlow.meters.counters import Change, UpdatePeriod
from howlow.meters.instruments import Instrument
from howlow.records import CounterPace

IDLE_S, LOADED_S, AFTER_S = 1.0, 1.2, 1.0
_AT_MOST_EVERY_S = 0.0002
_SLOWEST_S = 5.0  # a slow counter is watched for longer, but no longer than that
_FEWEST_CHANGES = 3
_FEWEST_ON_LINE = 3
_SETTLED = 2.5  # update periods after switching, before a line is fitted
_LARGER = 1.3  # the loaded power over the idle one, so that the lines can be told apart

Load = Callable[[], AbstractContextManager[None]]
"""A load on the device that an instrument measures: it runs as long as its context."""


@dataclass
class _Watch:
    """One counter, read without a pause."""

    instrument: Instrument
    found: UpdatePeriod

    def until(self, end_s: float) -> None:
        """Read until a moment."""
        while (asked_s := clock.now_s()) < end_s:
            counter_j = self.instrument.counter_j()
            self.found.add_fast(read_s := clock.now_s(), counter_j, asked_s)
            if read_s - asked_s < _AT_MOST_EVERY_S:
                Event().wait(_AT_MOST_EVERY_S - (read_s - asked_s))

    def for_s(self, seconds: float) -> None:
        """Read for so many seconds."""
        self.until(clock.now_s() + seconds)


def measure_pace(instrument: Instrument, load: Load | None = None) -> CounterPace:
    """Watch an instrument's counter for some seconds; `load`, where one can be switched on its device."""
    watch = _Watch(instrument, UpdatePeriod())
    watch.for_s(IDLE_S)
    while len(watch.found.changes) < _FEWEST_CHANGES and watch.found.watched_s < _SLOWEST_S:
        watch.for_s(IDLE_S / 10)
    idle_latencies = len(watch.found.latencies_s)
    switched_s = _under_load(watch, load) if load else None
    found = watch.found
    under_load_s = found.latencies_s[idle_latencies:]
    pace = found.as_pace(instrument.device)
    if switched_s is None:
        return pace
    latency_s = median(under_load_s) if under_load_s else pace.latency_s
    return pace.model_copy(
        update={"is_loaded": True, "latency_s": latency_s, "lag_s": lag_s(found.changes, *switched_s)}
    )


def _under_load(watch: _Watch, load: Load) -> tuple[float, float]:
    """Switch the load on and off; returns the moments."""
    on_s = clock.now_s()
    with load():
        watch.for_s(LOADED_S)
    off_s = clock.now_s()
    watch.for_s(AFTER_S)
    return on_s, off_s


def lag_s(changes: Sequence[Change], on_s: float, off_s: float) -> float | None:
    """How far the counter is behind the load, at most; None where its slopes do not show it."""
    apart_s = [later.time_s - sooner.time_s for sooner, later in pairwise(changes)]
    if not apart_s:
        return None
    settled_s = _SETTLED * median(apart_s)
    before = _line(changes, -math.inf, on_s)
    during = _line(changes, on_s + settled_s, off_s)
    after = _line(changes, off_s + settled_s, math.inf)
    if before is None or during is None or after is None:
        return None
    if during.power_w < _LARGER * max(before.power_w, after.power_w):
        return None
    behind_s = max(during.meets_s(before) - on_s, during.meets_s(after) - off_s)
    resolved_s = max(change.latest_s - change.earliest_s for change in changes) / 2
    return behind_s if behind_s > resolved_s else 0.0


@dataclass(frozen=True)
class _Line:
    power_w: float
    at_0_j: float

    def meets_s(self, other: "_Line") -> float:
        """When both lines have the same energy."""
        return (other.at_0_j - self.at_0_j) / (self.power_w - other.power_w)


def _line(changes: Sequence[Change], start_s: float, end_s: float) -> _Line | None:
    """The line through the ticks between two moments."""
    on_line = [change for change in changes if start_s <= change.time_s <= end_s]
    if len(on_line) < _FEWEST_ON_LINE:
        return None
    origin = on_line[0]
    fitted = linear_regression(
        [change.time_s - origin.time_s for change in on_line],
        [change.counter_j - origin.counter_j for change in on_line],
    )
    return _Line(fitted.slope, fitted.intercept + origin.counter_j - fitted.slope * origin.time_s)
