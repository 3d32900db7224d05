"""A counter that is read once a second is read at once again where it seems to stand still."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.meters.counters import StandstillWatch


def standing_s(start_s: float, length_s: float, watts: float, every_s: float) -> float:
    """How long readings show a counter of 0.1 s unchanged that loses so many seconds; power is read at 4 Hz."""
    watch, seen, next_s = StandstillWatch(), list[tuple[float, float]](), 0.0
    for look in range(60):
        now_s = look / 4
        watch.power(watts)
        if watch.seems_to_stand or now_s >= next_s:
            tick_s = now_s // 0.1 * 0.1
            lost_s = min(length_s, max(0.0, tick_s - start_s))
            counter_j = watts * (tick_s - lost_s)
            watch.counter(now_s, counter_j)
            seen.append((now_s, counter_j))
            next_s = now_s + every_s
    same = [moments_s for moments_s, value in seen if value == pytest.approx(watts * start_s, abs=0.11 * watts)]
    return same[-1] - same[0] if same else 0.0


@given(st.floats(3.0, 6.0), st.floats(1.2, 3.0), st.floats(60, 700))
def test_a_standstill_of_over_a_second_is_seen_by_readings_once_a_second(
    start_s: float, length_s: float, watts: float
) -> None:
    assert standing_s(start_s, length_s, watts, 1.0) >= 0.25


def test_a_counter_that_keeps_up_is_not_read_more_often() -> None:
    watch = StandstillWatch()
    for look in range(40):
        watch.power([120.0, 700.0, 300.0, 200.0][look % 4])  # bursts, of 330 W in the mean
        if look % 4 == 3:
            watch.counter(look / 4, 330.0 * (look / 4))
        assert not watch.seems_to_stand
