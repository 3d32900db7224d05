"""The energy of a window, computed from a counter's readings, with an error bound that follows from them.

A counter c that is updated every U seconds shows, at any moment t, the energy E of at most U seconds ago:
E(t - U) - g <= c(t) <= E(t), where g is the size of its steps. It never falls, so the readings before and after t
enclose E(t). A lower bound is the last reading before t. A second one is the first reading after t, less what the
largest device draws in the time between. An upper bound is the first reading that was asked for U or more after t, plus
g. A second one is the first reading after t, plus g and what the largest device draws in U. The tighter of each pair
counts. The energy of a window is the difference of the counter at its edges; its error is the farthest that
E(end) - E(start) can be from that. Missing readings only move the bounds apart.

The error does not include the sensor's own tolerance, which few makers state.

A window that is too short for its source, or that has a hole, has no energy: `Missing` says why.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from howlow.records import ErrorCover, WarningKind

UPDATES_IN_WINDOW = 5  # at least; the uncertain time at the two edges is then at most two fifths of the window
MOST_W = 5000.0  # no device draws more, whatever its counter says
ROUNDING = 1e-9  # relative, of a window's length, which is a difference of two moments


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


def counter_energy(
    points: Sequence[Point], start_s: float, end_s: float, update_period_s: float, step_j: float = 0.0
) -> BoundedEnergy | Missing:
    """The energy of a window from a counter's readings, which are in the order of time."""
    shortest_s = UPDATES_IN_WINDOW * update_period_s
    if end_s - start_s < shortest_s * (1 - ROUNDING):
        return too_short(end_s - start_s, shortest_s, f"the counter is updated every {update_period_s:.3g} s")
    first = bisect_right(points, start_s, key=lambda point: point.time_s) - 1
    last = bisect_left(points, end_s, key=lambda point: point.asked_s)
    if first < 0 or last >= len(points):
        return Missing(WarningKind.ENERGY_GAP, "no reading of the counter at an edge of the window")
    if points[first].epoch != points[last].epoch:
        return Missing(WarningKind.ENERGY_GAP, "the counter was reset inside the window")
    energy_j = _interpolated(points, end_s) - _interpolated(points, start_s)
    if energy_j <= 0:
        return Missing(WarningKind.ENERGY_GAP, "the counter stood still over the window")
    (low_start, high_start), (low_end, high_end) = (
        _enclosed(points, moment, update_period_s, step_j) for moment in (start_s, end_s)
    )
    error_j = max(high_end - low_start - energy_j, energy_j - (low_end - high_start))
    return BoundedEnergy(energy_j, error_j, last - first + 1)


def _interpolated(read: Sequence[Point], moment_s: float) -> float:
    """The counter at a moment, from the readings next to it."""
    after = bisect_left(read, moment_s, key=lambda point: point.time_s)
    if after == len(read):
        return _counter(read[-1])
    if after == 0:
        return _counter(read[0])
    before, behind = read[after - 1], read[after]
    share = (moment_s - before.time_s) / (behind.time_s - before.time_s)
    return _counter(before) + share * (_counter(behind) - _counter(before))


def _enclosed(read: Sequence[Point], moment_s: float, update_period_s: float, step_j: float) -> tuple[float, float]:
    """The bounds of the energy at a moment; there must be a reading that was asked for at that moment or later."""
    before = bisect_right(read, moment_s, key=lambda point: point.time_s) - 1
    after = bisect_left(read, moment_s, key=lambda point: point.asked_s)
    known = bisect_left(read, moment_s + update_period_s, key=lambda point: point.asked_s)
    last, next_one = read[max(0, before)], read[after]
    lowest_j = _counter(last)
    highest_j = math.inf
    if next_one.epoch == last.epoch:
        lowest_j = max(lowest_j, _counter(next_one) - MOST_W * (next_one.time_s - moment_s))
        highest_j = _counter(next_one) + MOST_W * update_period_s
    if known < len(read) and read[known].epoch == last.epoch:
        highest_j = min(highest_j, _counter(read[known]))
    return lowest_j, highest_j + step_j


def _counter(point: Point) -> float:
    assert point.counter_j is not None, "these readings are of a counter"
    return point.counter_j


def too_short(length_s: float, shortest_s: float, reason: str) -> Missing:
    """The warning of a window that is too short for its source."""
    detail = f"a window of {length_s:.3g} s is too short for its source ({reason}); {shortest_s:.3g} s would do"
    return Missing(WarningKind.ENERGY_WINDOW_TOO_SHORT, detail)
