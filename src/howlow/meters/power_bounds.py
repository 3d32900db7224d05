"""The energy of a window, integrated from polled power, with two errors that follow from the readings.

Power is integrated by the trapezoidal rule. Neither error includes the sensor's own tolerance, which few makers state.

**The error of edges** covers what a reading says of the power close to it. Power is assumed to stay between the values
of two neighbouring readings, so an interval dt over which it changes by dP is wrong by at most dt * |dP| / 2. A reading
that is up to U late adds at most U times the sum of all |dP|, up to the first reading U after the window, which
includes its end. An edge or a hole without readings adds its length times the range of the readings. The rounding of
the readings adds a hundredth of a watt, that of the coarsest source. Without a reading U after the window nothing
bounds its end, and there is no such error. Swings that start and end between two readings are not in it.

**The statistical error** includes those swings. Readings are taken at random moments, one in each period
(`howlow.meters.schedule`), so over a stationary load their mean is that of the power, if every moment is in a reading:
a sensor shows the power of the moment, or its mean since the last update. Its standard error follows from the means of
blocks of successive readings. The blocks are doubled until neighbouring ones are no longer correlated, because
correlated readings say less than independent ones (Flyvbjerg and Petersen 1989, "Error estimates on averages of
correlated data"). Where too few blocks are left, the load was not stationary for long enough, and there is no such
error.

A sensor that measures for only a part of the time, at moments of its own (25 of every 100 ms on A100 and H100), breaks
that premise. A load of its period shows it the high or the low part alone, at whatever moment it is read. With such a
sensor there is no statistical error. Of other sensors it is not known that they do.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

from howlow.meters.energy_bounds import ROUNDING, BoundedEnergy, Missing, Point, too_short
from howlow.records import WarningKind

LARGEST_HOLE = 0.05  # the share of a window that may be without readings
RESOLUTION_W = 0.01  # nvidia-smi prints hundredths; NVML has milliwatts
FEWEST_BLOCKS = 8
_FIRST_BLOCK = 2  # readings
_CONFIDENCE = 0.95


def power_energy(
    points: Sequence[Point],
    start_s: float,
    end_s: float,
    period_s: float,
    update_period_s: float,
    *,
    measures_always: bool = True,
) -> BoundedEnergy | Missing:
    """The energy of a window from readings of power, which are in the order of time.

    period_s: the intended time between two readings. measures_always: False where the sensor is known to measure for
    only a part of the time, so that there is no statistical error.
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
        return too_short(end_s - start_s, shortest_s, f"its power is read every {period_s:.3g} s")
    holes_s = end_s - start_s if energy_j is None else _holes_s(near, start_s, end_s, period_s)
    if energy_j is None or holes_s > LARGEST_HOLE * (end_s - start_s):
        return Missing(WarningKind.ENERGY_GAP, "readings of power are missing inside the window")
    if energy_j <= 0:
        return Missing(WarningKind.ENERGY_GAP, "the power read is 0 over the whole window")
    error_j = None
    if (near + later)[-1][0] >= end_s + update_period_s:
        error_j = _edges_error_j(near, later, (start_s, end_s), update_period_s, holes_s)
    inside = [power_w for time_s, power_w in near if start_s <= time_s <= end_s]
    error_w = statistical_error_w(inside) if measures_always else None
    statistical_j = None if error_w is None else error_w * (end_s - start_s)
    return BoundedEnergy(energy_j, error_j, len(near), "edges", statistical_j)


def statistical_error_w(powers_w: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean power, from readings in the order of time; None where they allow none."""
    size = _FIRST_BLOCK
    while len(powers_w) // size >= FEWEST_BLOCKS:
        means = [fmean(powers_w[at : at + size]) for at in range(0, len(powers_w) - size + 1, size)]
        spread_w = stdev(means)
        if spread_w == 0:
            return None
        if _correlation(means) < 1 / math.sqrt(len(means)):
            return _students_t(len(means) - 1) * spread_w / math.sqrt(len(means))
        size *= 2
    return None


def _correlation(values: Sequence[float]) -> float:
    """The autocorrelation of a series with itself one place later; the values are not all equal."""
    mean = fmean(values)
    return math.fsum((a - mean) * (b - mean) for a, b in pairwise(values)) / math.fsum((a - mean) ** 2 for a in values)


def _students_t(freedom: int) -> float:
    from scipy.special import stdtrit  # heavier than all else here, and needed only for polled power

    return float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))


def _holes_s(near: Sequence[tuple[float, float]], start_s: float, end_s: float, period_s: float) -> float:
    """Seconds of the window in intervals far longer than the period, those at its edges included."""
    moments = [start_s, *(time_s for time_s, _ in near if start_s < time_s < end_s), end_s]
    if near[0][0] <= start_s:
        moments[0] = near[0][0]
    if near[-1][0] >= end_s:
        moments[-1] = near[-1][0]
    allowed_s = max(4 * period_s, 0.5)
    return sum(min(t1, end_s) - max(t0, start_s) for t0, t1 in pairwise(moments) if t1 - t0 > allowed_s)


def _edges_error_j(
    near: Sequence[tuple[float, float]],
    later: Sequence[tuple[float, float]],
    window: tuple[float, float],
    update_period_s: float,
    holes_s: float,
) -> float:
    """The error of edges of the module's docstring; the `later` readings are those up to U after the window."""
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
