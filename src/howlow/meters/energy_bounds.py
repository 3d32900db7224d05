"""The energy of a window, computed from readings, with an error bound that follows from them.

**Counters.** A counter c that is updated every U seconds shows, at any moment t, the energy E of at most U seconds ago:
E(t - U) - g <= c(t) <= E(t), where g is the size of its steps. It never falls, so the readings before and after t
enclose E(t). A lower bound is the last reading before t. A second one is the first reading after t, less what the
largest device draws in the time between. An upper bound is the first reading that was asked for U or more after t, plus
g. A second one is the first reading after t, plus g and what the largest device draws in U. The tighter of each pair
counts. The energy of a window is the difference of the counter at its edges; its error is the farthest that
E(end) - E(start) can be from that. Missing readings only move the bounds apart.

**Power.** Polled power is integrated by the trapezoidal rule. Between two readings the power is assumed to stay between
their values, so an interval dt over which power changes by dP is wrong by at most dt * |dP| / 2. A reading that is up
to U late adds at most U times the sum of all |dP|, up to the first reading U after the window, which includes its end.
An edge or a hole without readings adds its length times the range of the readings. The rounding of the readings adds a
hundredth of a watt, that of the coarsest source. Without a reading U after the window nothing bounds its end, and there
is no error. Swings that start and end between two readings are not seen and not in the error.

No error includes the sensor's own tolerance, which few makers state.

A window that is too short for its source, or that has a hole, has no energy: `Missing` says why.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from howlow.records import WarningKind

UPDATES_IN_WINDOW = 5  # at least; the uncertain time at the two edges is then at most two fifths of the window
MOST_W = 5000.0  # no device draws more, whatever its counter says
ROUNDING = 1e-9  # relative, of a window's length, which is a difference of two moments
LARGEST_HOLE = 0.05  # the share of a window that may be without readings
RESOLUTION_W = 0.01  # nvidia-smi prints hundredths; NVML has milliwatts


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
    """Joules, the bound of their error, and the number of readings that they are computed from."""

    energy_j: float
    error_j: float | None
    readings: int


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
        return _too_short(end_s - start_s, shortest_s, f"the counter is updated every {update_period_s:.3g} s")
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


def power_energy(
    points: Sequence[Point], start_s: float, end_s: float, period_s: float, update_period_s: float
) -> BoundedEnergy | Missing:
    """The energy of a window from readings of power, which are in the order of time.

    period_s: the intended time between two readings.
    """
    first = max(0, bisect_right(points, start_s, key=lambda point: point.time_s) - 1)
    last, knowing = (
        bisect_left(points, moment_s, key=lambda point: point.time_s) + 1
        for moment_s in (end_s, end_s + update_period_s)
    )
    near = [(point.time_s, point.power_w) for point in points[first:last] if point.power_w is not None]
    later = [(point.time_s, point.power_w) for point in points[last:knowing] if point.power_w is not None]
    energy_j = integrate_power([t for t, _ in near], [p for _, p in near], start_s, end_s)
    shortest_s = 3 * max(period_s, update_period_s)
    if end_s - start_s < shortest_s * (1 - ROUNDING):
        return _too_short(end_s - start_s, shortest_s, f"its power is read every {period_s:.3g} s")
    holes_s = end_s - start_s if energy_j is None else _holes_s(near, start_s, end_s, period_s)
    if energy_j is None or holes_s > LARGEST_HOLE * (end_s - start_s):
        return Missing(WarningKind.ENERGY_GAP, "readings of power are missing inside the window")
    if energy_j <= 0:
        return Missing(WarningKind.ENERGY_GAP, "the power read is 0 over the whole window")
    if (near + later)[-1][0] < end_s + update_period_s:
        return BoundedEnergy(energy_j, None, len(near))
    return BoundedEnergy(energy_j, _power_error_j(near, later, (start_s, end_s), update_period_s, holes_s), len(near))


def _too_short(length_s: float, shortest_s: float, reason: str) -> Missing:
    detail = f"a window of {length_s:.3g} s is too short for its source ({reason}); {shortest_s:.3g} s would do"
    return Missing(WarningKind.ENERGY_WINDOW_TOO_SHORT, detail)


def _holes_s(near: Sequence[tuple[float, float]], start_s: float, end_s: float, period_s: float) -> float:
    """Seconds of the window in intervals far longer than the period, those at its edges included."""
    moments = [start_s, *(time_s for time_s, _ in near if start_s < time_s < end_s), end_s]
    if near[0][0] <= start_s:
        moments[0] = near[0][0]
    if near[-1][0] >= end_s:
        moments[-1] = near[-1][0]
    allowed_s = max(4 * period_s, 0.5)
    return sum(min(t1, end_s) - max(t0, start_s) for t0, t1 in pairwise(moments) if t1 - t0 > allowed_s)


def _power_error_j(
    near: Sequence[tuple[float, float]],
    later: Sequence[tuple[float, float]],
    window: tuple[float, float],
    update_period_s: float,
    holes_s: float,
) -> float:
    """The bound of the module's docstring; the `later` readings are those up to U after the window."""
    start_s, end_s = window
    seen = [*near, *later]
    powers = [power_w for _, power_w in seen]
    edge_s = max(0.0, near[0][0] - start_s)
    error_j = RESOLUTION_W * (end_s - start_s) + (edge_s + holes_s) * (max(powers) - min(powers))
    error_j += update_period_s * sum(abs(p1 - p0) for (_, p0), (_, p1) in pairwise(seen))
    for (t0, p0), (t1, p1) in pairwise(near):
        inside_s = min(t1, end_s) - max(t0, start_s)
        error_j += abs(p1 - p0) * max(0.0, inside_s) / 2
    return error_j


def integrate_power(times_s: Sequence[float], powers_w: Sequence[float], start_s: float, end_s: float) -> float | None:
    """Joules between two moments from power readings, by the trapezoidal rule with the readings held at the edges.

    None where fewer than two readings are in the window: one reading says nothing about an interval.
    """
    inside = sum(start_s <= time <= end_s for time in times_s)
    if inside < 2 or end_s <= start_s:
        return None
    times, powers = list(times_s), list(powers_w)
    if times[0] > start_s:
        times, powers = [start_s, *times], [powers[0], *powers]
    if times[-1] < end_s:
        times, powers = [*times, end_s], [*powers, powers[-1]]
    energy = 0.0
    for (t0, p0), (t1, p1) in pairwise(zip(times, powers, strict=True)):
        low, high = max(t0, start_s), min(t1, end_s)
        if high > low:
            # The share of the gap, not the slope: two readings may be so close that the slope overflows.
            share = ((low + high) / 2 - t0) / (t1 - t0)
            energy += (high - low) * (p0 + share * (p1 - p0))
    return energy
