"""Readings are taken once in each period, at another part of it each time, and at the rate that was asked for."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.meters.schedule import Schedule


def moments(period_s: float, count: int, name: str = "cuda:0", took_s: float = 0.0) -> list[float]:
    """When an instrument is read whose readings take so long."""
    schedule, found = Schedule(period_s, name), []
    schedule.start(10.0)
    for _ in range(count):
        found.append(schedule.due_s)
        schedule.taken(schedule.due_s + took_s)
    return found


@given(st.sampled_from([0.02, 0.25, 1.0]), st.sampled_from(["cpu", "cuda:0", "package-0"]))
def test_there_is_one_reading_in_each_period(period_s: float, name: str) -> None:
    for index, moment_s in enumerate(moments(period_s, 200, name)):
        assert index == 0 or 10 + index * period_s <= moment_s <= 10 + (index + 1) * period_s


@given(st.floats(0.05, 3.0), st.sampled_from(["cpu", "cuda:0", "package-0"]))
def test_readings_fall_on_every_part_of_a_load_of_any_period(load_s: float, name: str) -> None:
    parts = [moment_s % load_s / load_s for moment_s in moments(0.25, 400, name)]
    for low in (0.0, 0.25, 0.5, 0.75):
        assert sum(low <= part < low + 0.25 for part in parts) == pytest.approx(100, abs=40)


def test_the_moments_are_the_same_in_every_trial_and_differ_between_instruments() -> None:
    assert moments(0.25, 20) == moments(0.25, 20)
    assert moments(0.25, 20) != moments(0.25, 20, "cuda:1")


def test_what_is_not_polled_power_is_read_at_equal_distances() -> None:
    schedule, found = Schedule(0.25, "cuda:0", is_random=False), []
    schedule.start(10.0)
    for _ in range(5):
        found.append(schedule.due_s)
        schedule.taken(schedule.due_s)
    assert found == [10.0, 10.25, 10.5, 10.75, 11.0]


def test_a_period_begins_with_a_reading_that_is_hurried() -> None:
    schedule = Schedule(0.25, "cuda:0", is_random=False)
    schedule.start(10.0)
    schedule.taken(10.0)
    schedule.hurry(10.1)
    assert schedule.due_s == 10.1
    schedule.taken(10.1)
    assert schedule.due_s == pytest.approx(10.35)


def test_a_late_reading_does_not_hurry_the_next() -> None:
    slow = moments(0.25, 50, took_s=1.0)
    assert all(later - sooner >= 1.0 for sooner, later in pairwise(slow))
