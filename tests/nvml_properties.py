"""Properties of the real nvidia-ml-py over the stand-in library; test_nvml.py runs this file in a process that has it.

The stand-in's clock is set by hand, so that a window of seconds takes no time.
"""

import ctypes
import math
import os
from itertools import pairwise
from pathlib import Path

import pynvml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from howlow.meters.energy import EnergyMeter, window_energy
from howlow.meters.energy_bounds import BoundedEnergy
from howlow.meters.nvml import NvmlDevice, device_uuids
from howlow.meters.sampler import Reader
from howlow.meters.schedule import Schedule
from howlow.meters.timeline import Timeline

PERIOD_S = float(os.environ["HOWLOW_NVML_PERIOD_MS"]) / 1000


class StandIn:
    """The library that pynvml has loaded, and the curve that it follows."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.library = pynvml.nvmlLib
        self.library.stand_in_set_time.argtypes = [ctypes.c_double]

    def set_time(self, seconds: float) -> None:
        self.now_s = seconds
        self.library.stand_in_set_time(seconds)

    def set_wave(self, watts: float, period_s: float, share: float) -> None:
        """So many watts for that share of each period, on top of the curve."""
        self.library.stand_in_set_wave.argtypes = [ctypes.c_double] * 3
        self.library.stand_in_set_wave(1000 * watts, period_s, share)

    def set_curve(self, times_s: list[float], watts: list[float]) -> None:
        array = ctypes.c_double * len(times_s)
        self.library.stand_in_set_curve(len(times_s), array(*times_s), array(*(1000 * power for power in watts)))
        self.times_s, self.watts = times_s, watts

    def energy_j(self, start_s: float, end_s: float) -> float:
        edges = sorted({start_s, end_s, *(t for t in self.times_s if start_s < t < end_s)})
        return math.fsum((b - a) * (self._power_w(a) + self._power_w(b)) / 2 for a, b in pairwise(edges))

    def _power_w(self, t: float) -> float:
        if t <= self.times_s[0]:
            return self.watts[0]
        for i in range(1, len(self.times_s)):
            if t <= self.times_s[i]:
                t0, t1, p0, p1 = *self.times_s[i - 1 : i + 1], *self.watts[i - 1 : i + 1]
                return p0 + (p1 - p0) * (t - t0) / (t1 - t0)
        return self.watts[-1]


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    device_uuids()  # loads the library
    return StandIn()


curves = st.lists(
    st.tuples(st.integers(1, 80), st.integers(20, 700)), min_size=2, max_size=20, unique_by=lambda point: point[0]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(curves, st.floats(1.5, 9.0), st.floats(0.6, 10.0), st.data())
def test_known_joules_in_the_same_joules_out(
    stand_in: StandIn,
    tmp_path: Path,
    curve: list[tuple[int, int]],
    start_s: float,
    length_s: float,
    data: st.DataObject,
) -> None:
    lost = data.draw(st.sets(st.integers(3, 90), max_size=40))  # readings that were missed: a gap, not a zero
    curve.sort()
    stand_in.set_curve([time / 4 for time, _ in curve], [float(watts) for _, watts in curve])
    device = NvmlDevice("11111111-aaaa")
    timeline = Timeline(tmp_path / "timeline.jsonl")
    reader = Reader(device, 4.0, timeline, lambda: stand_in.now_s)
    for tick in range(600):  # the fast readings at the start
        stand_in.set_time(tick / 1000)
        if reader._found_period.wants_fast_readings:
            reader.read_fast()
    end_s = start_s + length_s
    timeline_s = [0.6 + tick / 4 for tick in range(90) if tick not in lost]
    for moment_s in sorted([*timeline_s, start_s, end_s, end_s + PERIOD_S]):
        stand_in.set_time(moment_s)
        reader.look()
    timeline.close()
    assert reader.update_period_s >= PERIOD_S * 0.98
    meter = EnergyMeter("nvml counter", "", "counter", (device,))
    found = window_energy(meter, [reader.readings], start_s, end_s)
    assert isinstance(found, BoundedEnergy), found
    assert found.error_j is not None
    assert abs(found.energy_j - stand_in.energy_j(start_s, end_s)) <= found.error_j + 1e-6


@settings(max_examples=20)
@given(curves)
def test_power_is_that_of_the_curve(stand_in: StandIn, curve: list[tuple[int, int]]) -> None:
    curve.sort()
    stand_in.set_curve([time / 4 for time, _ in curve], [float(watts) for _, watts in curve])
    device = NvmlDevice("22222222-bbbb")
    for tick in range(0, 90, 7):
        stand_in.set_time(tick / 4)
        assert device.power_w() == pytest.approx(stand_in._power_w(tick / 4), abs=1e-3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(50, 500),
    st.sampled_from([0.25, 0.125, 0.5, 0.02, 0.31]) | st.floats(0.02, 0.6),
    st.sampled_from([0.05, 0.5, 0.9]),
    st.floats(0.5, 3.0),
    st.booleans(),
)
def test_waves_and_spikes_are_within_the_errors_of_polled_power(
    stand_in: StandIn, tmp_path: Path, watts: float, wave_s: float, share: float, start_s: float, is_averaged: bool
) -> None:
    """The counter of the same device says what was drawn. Averaged power is the mean of the second before."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HOWLOW_NVML_AVERAGE_MS" if is_averaged else "HOWLOW_NVML_INSTANT", "1000")
    stand_in.set_curve([0.0, 100.0], [100.0, 100.0])
    stand_in.set_wave(watts, wave_s, share)
    stand_in.set_time(0.0)
    device, end_s = NvmlDevice("11111111-aaaa"), start_s + 20
    timeline = Timeline(tmp_path / "timeline.jsonl")
    reader = Reader(device, 4.0, timeline, lambda: stand_in.now_s, 1.0 if is_averaged else 0.1)
    schedule = Schedule(0.25, device.device)
    schedule.start(0.0)
    while stand_in.now_s < end_s + 2:
        stand_in.set_time(schedule.due_s)
        reader.look()
        schedule.taken(schedule.due_s)
    timeline.close()
    found = window_energy(EnergyMeter("nvml power", "", "power", (device,)), [reader.readings], start_s, end_s)
    stand_in.set_wave(0.0, 0.0, 0.0)
    monkeypatch.undo()
    assert isinstance(found, BoundedEnergy), found
    whole, part_s = divmod(20.0, wave_s)
    true_j = 20 * 100 + watts * (whole * share * wave_s + min(part_s, share * wave_s))
    assert found.covers == "edges"
    assert found.error_j is not None
    # The edges' error holds what readings show; spikes between them only the statistical one, in 19 of 20 cases.
    allowed_j = found.error_j + 2 * (found.statistical_error_j or 0.0) + watts * wave_s
    assert abs(found.energy_j - true_j) <= allowed_j + 0.02 * true_j
    if not is_averaged and share == 0.5:
        assert found.error_j > 0.1 * watts


def test_zeus_reads_the_same_joules(stand_in: StandIn) -> None:
    from zeus.monitor import ZeusMonitor

    stand_in.set_curve([0.0, 5.0, 10.0], [100.0, 400.0, 50.0])
    stand_in.set_time(1.0)
    monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[])
    device = NvmlDevice(device_uuids()[0][0])
    before_j = device.counter_j()
    monitor.begin_window("window", sync_execution=False)
    stand_in.set_time(9.0)
    measured = monitor.end_window("window", sync_execution=False)
    after_j = device.counter_j()
    assert before_j is not None
    assert after_j is not None
    assert measured.gpu_energy[0] == pytest.approx(after_j - before_j, abs=1e-3)
