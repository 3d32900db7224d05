"""The conditions of a measured window: hand-computed summaries, joined over interruptions, and their warning."""

import pytest

from howlow.meters.conditions import condition_warnings, conditions_between, joined_conditions
from howlow.records import DeviceConditions, Reading, Spread, WarningKind


def reading(time_s: float, **values: object) -> Reading:
    return Reading(time_s=time_s, device="cuda:0", phase="train", **values)  # type: ignore[arg-type]


def between(readings: list[Reading], start_s: float, end_s: float) -> DeviceConditions:
    (found,) = conditions_between([readings], start_s, end_s)
    return found


def test_only_the_readings_inside_the_window_count() -> None:
    clocks = [1.0e9, 1.4e9, 1.5e9, 1.9e9, 0.3e9]
    readings = [reading(float(at), sm_clock_hz=clock, temperature_c=60.0 + at) for at, clock in enumerate(clocks)]
    found = between(readings, 0.5, 3.0)
    assert (found.device, found.readings, found.duration_s) == ("cuda:0", 3, 2.5)
    assert found.sm_clock_hz == Spread(low=1.4e9, mean=1.6e9, high=1.9e9)
    assert found.temperature_c == Spread(low=61, mean=62, high=63)
    assert found.memory_temperature_c is None
    assert found.throttled_share is None


def test_a_device_that_reports_none_is_left_out() -> None:
    assert conditions_between([[], [reading(1.0, power_w=100.0)]], 0.0, 2.0) == ()


def test_throttling_is_the_share_of_the_readings_that_show_it() -> None:
    reasons: list[tuple[str, ...]] = [("sw_power_cap",), (), ("sw_power_cap", "sw_thermal_slowdown"), ()]
    readings = [reading(float(at), throttle_reasons=found) for at, found in enumerate(reasons)]
    assert between(readings, 0.0, 3.0).throttled_share == {"sw_power_cap": 0.5, "sw_thermal_slowdown": 0.25}
    assert between(readings[1:2], 0.0, 3.0).throttled_share == {}


def test_the_drivers_own_times_count_what_readings_miss() -> None:
    readings = [reading(float(at), throttle_reasons=(), throttled_s={"sw_power_cap": 0.3 * at}) for at in range(11)]
    assert between(readings, 0.9, 9.1).throttled_share == {"sw_power_cap": pytest.approx(0.3)}


def test_times_that_are_far_from_the_window_or_no_seconds_are_not_taken() -> None:
    far = [reading(float(at), throttle_reasons=("a",), throttled_s={"a": 0.0}) for at in range(11)]
    assert between(far, 0.4, 1.6).throttled_share == {"a": 1.0}
    wrong = [reading(float(at), throttle_reasons=(), throttled_s={"a": 1000.0 * at}) for at in range(11)]
    assert between(wrong, 0.9, 9.1).throttled_share == {}


def test_two_stretches_are_one_window() -> None:
    first = [reading(float(at), sm_clock_hz=1e9, throttle_reasons=("sw_power_cap",)) for at in range(3)]
    later = [reading(float(at), sm_clock_hz=2e9, throttle_reasons=()) for at in range(9)]
    (found,) = joined_conditions([between(first, 0.0, 2.0)], [between(later, 0.0, 8.0)])
    assert (found.readings, found.duration_s) == (12, 10)
    assert found.sm_clock_hz == Spread(low=1e9, mean=1.75e9, high=2e9)
    assert found.throttled_share == {"sw_power_cap": pytest.approx(0.2)}
    assert joined_conditions([], [found]) == joined_conditions([found], []) == (found,)


@pytest.mark.parametrize(("share", "is_told"), [(0.95, True), (0.5, True), (0.2, False)])
def test_throttling_that_lasts_is_a_warning(share: float, is_told: bool) -> None:
    limit = Spread(low=700, mean=700, high=700)
    found = DeviceConditions(
        device="cuda:0", readings=20, duration_s=5, power_limit_w=limit, throttled_share={"sw_power_cap": share}
    )
    warnings = list(condition_warnings("train", [found]))
    assert [warning.kind for warning in warnings] == [WarningKind.HELD_BY_POWER_LIMIT] * is_told
    if is_told:
        assert f"the power limit of 700 W held its clocks down for {share:.0%}" in warnings[0].detail
        assert "nvidia-smi -pl" in warnings[0].remedy
