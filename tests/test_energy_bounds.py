"""A counter's readings -> energy: known joules in, the same out within the stated error, and holes stay holes."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from howlow.meters.energy_bounds import BoundedEnergy, Missing, Point, counter_energy
from howlow.records import WarningKind


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


def test_a_window_too_short_has_no_energy_and_says_which_would_do() -> None:
    points = counter_points(Curve((0, 10), (100, 100)), [t / 10 for t in range(30)], 0.1, 0.001)
    found = counter_energy(points, 1.0, 1.09, 0.1)
    assert isinstance(found, Missing)
    assert found.kind is WarningKind.ENERGY_WINDOW_TOO_SHORT
    assert "0.1 s would do" in found.detail


def test_a_counter_that_was_reset_inside_the_window_gives_none() -> None:
    points = [Point(float(t), float(t), 100.0 * t, None, epoch=t > 5) for t in range(10)]
    found = counter_energy(points, 2.0, 8.0, 0.1)
    assert isinstance(found, Missing)
    assert "reset" in found.detail
    assert isinstance(counter_energy(points, 1.0, 4.0, 0.1), BoundedEnergy)


def test_a_counter_that_stands_still_is_not_zero_joules() -> None:
    found = counter_energy([Point(float(t), float(t), 5.0) for t in range(10)], 2.0, 8.0, 0.1)
    assert isinstance(found, Missing)
    assert found.kind is WarningKind.COUNTER_STOOD_STILL
