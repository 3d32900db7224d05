"""Windows of the stand-in's counter through the real nvidia-ml-py; test_nvml.py runs this file with scripted counters.

The stand-in's clock is set by hand, and readings move it by what they take. `HOWLOW_EXPECTED` says what the script of
the counter has to lead to: "energy", or the kind of the warning.
"""

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from howlow.meters import clock
from howlow.meters.energy import EnergyMeter, window_energy
from howlow.meters.energy_bounds import BoundedEnergy, Missing
from howlow.meters.nvml import NvmlDevice, device_uuids
from howlow.meters.pace import measure_pace
from howlow.meters.sampler import Reader
from howlow.meters.timeline import Timeline
from howlow.records import CounterPace

EXPECTED = os.environ["HOWLOW_EXPECTED"]
PERIOD_S = float(os.environ["HOWLOW_NVML_PERIOD_MS"]) / 1000


class StandIn:
    """The library that pynvml has loaded, the watts that it follows, and its clock."""

    def __init__(self) -> None:
        device_uuids()  # loads the library
        self.library = pynvml.nvmlLib
        self.library.stand_in_set_time.argtypes = [ctypes.c_double]
        self.library.stand_in_time.restype = ctypes.c_double
        self.times_s, self.watts = [0.0], [100.0]

    def now_s(self) -> float:
        return float(self.library.stand_in_time())

    def set_time(self, seconds: float) -> None:
        self.library.stand_in_set_time(seconds)

    def sleep(self, seconds: float) -> None:
        self.set_time(self.now_s() + seconds)

    def follow(self, times_s: Sequence[float], watts: Sequence[float]) -> None:
        self.times_s, self.watts = list(times_s), list(watts)
        array = ctypes.c_double * len(self.times_s)
        milliwatts = array(*(1000 * power for power in watts))
        self.library.stand_in_set_curve(len(self.times_s), array(*self.times_s), milliwatts)

    def energy_j(self, start_s: float, end_s: float) -> float:
        edges = sorted({start_s, end_s, *(t for t in self.times_s if start_s < t < end_s)})
        return math.fsum((b - a) * (self._power_w(a) + self._power_w(b)) / 2 for a, b in pairwise(edges))

    def _power_w(self, t: float) -> float:
        known = list(zip(self.times_s, self.watts, strict=True))
        for (t0, p0), (t1, p1) in pairwise(known):
            if t0 <= t <= t1:
                return p0 + (p1 - p0) * (t - t0) / (t1 - t0)
        return known[0][1] if t < known[0][0] else known[-1][1]


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    found = StandIn()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clock, "now_s", found.now_s)
        patched.setattr(clock, "sleep", found.sleep)
        yield found


@pytest.fixture(scope="module")
def paces(stand_in: StandIn) -> list[CounterPace]:
    stand_in.follow([0.0], [300.0])
    found = []
    for uuid in device_uuids()[0]:
        stand_in.set_time(2.0)
        found.append(measure_pace(NvmlDevice(uuid)))
    return found


def window(
    stand_in: StandIn, paces: Sequence[CounterPace], before_s: float, length_s: float
) -> tuple[BoundedEnergy | Missing, float]:
    """A window as a phase reads it, and its true joules."""
    stand_in.set_time(before_s)
    timeline = Timeline(Path(os.devnull))
    devices = [NvmlDevice(pace.device) for pace in paces]
    readers = [Reader(one, 4.0, timeline, stand_in.now_s, None, pace) for one, pace in zip(devices, paces, strict=True)]
    for reader in readers:
        reader._schedule.start(stand_in.now_s())
    pass_until(stand_in, readers, before_s + 0.5)
    for reader in readers:
        reader.poll_tick(-math.inf)
    start_s = stand_in.now_s()
    end_s = start_s + length_s
    pass_until(stand_in, readers, end_s)
    for reader in readers:
        reader.poll_tick(end_s)
    timeline.close()
    meter = EnergyMeter("nvml counter", "", "counter", tuple(devices))
    found = window_energy(meter, [reader.readings for reader in readers], start_s, end_s)
    return found, len(readers) * stand_in.energy_j(start_s, end_s)


def pass_until(stand_in: StandIn, readers: Sequence[Reader], moment_s: float) -> None:
    while True:
        reader = min(readers, key=lambda one: min(one._schedule.due_s, one._follow_s))
        due_s = min(reader._schedule.due_s, reader._follow_s)
        if due_s >= moment_s:
            break
        stand_in.set_time(max(stand_in.now_s(), due_s))
        reader._read_what_is_due()
    stand_in.set_time(max(stand_in.now_s(), moment_s))


curves = st.lists(
    st.tuples(st.integers(1, 80), st.integers(20, 700)), min_size=2, max_size=20, unique_by=lambda point: point[0]
)


@settings(max_examples=40)
@given(curves, st.floats(1.5, 6.0), st.floats(0.2, 6.0))
def test_the_truth_is_within_the_error(
    stand_in: StandIn, paces: list[CounterPace], curve: list[tuple[int, int]], before_s: float, length_s: float
) -> None:
    curve.sort()
    stand_in.follow([time / 4 for time, _ in curve], [float(watts) for _, watts in curve])
    found, true_j = window(stand_in, paces[:1], before_s, length_s)
    if EXPECTED == "energy":
        assert isinstance(found, BoundedEnergy), found
    if isinstance(found, BoundedEnergy) and EXPECTED == "energy":
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j + 2e-3


def test_the_error_of_twenty_periods_is_small_or_there_is_no_energy(
    stand_in: StandIn, paces: list[CounterPace]
) -> None:
    stand_in.follow([0.0], [300.0])
    shares = []
    for begun in range(30):
        found, true_j = window(stand_in, paces[:1], 3.0 + begun / 70, 20 * PERIOD_S)
        if EXPECTED != "energy":
            assert isinstance(found, Missing), found
            assert found.kind == EXPECTED
            continue
        assert isinstance(found, BoundedEnergy), found
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j + 2e-3
        shares.append(found.error_j / found.energy_j)
    if EXPECTED == "energy":
        assert median(shares) <= 0.03
        assert max(shares) < (0.06 if "HOWLOW_NVML_LATE" in os.environ else 0.03), shares


def test_devices_that_tick_at_different_times_are_summed(stand_in: StandIn, paces: list[CounterPace]) -> None:
    stand_in.follow([0.0], [300.0])
    for begun in range(10):
        found, true_j = window(stand_in, paces, 3.0 + begun / 70, 20 * PERIOD_S)
        if EXPECTED == "energy":
            assert isinstance(found, BoundedEnergy), found
            assert found.error_j is not None
            assert abs(found.energy_j - true_j) <= found.error_j + 4e-3
            # They are polled one after the other here, so that a tick of the first may be a whole period old.
            assert found.error_j < (0.08 if "HOWLOW_NVML_LATE" in os.environ else 0.07) * found.energy_j
        else:
            assert isinstance(found, Missing), found


def test_pace_and_latency_are_those_of_the_script(paces: list[CounterPace]) -> None:
    for pace in paces:
        assert pace.period_s == pytest.approx(PERIOD_S, rel=0.1)
        assert pace.longest_s is not None
        assert pace.longest_s >= PERIOD_S * 0.99
        assert pace.latency_s == pytest.approx(float(os.environ.get("HOWLOW_NVML_LATENCY_US", 0)) / 1e6, abs=1e-6)
