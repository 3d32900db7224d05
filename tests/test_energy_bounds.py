"""Readings -> energy: known joules in, the same joules out within the stated error, and holes that stay holes."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.meters.energy_bounds import BoundedEnergy, Missing, Point, counter_energy, integrate_power, power_energy
from howlow.records import WarningKind

moments = st.lists(st.floats(0, 100), min_size=4, max_size=40, unique=True).map(sorted)


@dataclass(frozen=True)
class Curve:
    """Watts, linear between moments and constant outside them."""

    times_s: tuple[float, ...]
    watts: tuple[float, ...]

    def power_w(self, t: float) -> float:
        i = bisect_right(self.times_s, t)
        if i == 0 or i == len(self.times_s):
            return self.watts[0 if i == 0 else -1]
        t0, t1, p0, p1 = *self.times_s[i - 1 : i + 1], *self.watts[i - 1 : i + 1]
        return p0 + (p1 - p0) * (t - t0) / (t1 - t0)

    def energy_j(self, t: float) -> float:
        edges = [0.0, *(edge for edge in self.times_s if 0 < edge < t), t]
        return math.fsum((b - a) * (self.power_w(a) + self.power_w(b)) / 2 for a, b in pairwise(edges))


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    times = sorted(draw(st.lists(st.floats(0, 20), min_size=2, max_size=20, unique_by=lambda t: round(t, 2))))
    watts = draw(st.lists(st.floats(20, 700), min_size=len(times), max_size=len(times)))
    return Curve(tuple(times), tuple(watts))


def counter_points(curve: Curve, moments_s: list[float], period_s: float, step_j: float) -> list[Point]:
    """What a counter shows that is updated every period and rises in steps."""
    found = []
    for t in sorted(moments_s):
        value = math.floor(curve.energy_j(math.floor(t / period_s) * period_s) / step_j) * step_j
        found.append(Point(t, t + 1e-5, value))
    return found


@given(
    curves(),
    st.floats(0.1, 8.0),
    st.floats(0.5, 10.0),
    st.sampled_from([0.001, 0.02, 0.1]),
    st.sampled_from([0.001, 1.0]),
    st.lists(st.floats(0, 20), max_size=60),
)
def test_a_counters_window_has_the_true_joules_within_its_error(
    curve: Curve, start: float, length: float, period_s: float, step_j: float, extra: list[float]
) -> None:
    end = start + length
    moments_s = [max(0.0, start - 1e-4), end, *extra, *(t / 4 for t in range(100))]
    found = counter_energy(counter_points(curve, moments_s, period_s, step_j), start, end, period_s, step_j)
    if isinstance(found, Missing):
        assert end - start < 5 * period_s
        return
    true_j = curve.energy_j(end) - curve.energy_j(start)
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j + 1e-6


@given(curves(), st.floats(0.1, 8.0), st.floats(0.5, 10.0), st.sampled_from([0.001, 0.02, 0.1]))
def test_what_a_counter_does_not_yet_show_at_the_end_is_within_the_error(
    curve: Curve, start: float, length: float, period_s: float
) -> None:
    """The last reading is that at the window's end: a rise of power in the last period is in none."""
    end = start + length
    moments_s = [max(0.0, start - 1e-4), end, *(t / 4 for t in range(100) if t / 4 < end)]
    found = counter_energy(counter_points(curve, moments_s, period_s, 0.001), start, end, period_s, 0.001)
    true_j = curve.energy_j(end) - curve.energy_j(start)
    if isinstance(found, BoundedEnergy):
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j + 1e-6


def test_a_rise_of_power_in_a_counters_last_period_is_within_the_error() -> None:
    curve = Curve((4.919, 4.92), (60.0, 600.0))
    points = counter_points(curve, [0.9, 1.0, 2.0, 3.0, 4.0, 4.9, 5.0], 0.1, 0.001)
    found = counter_energy(points, 1.0, 5.0, 0.1, 0.001)
    assert isinstance(found, BoundedEnergy)
    assert found.error_j is not None
    assert abs(found.energy_j - (curve.energy_j(5.0) - curve.energy_j(1.0))) <= found.error_j + 1e-6


def test_a_reading_soon_after_the_end_encloses_it_from_below() -> None:
    points = [Point(t, t + 1e-5, 200 * t) for t in (0.0, 1.0, 1.03, 3.0, 5.0, 5.02, 6.0)]
    found = counter_energy(points, 1.0, 5.0 - 1e-4, 0.02, 0.001)
    assert isinstance(found, BoundedEnergy)
    assert found.error_j is not None
    assert found.error_j < 0.02 * found.energy_j  # not the 400 J since the reading at second 3


@given(curves(), st.floats(0.3, 8.0), st.floats(2.0, 10.0))
def test_missing_edge_readings_make_the_error_wider_never_the_truth_miss(
    curve: Curve, start: float, length: float
) -> None:
    end = start + length
    sparse = counter_points(curve, [t * 0.7 for t in range(30)], 0.1, 0.001)
    true_j = curve.energy_j(end) - curve.energy_j(start)
    wide = counter_energy(sparse, start, end, 0.1, 0.001)
    dense = counter_energy(
        counter_points(curve, [t * 0.7 for t in range(30)] + [start, end, end + 0.1], 0.1, 0.001),
        start,
        end,
        0.1,
        0.001,
    )
    assert isinstance(wide, BoundedEnergy)
    assert isinstance(dense, BoundedEnergy)
    assert wide.error_j is not None
    assert dense.error_j is not None
    assert abs(wide.energy_j - true_j) <= wide.error_j + 1e-6
    # The truth is enclosed more closely; of an enclosure the error is at least half and at most all.
    assert dense.error_j <= 2 * wide.error_j + 1e-6


@given(st.lists(st.floats(20, 700), min_size=60, max_size=60), st.floats(0.3, 5.0), st.floats(1.0, 8.0))
def test_polled_power_has_the_true_joules_within_its_error(watts: list[float], start: float, length: float) -> None:
    curve = Curve(tuple(t / 4 for t in range(60)), tuple(watts))  # monotone between readings, as the bound assumes
    points = [Point(t, t, None, curve.power_w(t)) for t in curve.times_s]
    found = power_energy(points, start, start + length, 0.25, 0.05)
    assert isinstance(found, BoundedEnergy)
    assert found.error_j is not None
    assert abs(found.energy_j - (curve.energy_j(start + length) - curve.energy_j(start))) <= found.error_j + 1e-6


@given(st.lists(st.floats(20, 700), min_size=61, max_size=61), st.floats(0.6, 5.0), st.floats(1.0, 8.0), st.data())
def test_late_power_readings_stay_within_the_error(
    watts: list[float], start: float, length: float, data: st.DataObject
) -> None:
    period_s = data.draw(st.sampled_from([0.1, 0.25, 1.0]))
    read_s = [t / 4 for t in range(61)]
    lags = data.draw(st.lists(st.floats(0, 0.24), min_size=61, max_size=61)) if period_s == 0.25 else [period_s] * 61
    curve = Curve(tuple(t - lag for t, lag in zip(read_s, lags, strict=True)), tuple(watts))
    points = [Point(t, t, None, power_w) for t, power_w in zip(read_s, watts, strict=True)]
    end = start + max(length, 3 * period_s)
    found = power_energy(points, start, end, 0.25, period_s)
    assert isinstance(found, BoundedEnergy)
    assert found.error_j is not None
    assert abs(found.energy_j - (curve.energy_j(end) - curve.energy_j(start))) <= found.error_j + 1e-6


def test_a_rise_that_shows_only_after_the_window_is_in_its_error() -> None:
    def energy(until_s: int) -> BoundedEnergy:
        points = [Point(t / 4, t / 4, None, 100.0 if t < 53 else 600.0) for t in range(4 * until_s + 1)]
        found = power_energy(points, 10.0, 13.0, 0.25, 1.0)
        assert isinstance(found, BoundedEnergy)
        return found

    assert energy(20).energy_j == 300.0
    assert (energy(20).error_j or 0) >= 450  # 600 W from 12.25 s on, a second late


def test_what_happened_in_a_hole_is_in_the_error() -> None:
    times = [t / 4 for t in range(242) if not 100 < t < 106]
    points = [Point(t, t, None, 100.0 + 100.0 * (t > 50)) for t in times]
    found = power_energy(points, 0.0, 60.0, 0.25, 0.05)
    assert isinstance(found, BoundedEnergy)
    assert (found.error_j or 0) >= 1.5 * 100.0


def test_a_window_too_short_has_no_energy_and_says_which_would_do() -> None:
    points = counter_points(Curve((0, 10), (100, 100)), [t / 10 for t in range(30)], 0.1, 0.001)
    found = counter_energy(points, 1.0, 1.3, 0.1)
    assert isinstance(found, Missing)
    assert found.kind is WarningKind.ENERGY_WINDOW_TOO_SHORT
    assert "0.5 s would do" in found.detail
    polled = [Point(t, t, None, 100.0) for t in range(10)]
    short = power_energy(polled, 1.0, 2.0, 1.0, 0.1)
    assert isinstance(short, Missing)
    assert "3 s would do" in short.detail


def test_a_counter_that_was_reset_inside_the_window_gives_none() -> None:
    points = [Point(float(t), float(t), 100.0 * t, None, epoch=t > 5) for t in range(10)]
    found = counter_energy(points, 2.0, 8.0, 0.1)
    assert isinstance(found, Missing)
    assert "reset" in found.detail
    assert isinstance(counter_energy(points, 1.0, 4.0, 0.1), BoundedEnergy)


def test_a_counter_that_stands_still_is_not_zero_joules() -> None:
    found = counter_energy([Point(float(t), float(t), 5.0) for t in range(10)], 2.0, 8.0, 0.1)
    assert isinstance(found, Missing)
    assert found.kind is WarningKind.ENERGY_GAP


def test_a_hole_in_polled_power_is_a_gap_and_not_zero() -> None:
    times = [t / 4 for t in range(80) if not 20 <= t <= 40]
    points = [Point(t, t, None, 200.0) for t in times]
    assert isinstance(power_energy(points, 1.0, 18.0, 0.25, 0.1), Missing)
    whole = power_energy(points, 11.0, 18.0, 0.25, 0.1)
    assert isinstance(whole, BoundedEnergy)
    assert whole.energy_j == pytest.approx(1400)
    assert whole.error_j == pytest.approx(0.07)  # what rounding to a hundredth of a watt hides in 7 s


@given(moments, st.floats(0, 500), st.floats(-2, 2))
def test_power_that_changes_linearly_is_integrated_exactly(times: list[float], watts: float, slope: float) -> None:
    powers = [watts + slope * time_s for time_s in times]
    start, end = times[1], times[-2]
    expected = (end - start) * (watts + slope * (start + end) / 2)
    found = integrate_power(times, powers, start, end)
    if start == end:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_two_readings_closer_than_a_slope_can_tell_are_no_infinity() -> None:
    assert integrate_power([0.0, 5e-324, 1.0], [0.0, 1.0, 1.0], 0.0, 1.0) == pytest.approx(1.0)


@given(moments, st.data())
def test_energy_adds_up_over_windows_that_meet(times: list[float], data: st.DataObject) -> None:
    powers = [data.draw(st.floats(0, 400)) for _ in times]
    middle = times[len(times) // 2]
    whole = integrate_power(times, powers, times[0], times[-1])
    parts = [integrate_power(times, powers, times[0], middle), integrate_power(times, powers, middle, times[-1])]
    if None not in parts:
        assert whole == pytest.approx(sum(part for part in parts if part is not None), rel=1e-9, abs=1e-6)


def test_fewer_than_two_readings_say_nothing_about_an_interval() -> None:
    assert integrate_power([], [], 0, 1) is None
    assert integrate_power([0.5], [100], 0, 1) is None
    assert integrate_power([0.0, 5.0], [100, 100], 1, 4) is None


def test_without_a_reading_that_knows_of_the_end_power_has_no_bound() -> None:
    late = [Point(t / 4, t / 4, None, 100.0 if t / 4 - 1 <= 10 else 300.0) for t in range(80)]  # it rises at 10 s
    ends_early = power_energy(late[:42], 5.0, 10.2, 0.25, 1.0)
    assert isinstance(ends_early, BoundedEnergy)
    assert ends_early.error_j is None
    whole = power_energy(late, 5.0, 10.2, 0.25, 1.0)
    assert isinstance(whole, BoundedEnergy)
    assert abs(whole.energy_j - (5.0 * 100 + 0.2 * 300)) <= (whole.error_j or 0)


def test_a_window_whose_power_reads_0_has_no_energy() -> None:
    found = power_energy([Point(t / 4, t / 4, None, 0.0) for t in range(80)], 1.0, 10.0, 0.25, 0.1)
    assert isinstance(found, Missing)
