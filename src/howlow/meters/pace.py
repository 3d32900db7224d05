"""How an energy counter behaves: its update period, the time that a reading takes, and how far it lags.

The counter is read without a pause, first while nothing runs. Where a load can be switched on the device, it is then
switched on, left on, and switched off. The lag follows from the rises between ticks. Where power changes at one moment
from one level to another, the rises until the counter shows the new level say how long the old one lasted. Without a
lag that is until the load was switched. The median of all switchings is the lag.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from howlow.meters import clock
from howlow.meters.counters import Change, UpdatePeriod
from howlow.meters.instruments import Instrument
from howlow.records import CounterPace

IDLE_S, BURST_S = 1.0, 0.8
_BURSTS = 2
_AT_MOST_EVERY_S = 0.0002
_SLOWEST_S = 5.0  # a slow counter is watched for longer, but no longer than that
_FEWEST_CHANGES = 3
_FEWEST_SPANS = 3
_SHORTEST_SPAN_S = 0.05  # the rises of shorter ones are noisy
_RESOLVED = 8.0  # times the uncertainty of a tick, for the same reason
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
                clock.sleep(_AT_MOST_EVERY_S - (read_s - asked_s))

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
    bursts = _under_load(watch, load) if load else None
    found = watch.found
    under_load_s = found.latencies_s[idle_latencies:]
    pace = found.as_pace(instrument.device)
    if bursts is None:
        return pace
    latency_s = median(under_load_s) if under_load_s else pace.latency_s
    return pace.model_copy(update={"is_loaded": True, "latency_s": latency_s, "lag_s": lag_s(found.changes, bursts)})


def _under_load(watch: _Watch, load: Load) -> list[tuple[float, float]]:
    """Switch the load on and off, `_BURSTS` times; returns the moments."""
    found = []
    for _ in range(_BURSTS):
        on_s = clock.now_s()
        with load():
            watch.for_s(BURST_S)
        found.append((on_s, clock.now_s()))
        watch.for_s(BURST_S)
    return found


def lag_s(changes: Sequence[Change], bursts: Sequence[tuple[float, float]]) -> float | None:
    """How far the counter is behind the load; None where its rises do not show the load.

    bursts: when the load was switched on and off.
    """
    resolved_s = median(change.latest_s - change.earliest_s for change in changes) if changes else 0.0
    spans = _spans(changes, max(_SHORTEST_SPAN_S, _RESOLVED * resolved_s))
    loaded = [
        span.power_w for span in spans if any(on_s <= span.start_s < span.end_s <= off_s for on_s, off_s in bursts)
    ]
    before = [span.power_w for span in spans if span.end_s <= bursts[0][0]]
    after = [span.power_w for span in spans if span.start_s >= bursts[-1][1]]
    if min(map(len, (before, loaded, after))) < _FEWEST_SPANS:
        return None
    if median(loaded) < _LARGER * max(median(before), median(after)):
        return None
    middle_w = (median([*before, *after]) + median(loaded)) / 2
    found = [
        _behind_s(spans, switched_s, middle_w, is_on=is_on)
        for burst in bursts
        for switched_s, is_on in zip(burst, (True, False), strict=True)
    ]
    behind_s = median(found)
    return behind_s if behind_s > resolved_s else 0.0


@dataclass(frozen=True)
class _Span:
    """The time between two ticks, and the rise in it."""

    start_s: float
    end_s: float
    rise_j: float

    @property
    def power_w(self) -> float:
        """The mean power."""
        return self.rise_j / (self.end_s - self.start_s)


def _spans(changes: Sequence[Change], shortest_s: float) -> list[_Span]:
    """The spans between ticks, those of a fast counter joined."""
    chosen = list(changes[:1])
    for change in changes:
        if change.time_s - chosen[-1].time_s >= shortest_s:
            chosen.append(change)
    return [_Span(one.time_s, other.time_s, other.counter_j - one.counter_j) for one, other in pairwise(chosen)]


def _behind_s(spans: Sequence[_Span], switched_s: float, middle_w: float, *, is_on: bool) -> float:
    """How long after the switching the counter's slope changes to the other side of the middle."""
    known = next(at for at in reversed(range(len(spans))) if spans[at].end_s <= switched_s)
    before_w = spans[known].power_w
    new = next((at for at in range(known + 1, len(spans)) if (spans[at].power_w > middle_w) == is_on), len(spans) - 1)
    after_w = spans[min(new + 1, len(spans) - 1)].power_w
    passed = spans[known + 1 : new + 1]
    changed_j = sum(span.rise_j - before_w * (span.end_s - span.start_s) for span in passed)
    if (after_w > before_w) != is_on or not passed:
        return 0.0
    return passed[-1].end_s - switched_s - changed_j / (after_w - before_w)
