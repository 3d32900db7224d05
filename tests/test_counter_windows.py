"""Windows of a simulated counter, on a simulated clock: the truth is within the stated error, and the error is small.

The device draws power that a test scripts. Its counter has a pace with jitter, resolution, latency and lag, and may
hiccup, freeze or be reset. Everything between the device and the energy of a window is the meters' own.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from howlow.meters import clock
from howlow.meters.energy import EnergyMeter, window_energy
from howlow.meters.energy_bounds import BoundedEnergy, Missing
from howlow.meters.instruments import Finding, Look
from howlow.meters.sampler import Reader
from howlow.meters.timeline import Timeline
from howlow.records import CounterPace, ErrorCover, WarningKind, common_cover

START_S = 3.0
IDLE_W = 110.0


@dataclass
class Device:
    """A device with a counter, on a clock that readings and waiting move.

    work: watts over the window's time; outside of it the device draws IDLE_W. frozen: when the counter stands still,
    and what is drawn then is lost. late: ticks that come later, by number, in periods.
    """

    work: Callable[[float], float]
    length_s: float
    period_s: float = 0.1
    latency_s: float = 0.0035
    lag_s: float = 0.0
    step_j: float = 0.001
    jitter: float = 0.02
    frozen: tuple[float, float] | None = None
    late: dict[int, float] = field(default_factory=dict)
    reset_s: float | None = None
    has_power: bool = True
    is_seldom: bool = False  # the counter is asked for once a second only, because that takes long
    seed: int = 0
    now_s: float = 0.0
    begun_s: float = math.inf
    device: str = "simulated"
    range_j: float | None = None
    may_hang: bool = False
    programs_cpu_s: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    _sums: dict[float, float] = field(default_factory=dict)
    _asked_s: float = -math.inf

    def __post_init__(self) -> None:
        random, self._ticks_s, t = Random(self.seed), [-1.0], -1.0 + Random(self.seed).random() * self.period_s
        while t < 60:
            number = len(self._ticks_s)
            late_s = self.late.get(number, 0.0) * self.period_s
            self._ticks_s.append(t + random.uniform(-1, 1) * self.jitter * self.period_s + late_s)
            t += self.period_s
        self._ticks_s.sort()

    def power_w(self, t: float) -> float:
        return self.work(t - self.begun_s) if self.begun_s <= t < self.begun_s + self.length_s else IDLE_W

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Power is constant for each quarter of a second of the window."""
        edges = [start_s, end_s]
        if end_s > self.begun_s:
            quarters = (self.begun_s + k / 4 for k in range(math.ceil(self.length_s * 4)))
            edges += [edge for edge in (*quarters, self.begun_s + self.length_s) if start_s < edge < end_s]
        return math.fsum((b - a) * self.power_w((a + b) / 2) for a, b in pairwise(sorted(edges)))

    # -- the instrument ---------------------------------------------------------------------------------------------

    def _shown_j(self) -> float:
        stop_s, resume_s = self.frozen or (math.inf, math.inf)
        tick_s = self._ticks_s[bisect_right(self._ticks_s, self.now_s) - 1]
        if stop_s <= tick_s < resume_s:
            tick_s = self._ticks_s[bisect_right(self._ticks_s, stop_s) - 1]
        value = self._summed_j(tick_s - self.lag_s)
        if tick_s >= resume_s:
            last_s = self._ticks_s[bisect_right(self._ticks_s, stop_s) - 1]
            value = max(value - self.energy_j(last_s, resume_s), self._summed_j(last_s - self.lag_s))
        if self.reset_s is not None and tick_s >= self.reset_s:
            value -= self.energy_j(-2.0, self.reset_s)
        return 500.0 + math.floor(value / self.step_j) * self.step_j

    def _summed_j(self, t: float) -> float:
        if t not in self._sums:
            self._sums[t] = self.energy_j(-2.0, t)
        return self._sums[t]

    def counter_j(self) -> float:
        self.now_s += self.latency_s / 2
        value = self._shown_j()
        self.now_s += self.latency_s / 2
        return value

    def look(self) -> Look:
        is_asked = not self.is_seldom or self.now_s >= self._asked_s + 1.0
        if is_asked:
            self._asked_s = self.now_s
        counter_j = self.counter_j() if is_asked else None
        return Look(power_w=self.power_w(self.now_s) if self.has_power else None, counter_j=counter_j)

    def findings(self) -> list[Finding]:
        return []

    @property
    def pace(self) -> CounterPace:
        longest_s = self.period_s * (1 + 2 * self.jitter) + 2 * self.latency_s
        return CounterPace(
            device=self.device,
            period_s=self.period_s,
            longest_s=longest_s,
            step_j=self.step_j,
            latency_s=self.latency_s,
            largest_latency_s=self.latency_s,
            watched_s=2.0,
            lag_s=self.lag_s or None,
        )


@contextmanager
def on_the_clock_of(device: Device) -> Iterator[None]:
    def sleep(seconds: float) -> None:
        device.now_s += seconds

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clock, "now_s", lambda: device.now_s)
        patched.setattr(clock, "sleep", sleep)
        yield


def measured(device: Device, pauses: int = 0) -> tuple[BoundedEnergy | Missing, float]:
    """The energy of a window as a phase reads it, and the true joules."""
    with on_the_clock_of(device):
        timeline = Timeline(Path("/dev/null"))
        reader = Reader(device, 4.0, timeline, lambda: device.now_s, None, device.pace)
        device.now_s = START_S - 1.0
        reader._schedule.start(device.now_s)
        _pass_until(device, reader, START_S)
        reader.poll_tick(-math.inf)
        device.begun_s = start_s = device.now_s
        end_s = start_s + device.length_s
        _pass_until(device, reader, end_s)
        reader.poll_tick(end_s)
        timeline.close()
        meter = EnergyMeter("nvml counter", "", "counter", (device,))
        found = window_energy(meter, [reader.readings], start_s, end_s)
        return found, device.energy_j(start_s, end_s)


def _pass_until(device: Device, reader: Reader, moment_s: float) -> None:
    while (due_s := min(reader._schedule.due_s, reader._follow_s)) < moment_s:
        device.now_s = max(device.now_s, due_s)
        reader._read_what_is_due()
    device.now_s = max(device.now_s, moment_s)


@st.composite
def works(draw: st.DrawFn) -> Callable[[float], float]:
    """Watts in steps of a quarter of a second."""
    watts = draw(st.lists(st.floats(150, 700), min_size=1, max_size=20))
    return lambda t: watts[int(t * 4) % len(watts)]


devices = st.builds(
    Device,
    work=works(),
    length_s=st.floats(0.5, 4.0),
    period_s=st.sampled_from([0.02, 0.066, 0.1, 0.3]),
    latency_s=st.floats(0.0, 0.004),
    step_j=st.sampled_from([0.001, 0.001, 1.0]),
    jitter=st.floats(0, 0.05),
    has_power=st.booleans(),
    seed=st.integers(0, 99),
)


@settings(max_examples=60)
@given(devices, st.sampled_from([0.0, 0.0, 0.03, 0.1]))
def test_the_truth_is_within_the_error(device: Device, lag_s: float) -> None:
    device.lag_s = lag_s
    found, true_j = measured(device)
    assert isinstance(found, BoundedEnergy), found
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j + 1e-3


@settings(max_examples=40)
@given(devices, st.integers(0, 60), st.floats(0.1, 0.9))
def test_a_tick_that_comes_late_is_within_the_error(device: Device, number: int, periods: float) -> None:
    first = int((START_S + 1) / device.period_s)
    device.late = {first + number: periods}
    found, true_j = measured(device)
    assert isinstance(found, BoundedEnergy), found
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j + 1e-3


@pytest.mark.parametrize("has_power", [True, False])
@pytest.mark.parametrize("latency_s", [0.0, 0.0035])
def test_the_error_of_twenty_periods_is_small(latency_s: float, has_power: bool) -> None:
    shares = []
    for seed in range(40):
        device = Device(lambda _: 300.0, 2.0 + seed / 400, latency_s=latency_s, has_power=has_power, seed=seed)
        found, true_j = measured(device)
        assert isinstance(found, BoundedEnergy), found
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j
        shares.append(found.error_j / found.energy_j)
    assert max(shares) < 0.03
    assert median(shares) < 0.02


def test_a_window_of_one_period_has_an_energy_and_a_shorter_one_has_none() -> None:
    found, true_j = measured(Device(lambda _: 300.0, 0.1))
    assert isinstance(found, BoundedEnergy), found
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j
    short, _ = measured(Device(lambda _: 300.0, 0.09))
    assert isinstance(short, Missing)
    assert short.kind is WarningKind.ENERGY_WINDOW_TOO_SHORT
    assert short.detail.endswith("0.1 s would do")


@settings(max_examples=25)
@given(st.floats(0.0, 5.0), st.floats(0.6, 3.0), st.floats(200, 700))
def test_a_frozen_counter_is_a_fault(after_s: float, length_s: float, watts: float) -> None:
    device = Device(lambda _: watts, 6.1)
    device.frozen = START_S + 0.2 + after_s, START_S + 0.2 + after_s + length_s
    found, _ = measured(device)
    assert isinstance(found, Missing), found
    assert found.kind is WarningKind.COUNTER_STOOD_STILL
    assert "updated every" in found.detail


@settings(max_examples=25)
@given(st.floats(0.0, 4.0), st.booleans(), st.floats(200, 700))
def test_a_frozen_counter_that_is_seldom_read_is_a_fault(after_s: float, has_power: bool, watts: float) -> None:
    """Each reading is followed by another one, and power that was drawn all the time says the same."""
    frozen = START_S + 0.2 + after_s, START_S + 0.2 + after_s + 1.8
    found, _ = measured(Device(lambda _: watts, 6.1, frozen=frozen, has_power=has_power, is_seldom=True))
    assert isinstance(found, Missing), found
    assert found.kind is WarningKind.COUNTER_STOOD_STILL


def test_power_that_is_drawn_all_the_time_contradicts_a_short_standstill() -> None:
    frozen = START_S + 1.0, START_S + 1.9
    found, _ = measured(Device(lambda _: 300.0, 2.0, frozen=frozen, is_seldom=True))
    assert isinstance(found, Missing), found
    assert found.kind is WarningKind.COUNTER_STOOD_STILL


@pytest.mark.parametrize(("has_power", "largest"), [(True, 0.03), (False, 0.07)])
def test_a_counter_that_is_seldom_read_has_the_same_error_where_power_is_read(has_power: bool, largest: float) -> None:
    for seed in range(20):
        device = Device(lambda _: 300.0, 2.0 + seed / 200, has_power=has_power, is_seldom=True, seed=seed)
        found, true_j = measured(device)
        assert isinstance(found, BoundedEnergy), found
        assert found.error_j is not None
        assert abs(found.energy_j - true_j) <= found.error_j < largest * found.energy_j


def test_a_standstill_after_which_the_counter_catches_up_is_none() -> None:
    number = int((START_S + 2.0) / 0.1)
    late = {number + tick: 6.0 - tick for tick in range(6)}  # nothing for 0.6 s, then all at once
    found, true_j = measured(Device(lambda _: 300.0, 5.0, late=late))
    assert isinstance(found, BoundedEnergy), found
    assert found.error_j is not None
    assert abs(found.energy_j - true_j) <= found.error_j


def test_a_counter_that_dies_or_is_reset_in_the_window_has_no_energy() -> None:
    dead, _ = measured(Device(lambda _: 300.0, 3.0, frozen=(START_S + 1.5, math.inf)))
    assert isinstance(dead, Missing)
    assert dead.kind is WarningKind.COUNTER_STOOD_STILL
    reset, _ = measured(Device(lambda _: 300.0, 3.0, reset_s=START_S + 1.5))
    assert isinstance(reset, Missing)
    assert "reset" in reset.detail


# -- lost updates ---------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(devices, st.floats(0.3, 0.7))
def test_an_update_that_no_reading_shows_as_lost_is_in_the_error_or_the_error_says_that_it_is_not(
    device: Device, share: float
) -> None:
    lost_s = START_S + 0.1 + share * device.length_s
    device.frozen = (lost_s, lost_s + device.period_s)
    device.work = lambda _: 300.0
    found, true_j = measured(device)
    if not isinstance(found, BoundedEnergy):
        return  # a reading showed it
    assert found.error_j is not None
    if "losses" not in found.covers:
        assert abs(found.energy_j - true_j) <= found.error_j + 1e-3
    assert device.has_power or "losses" in found.covers


@pytest.mark.parametrize(
    ("has_power", "length_s", "lag_s", "covers"),
    [
        (True, 2.0, 0.03, "everything"),
        (True, 2.0, 0.0, "all_but_lag"),
        (False, 2.0, 0.03, "all_but_losses"),
        (False, 2.0, 0.0, "all_but_lag_and_losses"),
        (True, 0.4, 0.03, "all_but_losses"),
    ],
)
def test_the_error_says_what_it_assumes_of_the_counter(
    has_power: bool, length_s: float, lag_s: float, covers: str
) -> None:
    found, _ = measured(Device(lambda _: 300.0, length_s, has_power=has_power, lag_s=lag_s))
    assert isinstance(found, BoundedEnergy)
    assert found.covers == covers


@given(st.lists(st.sampled_from(get_args(ErrorCover)), min_size=1, max_size=4))
def test_the_error_of_a_sum_covers_nothing_that_one_of_its_errors_leaves_out(covers: list[ErrorCover]) -> None:
    found = common_cover(covers)
    if "edges" in covers:
        assert found == "edges"
        return
    for part in ("lag", "losses"):
        assert (part in found) == any(part in cover for cover in covers)
