"""Meters: power integrated exactly, pauses left out, peaks that forget, a timeline at its rate."""

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howlow.meters import memory
from howlow.meters.energy import AssumedPower, NoEnergy, integrate_power, open_energy
from howlow.meters.session import Session
from howlow.records import read_timeline

CPU = torch.device("cpu")
moments = st.lists(st.floats(0, 100), min_size=4, max_size=40, unique=True).map(sorted)


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


def test_a_cpu_trial_has_no_energy_and_says_why() -> None:
    source = open_energy("auto", None, CPU)
    assert isinstance(source, NoEnergy)
    assert source.read_j() is None
    assert "cpu" in source.detail
    assert open_energy("none", None, CPU).detail == "meters.energy = none"


def test_assumed_watts_are_multiplied_by_the_measured_time_without_pauses(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, AssumedPower(40.0), 50.0, 0.0) as session, session.phase("train") as meter:
        with meter.step(measured=False, samples=1):
            time.sleep(0.05)
        with meter.step(measured=True, samples=2):
            time.sleep(0.1)
        meter.pause()
        time.sleep(0.3)
        with meter.step(measured=True, samples=3) as timed:
            time.sleep(0.1)
        record = meter.end()
    assert timed.energy_counter_j is not None
    assert record.measured_samples == 5
    assert record.measured_duration_s is not None
    assert 0.2 <= record.measured_duration_s < 0.29
    assert record.measured_energy_j == pytest.approx(40 * record.measured_duration_s, rel=1e-3)
    assert record.phase_energy_j == pytest.approx(40 * record.duration_s, rel=1e-2)


def test_a_phase_goes_on_with_the_totals_of_its_part_before_an_interruption(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, AssumedPower(10.0), 50.0, 0.0) as session:
        with session.phase("train") as meter, meter.step(measured=True, samples=4):
            time.sleep(0.05)
        totals = meter.pause()
    with Session(tmp_path, CPU, AssumedPower(10.0), 50.0, 7.0) as session, session.phase("train", totals) as meter:
        with meter.step(measured=True, samples=1) as timed:
            time.sleep(0.05)
        record = meter.end()
    assert timed.start_s >= 7
    assert record.measured_samples == 5
    assert record.measured_energy_j == pytest.approx(10 * (record.measured_duration_s or 0), rel=1e-2)


def test_the_timeline_has_its_rate_phases_and_no_repeated_readings(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, NoEnergy("test"), 20.0, 0.0) as session, session.phase("evaluate") as meter:
        began_s, until = session.trial_time(), time.monotonic() + 1.0
        while time.monotonic() < until:
            sum(range(10_000))
        meter.end()
    found = read_timeline(tmp_path)
    within = [reading for reading in found if reading.time_s > began_s]
    assert 10 <= len(within) <= 22
    assert {reading.phase for reading in within} == {"evaluate"}
    assert all(reading.power_w is None for reading in found)
    times = [reading.time_s for reading in found]
    assert times == sorted(set(times))
    assert max(reading.utilization or 0 for reading in found) > 0.1
    assert all((reading.memory_bytes or 0) > 50e6 for reading in found)


def test_a_peak_is_seen_once_and_forgotten_after_the_reset() -> None:
    if memory.reset_peaks(CPU) is not None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    before = memory.peaks(CPU).resident_bytes
    block = torch.ones(50_000_000)
    seen = memory.peaks(CPU).resident_bytes
    assert before is not None
    assert seen is not None
    assert seen - before > 190e6
    del block
    memory.release(CPU)
    memory.reset_peaks(CPU)
    after = memory.peaks(CPU).resident_bytes
    assert after is not None
    assert after < seen - 150e6
