"""The energy of a window, computed from a counter's readings, with an error bound that follows from them.

A counter changes at *ticks*. At a tick it shows the energy up to then, or up to `lag_s` before, rounded down to a
multiple of `step_j`; it shows that value until the next tick. Two readings that differ enclose a tick: it is no earlier
than the first was asked for and no later than the second was answered. Without a reading shortly before, the tick is at
most `LATEST_UPDATE` update periods older than the last reading that shows its value.

E(t) is the energy up to the moment t, and a tick shows the value v. Energy never falls, so
    v <= E(t)              if the tick was before t
    E(t) <= v + step_j     if the tick was `lag_s` or more after t.
What may have been drawn between a tick and t is added to the second bound where the tick was earlier, and subtracted
from the first where it was later. The tightest bounds of all ticks enclose E(t). The energy of a window is the
difference of two such enclosures. Where a tick next to an edge was polled for, the middle of the enclosure is taken for
E(t), else the value between the readings next to it.

What a device may draw between a tick and an edge is at most twice the most that was read near it: readings of power,
and the rises between readings of the counter. Between a tick that was polled for and the window that then begins the
device only waits, so a quarter more is enough. Where there are no such readings it is `MOST_W`.

A counter that loses energy breaks these bounds. `howlow.meters.energy` compares its rise with the power that was read:
a standstill must be followed by a rise that the power read in it explains, and where none was read there is no energy.
Seconds in which an update may have been lost unseen (`suspect_s`) widen the error as far as the power leaves room.
A window without power, or too short to integrate it, has no such protection: one lost update may be missing from it,
and its error says so (`all_but_losses`).

The error does not include the sensor's own tolerance, which few makers state. Where a window is shorter than one update
period, has no reading at an edge, or holds a reset, it has no energy: `Missing` says why.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from howlow.records import ErrorCover, WarningKind

MOST_W = 5000.0  # no device draws more, whatever its counter says
LATEST_UPDATE = 2.0  # update periods between two ticks: one may come a whole period late
ROUNDING = 1e-9  # relative, of a window's length, which is a difference of two moments
_NEAR_S = 1.0  # readings of power within this time of an edge say what the device draws there
_DENSE_S = 0.4  # provided that none is farther from the next
_HIGHER = 2.0  # what a device may draw for less than an update period, over the most that was read
_WAITING = 1.25  # the same where it only waits for a window to begin
_SPARSE = 1.5  # update periods between two readings: a lost update shows only where readings are closer
_POLLED = 0.25  # of an update period: a tick that is known as precisely was polled for


@dataclass(frozen=True)
class Point:
    """One reading of a source, taken between two moments; `epoch` changes where a counter was reset."""

    asked_s: float
    time_s: float
    counter_j: float | None = None
    power_w: float | None = None
    epoch: int = 0


@dataclass(frozen=True)
class BoundedEnergy:
    """Joules, their error, and the number of readings that they are computed from (see `EnergyWindow`)."""

    energy_j: float
    error_j: float | None
    readings: int
    covers: ErrorCover = "everything"
    statistical_error_j: float | None = None


@dataclass(frozen=True)
class Missing:
    """Why a window has no energy, as a warning."""

    kind: WarningKind
    detail: str


@dataclass(frozen=True)
class _Tick:
    """A tick as readings show it: the value, the times between which it came, and how long the value was seen."""

    value_j: float
    earliest_s: float
    latest_s: float
    last_seen_s: float
    epoch: int


@dataclass(frozen=True)
class _Source:
    """What is known of a counter: see `counter_energy`."""

    period_s: float
    step_j: float
    lag_s: float
    powers: Sequence[Point] | None


@dataclass(frozen=True)
class _Edge:
    """The energy up to an edge of a window: its bounds, and what is taken for it."""

    low_j: float
    high_j: float
    taken_j: float


def counter_energy(
    points: Sequence[Point],
    start_s: float,
    end_s: float,
    update_period_s: float,
    step_j: float = 0.0,
    *,
    lag_s: float = 0.0,
    shortest_s: float | None = None,
    powers: Sequence[Point] | None = None,
) -> BoundedEnergy | Missing:
    """The energy of a window from a counter's readings, which are in the order of time.

    update_period_s: the longest time between two ticks. shortest_s: the shortest window that has an energy, by default
    one update period. powers: readings of the same device's power, empty where it has none; with None nothing is
    assumed of what it draws near an edge.
    """
    shortest_s = shortest_s or update_period_s
    if end_s - start_s < shortest_s * (1 - ROUNDING):
        return too_short(end_s - start_s, shortest_s, f"the counter is updated every {shortest_s:.3g} s")
    first = bisect_right(points, start_s, key=_time_s) - 1
    last = bisect_left(points, end_s, key=_asked_s)
    if first < 0 or last >= len(points):
        return Missing(WarningKind.ENERGY_GAP, "no reading of the counter at an edge of the window")
    if points[first].epoch != points[last].epoch:
        return Missing(WarningKind.ENERGY_GAP, "the counter was reset inside the window")
    if points[first].counter_j == points[last].counter_j:
        return Missing(WarningKind.COUNTER_STOOD_STILL, "the counter stood still over the window")
    source = _Source(update_period_s, step_j, lag_s, powers)
    start, end = (_edge(points, moment_s, source, is_start=moment_s == start_s) for moment_s in (start_s, end_s))
    if start is None or end is None:
        detail = f"the counter's updates contradict the {update_period_s:.3g} s that were measured between them"
        return Missing(WarningKind.COUNTER_STOOD_STILL, detail)
    energy_j = end.taken_j - start.taken_j
    error_j = max(end.high_j - start.low_j - energy_j, energy_j - (end.low_j - start.high_j))
    return BoundedEnergy(energy_j, error_j, last - first + 1)


def _edge(points: Sequence[Point], moment_s: float, source: _Source, *, is_start: bool) -> _Edge | None:
    """Enclose the energy up to an edge of a window; None where the ticks contradict the update period."""
    near = _around(points, moment_s)
    seen = list(_ticks(near, source.period_s))
    after = next((tick for tick in seen if tick.earliest_s - source.lag_s >= moment_s), None)
    before = next((tick for tick in reversed(seen) if tick.latest_s <= moment_s), seen[0])
    read_w = _read_w(near, source, before.earliest_s - source.lag_s, after.latest_s if after else moment_s)
    is_polled = [_is_polled(tick, source) for tick in (before, *((after,) if after else ()))]
    most_w = MOST_W if read_w is None else min(MOST_W, _HIGHER * read_w)
    waiting_w = most_w if read_w is None or not (is_start and is_polled[0]) else min(MOST_W, _WAITING * read_w)
    low_j = max(tick.value_j - most_w * max(0.0, tick.latest_s - moment_s) for tick in seen)
    high_j = source.step_j + min(
        tick.value_j + (waiting_w if tick is before else most_w) * max(0.0, moment_s - (tick.earliest_s - source.lag_s))
        for tick in seen
    )
    if high_j < low_j:  # the device drew more than was assumed
        unlimited = replace(source, powers=None)
        return None if source.powers is None else _edge(points, moment_s, unlimited, is_start=is_start)
    if any(is_polled):
        return _Edge(low_j, high_j, (low_j + high_j) / 2)
    return _Edge(low_j, high_j, min(max(low_j, _interpolated(seen, moment_s)), high_j))


def _is_polled(tick: _Tick, source: _Source) -> bool:
    return tick.latest_s - tick.earliest_s <= _POLLED * source.period_s


def _ticks(points: Sequence[Point], period_s: float) -> Iterator[_Tick]:
    """The ticks that readings of one epoch show, each with what is known of its time."""
    before_s = -math.inf
    for value_j, group in groupby(points, key=_counter):
        same = list(group)
        first, last = same[0], same[-1]
        earliest_s = max(before_s, min(last.asked_s - LATEST_UPDATE * period_s, first.time_s))
        yield _Tick(value_j, earliest_s, first.time_s, last.asked_s, first.epoch)
        before_s = last.asked_s


def _around(points: Sequence[Point], moment_s: float) -> Sequence[Point]:
    """The readings near a moment, with two ticks before and after it where there are so many; all of one epoch."""
    middle = max(0, bisect_right(points, moment_s, key=_time_s) - 1)
    low = _passed(points, middle, -1, moment_s - _NEAR_S)
    high = _passed(points, middle, 1, moment_s + _NEAR_S)
    return [point for point in points[low : high + 1] if point.epoch == points[middle].epoch]


def _passed(points: Sequence[Point], index: int, step: int, until_s: float) -> int:
    """The index of the reading that is past `until_s` and two changes away, or the last one."""
    changes = 0
    while 0 <= index + step < len(points):
        changes += points[index].counter_j != points[index + step].counter_j
        index += step
        if changes > 2 and (points[index].time_s - until_s) * step > 0:
            break
    return index


def _read_w(points: Sequence[Point], source: _Source, low_s: float, high_s: float) -> float | None:
    """The most that the device was read to draw near a slice around an edge; None where the readings are too few."""
    if source.powers is None:
        return None
    first = max(0, bisect_right(source.powers, low_s - _NEAR_S, key=_time_s) - 1)
    last = bisect_left(source.powers, high_s + _NEAR_S, key=_time_s) + 1
    near = source.powers[first:last]
    if not _is_dense([point.time_s for point in near or points], low_s, high_s):
        return None
    read = [point.power_w for point in near if point.power_w is not None]
    rises = [
        (_counter(later) - _counter(sooner)) / (later.time_s - sooner.asked_s + source.period_s)
        for sooner, later in pairwise(points)
        if later.time_s >= low_s - _NEAR_S and sooner.asked_s <= high_s + _NEAR_S
    ]
    most_w = max([*read, *rises], default=0.0)
    return most_w if most_w > 0 else None


def _is_dense(times_s: Sequence[float], low_s: float, high_s: float) -> bool:
    """Whether there are readings from one end of a slice to the other, none far from the next."""
    first = max(0, bisect_right(times_s, low_s) - 1)
    last = bisect_left(times_s, high_s) + 1
    inside = times_s[first:last]
    edges = [low_s, *inside, high_s] if inside else [low_s, math.inf]
    return all(abs(later - sooner) <= _DENSE_S for sooner, later in pairwise(edges))


def _interpolated(seen: Sequence[_Tick], moment_s: float) -> float:
    """The counter at a moment, between the readings that first showed the ticks next to it."""
    after = bisect_left(seen, moment_s, key=_latest_s)
    if after in (0, len(seen)):
        return seen[min(after, len(seen) - 1)].value_j
    before, behind = seen[after - 1], seen[after]
    share = (moment_s - before.latest_s) / (behind.latest_s - before.latest_s)
    return before.value_j + share * (behind.value_j - before.value_j)


def standstill(
    points: Sequence[Point],
    start_s: float,
    end_s: float,
    update_period_s: float,
    longest_s: float,
    powers: Sequence[Point] = (),
    tolerance: float = 1.1,
) -> Missing | None:
    """Why a counter's window cannot be trusted: it kept a value for too long, and no power proves that it caught up.

    longest_s: how long it may keep a value. tolerance: the factor by which power and a sound counter may differ.
    """
    seen = _seen_in(points, start_s, end_s, update_period_s)
    for index, tick in enumerate(seen):
        stood_s = tick.last_seen_s - tick.latest_s
        if stood_s > longest_s and not _caught_up(seen, index, powers, tolerance):
            detail = (
                f"the counter stood still for {stood_s:.3g} s from second {tick.latest_s:.3g} of the trial on, but it "
                f"is updated every {update_period_s:.3g} s"
            )
            return Missing(WarningKind.COUNTER_STOOD_STILL, detail)
    return None


def suspect_s(points: Sequence[Point], start_s: float, end_s: float, update_period_s: float) -> float:
    """Seconds of a window whose energy a counter may have lost without a sign in its readings.

    These are the standstills, less the one period that every value is kept, and one period more where a lost update is
    invisible because readings are sparser than `_SPARSE` periods.
    """
    seen = _seen_in(points, start_s, end_s, update_period_s)
    stood_s = sum(max(0.0, tick.last_seen_s - tick.latest_s - update_period_s) for tick in seen)
    moments = [start_s, *(point.time_s for point in points if start_s < point.time_s < end_s), end_s]
    widest_s = max(later - sooner for sooner, later in pairwise(moments))
    return stood_s + (update_period_s if widest_s > _SPARSE * update_period_s else 0.0)


def _seen_in(points: Sequence[Point], start_s: float, end_s: float, update_period_s: float) -> list[_Tick]:
    """The ticks of a window, with all readings of the values that were shown at its edges."""
    first = max(0, bisect_right(points, start_s, key=_time_s) - 1)
    last = min(len(points) - 1, bisect_left(points, end_s, key=_asked_s))
    while first > 0 and _counter(points[first - 1]) == _counter(points[first]):
        first -= 1
    while last + 1 < len(points) and _counter(points[last]) == _counter(points[last - 1]):
        last += 1
    inside = [point for point in points[first : last + 1] if point.epoch == points[first].epoch]
    return list(_ticks(inside, update_period_s))


def _caught_up(seen: Sequence[_Tick], index: int, powers: Sequence[Point], tolerance: float) -> bool:
    """Whether the rise after a standstill is no less than the power that was read in it, within the tolerance."""
    if index + 1 == len(seen):
        return False
    stood, behind = seen[index], seen[index + 1]
    least_j = _least_j(powers, stood.latest_s, stood.last_seen_s)
    return least_j is not None and least_j <= tolerance * (behind.value_j - stood.value_j)


def _least_j(powers: Sequence[Point], low_s: float, high_s: float) -> float | None:
    """The energy of a slice, at the lower of the two readings of power around each moment; None without readings."""
    near = powers[max(0, bisect_right(powers, low_s, key=_time_s) - 1) : bisect_left(powers, high_s, key=_time_s) + 1]
    read = [(point.time_s, point.power_w) for point in near if point.power_w is not None]
    if not _is_dense([time_s for time_s, _ in read], low_s, high_s):
        return None
    return math.fsum(
        max(0.0, min(later_s, high_s) - max(sooner_s, low_s)) * min(sooner_w, later_w)
        for (sooner_s, sooner_w), (later_s, later_w) in pairwise(read)
    )


def _counter(point: Point) -> float:
    assert point.counter_j is not None, "these readings are of a counter"
    return point.counter_j


def _asked_s(point: Point) -> float:
    return point.asked_s


def _time_s(point: Point) -> float:
    return point.time_s


def _latest_s(tick: _Tick) -> float:
    return tick.latest_s


def too_short(length_s: float, shortest_s: float, reason: str) -> Missing:
    """The warning of a window that is too short for its source."""
    detail = f"a window of {length_s:.3g} s is too short for its source ({reason}); {shortest_s:.3g} s would do"
    return Missing(WarningKind.ENERGY_WINDOW_TOO_SHORT, detail)
