"""A counter that freezes and loses energy: the truth is within the stated error, or there is no energy."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from howlow.meters.energy import EnergyMeter, InstrumentReadings, window_energy
from howlow.meters.energy_bounds import BoundedEnergy, Missing, Point
from howlow.records import CounterPace, WarningKind

PERIOD_S, LATENCY_S, LENGTH_S, GRID_S = 0.1, 0.001, 6.0, 0.005
Freeze = tuple[float, float, float]
"""When the counter begins and ceases to keep its value, and the share of the energy that it counts meanwhile."""


def steady(watts: float) -> Callable[[float], float]:
    return lambda t: watts if 0 <= t <= LENGTH_S else 100.0


def told(
    power_w: Callable[[float], float],
    freezes: Sequence[Freeze],
    phase_s: float,
    reads_s: float = 0.25,
    share: float | None = None,
    has_power: bool = True,
) -> tuple[BoundedEnergy | Missing, float]:
    """The energy of six seconds, and the true joules."""
    grid = [index * GRID_S - 1 for index in range(round((LENGTH_S + 2) / GRID_S))]
    kept = [next((share for start, end, share in freezes if start <= t < end), 1.0) for t in grid]
    drawn = [0.0, *accumulate(power_w(t) * GRID_S for t in grid)]
    counted = [0.0, *accumulate(power_w(t) * GRID_S * share for t, share in zip(grid, kept, strict=True))]

    def counter_j(t: float) -> float:
        tick_s = tick_before_s(t)
        frozen_s = next((start for start, end, _ in freezes if start <= tick_s < end), None)
        return counted[max(0, int(((tick_s if frozen_s is None else tick_before_s(frozen_s)) + 1) / GRID_S))]

    def tick_before_s(t: float) -> float:
        return math.floor((t - phase_s) / PERIOD_S) * PERIOD_S + phase_s

    looks = [index * reads_s - 1 for index in range(int((LENGTH_S + 2) / reads_s))]
    polls = [index * 0.002 for index in range(70)]
    moments = sorted({*looks, *(t - 0.14 for t in polls), *(LENGTH_S + 0.001 + t for t in polls)})
    counters = [Point(t, t + LATENCY_S, counter_j(t + LATENCY_S / 2)) for t in moments]
    powers = [Point(t, t + LATENCY_S, None, power_w(t)) for t in moments] if has_power else []
    pace = CounterPace(
        device="simulated",
        period_s=PERIOD_S,
        longest_s=PERIOD_S,
        step_j=0.0,
        latency_s=LATENCY_S,
        largest_latency_s=LATENCY_S,
        watched_s=1.0,
        lag_s=0.0,
    )
    trace = InstrumentReadings(counters, powers, reads_s, PERIOD_S * 1.02, usual_period_s=PERIOD_S, pace=pace)
    meter = EnergyMeter("nvml counter", "", "counter", sampled_share=share)
    return window_energy(meter, [trace], 0.0, LENGTH_S), drawn[round(7 / GRID_S)] - drawn[round(1 / GRID_S)]


def assert_is_within_the_error_or_missing(found: BoundedEnergy | Missing, true_j: float) -> None:
    if isinstance(found, Missing):
        assert found.kind is WarningKind.COUNTER_STOOD_STILL
    else:
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j + 1e-6


@settings(max_examples=60)
@given(
    st.floats(150, 700),
    st.floats(0.2, 5.0),
    st.floats(0.05, 3.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, PERIOD_S),
    st.sampled_from([None, 0.25]),
    st.sampled_from([0.05, 0.25]),
)
def test_whatever_share_a_freeze_loses_the_truth_is_within_the_error(
    watts: float, start_s: float, length_s: float, kept: float, phase_s: float, share: float | None, reads_s: float
) -> None:
    freezes = [(start_s, min(start_s + length_s, LENGTH_S - 0.2), kept)]
    assert_is_within_the_error_or_missing(*told(steady(watts), freezes, phase_s, reads_s, share))


@settings(max_examples=40)
@given(
    st.floats(0.25, 1.0),
    st.floats(0.05, 0.24),
    st.floats(0.0, 1.0),
    st.floats(0.0, PERIOD_S),
    st.sampled_from([None, 0.25]),
)
def test_repeated_short_freezes_are_within_the_error(
    every_s: float, length_s: float, kept: float, phase_s: float, share: float | None
) -> None:
    freezes = [(n * every_s + 0.05, n * every_s + 0.05 + length_s, kept) for n in range(int(5.5 / every_s))]
    assert_is_within_the_error_or_missing(*told(steady(300.0), freezes, phase_s, share=share))


@settings(max_examples=30)
@given(st.floats(2.0, 2.2), st.floats(0.8, 1.3), st.floats(0.0, 1.0), st.floats(0.0, PERIOD_S))
def test_a_freeze_under_a_high_load_is_within_the_error(
    start_s: float, length_s: float, kept: float, phase_s: float
) -> None:
    def power_w(t: float) -> float:
        return 100.0 if not 0 <= t <= LENGTH_S else 600.0 if 2 <= t < 3.5 else 200.0

    assert_is_within_the_error_or_missing(*told(power_w, [(start_s, start_s + length_s, kept)], phase_s))


@pytest.mark.parametrize("kept", [0.0, 0.8, 1.0])
def test_without_power_a_standstill_has_no_energy(kept: float) -> None:
    found, _ = told(steady(300.0), [(2.0, 3.2, kept)], 0.03, has_power=False)
    assert isinstance(found, Missing)
    assert found.kind is WarningKind.COUNTER_STOOD_STILL


def test_a_sound_counter_keeps_its_small_error() -> None:
    for share in (None, 0.25):
        found, true_j = told(steady(300.0), [], 0.03, share=share)
        assert isinstance(found, BoundedEnergy), found
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j < 0.02 * true_j
