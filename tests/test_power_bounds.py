"""Polled power -> energy: known joules in, the same joules out within what the error covers, and holes stay holes."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_energy_bounds import Curve

from howlow.meters.energy import EnergyMeter, InstrumentReadings, window_energy
from howlow.meters.energy_bounds import BoundedEnergy, Missing, Point
from howlow.meters.power_bounds import integrate_power, power_energy, statistical_error_w
from howlow.meters.schedule import Schedule
from howlow.records import EnergySource, EnergyWindow, WarningKind
from howlow.reporting.measured import _uncovered

moments = st.lists(st.floats(0, 100), min_size=4, max_size=40, unique=True).map(sorted)


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


def test_a_window_too_short_for_its_polling_has_no_energy_and_says_which_would_do() -> None:
    short = power_energy([Point(t, t, None, 100.0) for t in range(10)], 1.0, 2.0, 1.0, 0.1)
    assert isinstance(short, Missing)
    assert short.kind is WarningKind.ENERGY_WINDOW_TOO_SHORT
    assert "3 s would do" in short.detail


# -- swings between readings ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wave:
    """A load of so many watts for a share of each period, and 100 W for the rest of it."""

    high_w: float
    period_s: float
    share: float
    shift_s: float = 0.0

    def power_w(self, t: float) -> float:
        return self.high_w if (t - self.shift_s) % self.period_s < self.share * self.period_s else 100.0

    def energy_j(self, t: float) -> float:
        whole, part_s = divmod(t - self.shift_s, self.period_s)
        high_s = self.share * self.period_s * whole + min(part_s, self.share * self.period_s)
        return 100.0 * (t - self.shift_s) + (self.high_w - 100.0) * high_s


def polled(power_w: Callable[[float], float], until_s: float, period_s: float = 0.25) -> list[Point]:
    """Readings as the sampler takes them."""
    schedule, found = Schedule(period_s, "cuda:0"), []
    schedule.start(0.0)
    while schedule.due_s < until_s:
        found.append(Point(schedule.due_s, schedule.due_s, None, power_w(schedule.due_s)))
        schedule.taken(schedule.due_s)
    return found


waves = st.builds(Wave, st.floats(150, 700), st.floats(0.02, 0.6), st.floats(0.1, 0.9), st.floats(0, 0.6))


@pytest.mark.parametrize("shift_s", [0.0, 0.05, 0.12, 0.2])
def test_a_square_wave_of_the_pollings_period_is_not_told_with_a_tiny_error(shift_s: float) -> None:
    wave = Wave(500.0, 0.25, 0.5, shift_s)
    found = power_energy(polled(wave.power_w, 14.0), 2.0, 12.0, 0.25, 0.1)
    assert isinstance(found, BoundedEnergy)
    true_j = wave.energy_j(12.0) - wave.energy_j(2.0)
    assert true_j == pytest.approx(3000, rel=0.01)
    assert found.covers == "edges"
    assert found.energy_j == pytest.approx(true_j, rel=0.2)
    assert found.error_j is not None
    assert found.error_j >= abs(found.energy_j - true_j)
    assert found.statistical_error_j is not None
    assert 100 < found.statistical_error_j < 1000


def test_the_statistical_error_holds_the_truth_as_often_as_it_says() -> None:
    drawn, held = random.Random(0), []
    while len(held) < 300:
        wave = Wave(drawn.uniform(150, 700), drawn.choice([0.05, 0.25, 0.5, 0.3]), drawn.uniform(0.1, 0.9))
        start_s = drawn.uniform(1, 40)
        found = power_energy(polled(wave.power_w, start_s + 22), start_s, start_s + 20, 0.25, 0.1)
        assert isinstance(found, BoundedEnergy)
        if found.statistical_error_j is not None:
            true_j = wave.energy_j(start_s + 20) - wave.energy_j(start_s)
            held.append(abs(found.energy_j - true_j) <= found.statistical_error_j)
    assert sum(held) >= 0.9 * len(held)


@given(waves, st.floats(1.0, 5.0))
def test_energy_of_a_periodic_load_has_no_beat(wave: Wave, start_s: float) -> None:
    found = power_energy(polled(wave.power_w, 70.0), start_s, start_s + 60, 0.25, 0.1)
    assert isinstance(found, BoundedEnergy)
    true_j = wave.energy_j(start_s + 60) - wave.energy_j(start_s)
    assert found.energy_j == pytest.approx(true_j, abs=0.2 * 60 * (wave.high_w - 100) + 1)


def test_no_statistical_error_without_enough_readings_a_spread_or_a_stationary_load() -> None:
    noise = random.Random(1)
    steady = [300 + noise.gauss(0, 20) for _ in range(80)]
    assert statistical_error_w(steady) == pytest.approx(2 * 20 / 80**0.5, rel=0.5)
    assert statistical_error_w(steady[:15]) is None
    assert statistical_error_w([300.0] * 80) is None
    assert statistical_error_w([300.0 + index for index in range(80)]) is None  # it rises all the time


def test_correlated_readings_have_a_larger_error_than_independent_ones() -> None:
    noise, level = random.Random(2), 0.0
    readings = []
    for _ in range(800):
        level = 0.9 * level + noise.gauss(0, 20 * 0.19**0.5)  # a spread of 20 W, correlated over about ten readings
        readings.append(300 + level)
    error_w = statistical_error_w(readings)
    assert error_w is not None
    assert error_w > 2 * 1.96 * 20 / 800**0.5


# -- sensors that sample by themselves ------------------------------------------------------------------------------


def in_part(wave: Wave, t: float) -> float:
    """What a sensor shows that measures the first 25 of every 100 ms, as A100 and H100 do."""
    updated_s = math.floor(t / 0.1) * 0.1 - 0.075
    return (wave.energy_j(updated_s) - wave.energy_j(updated_s - 0.025)) / 0.025


def told(share: float | None) -> BoundedEnergy:
    """A minute of a load whose steps have the sensor's own period, read with some noise."""
    noise = random.Random(3)
    points = polled(lambda t: in_part(LOCKED, t) + noise.gauss(0, 5), 64.0)
    trace = InstrumentReadings([], points, 0.25, 0.1)
    found = window_energy(EnergyMeter("nvml power", "", "power", sampled_share=share), [trace], 2.0, 62.0)
    assert isinstance(found, BoundedEnergy)
    return found


LOCKED = Wave(500.0, 0.1, 0.5)
"""A load that such a sensor only ever sees in its high part."""


def test_a_sensor_that_samples_by_itself_has_no_statistical_error() -> None:
    wrong_j = abs(told(0.25).energy_j - (LOCKED.energy_j(62.0) - LOCKED.energy_j(2.0)))
    assert told(0.25).statistical_error_j is None
    assert told(0.25).covers == "edges"
    error_j = told(None).statistical_error_j
    assert error_j is not None
    assert error_j < wrong_j / 100  # what random moments of reading would make of it


@pytest.mark.parametrize(("share", "names_it"), [(None, False), (0.25, True)])
def test_what_the_page_says_of_polled_power(share: float | None, names_it: bool) -> None:
    source = EnergySource(name="nvml power", detail="power of GPU-1", power_sampled_share=share)
    window = EnergyWindow(part="measured", energy_j=9.0, error_j=1.0, error_covers="edges")
    phase = SimpleNamespace(windows=(window,))
    (line,) = _uncovered(SimpleNamespace(energy=source, phases=(phase,)))
    assert "swings between two readings are not in it" in line
    assert ("no statistical error" in line) == names_it
