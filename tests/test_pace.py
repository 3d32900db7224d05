"""What is measured of a counter before the first trial: its update period, what a reading takes, how far it lags."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import Scripted

from howlow.jobs import PaceJob
from howlow.meters import clock, pace
from howlow.meters.counters import Change
from howlow.meters.energy import EnergyMeter, no_energy
from howlow.meters.pace import lag_s, measure_pace
from howlow.meters.sources import Meters
from howlow.records import CounterPace
from howlow.trial import burst, pacing

IDLE_W, LOADED_W = 100.0, 600.0


class Simulated:
    """A device on a clock of its own: a reading takes time, a load raises its power, its counter ticks and lags."""

    def __init__(self, period_s: float, latency_s: float = 0.001, lag_s: float = 0.0, offset_s: float = 0.0) -> None:
        self.now_s, self.period_s, self.latency_s, self.lag_s, self.offset_s = (
            50.0,
            period_s,
            latency_s,
            lag_s,
            offset_s,
        )
        self.switched: list[float] = []

    def energy_j(self, t: float) -> float:
        edges = [*self.switched, self.now_s] if len(self.switched) % 2 else self.switched
        loaded_s = sum(max(0.0, min(off, t) - on) for on, off in zip(edges[::2], edges[1::2], strict=True) if t > on)
        return IDLE_W * t + (LOADED_W - IDLE_W) * loaded_s

    def counter_j(self) -> float:
        self.now_s += self.latency_s / 2
        tick_s = (self.now_s - self.offset_s) // self.period_s * self.period_s + self.offset_s
        value = self.energy_j(tick_s - self.lag_s)
        self.now_s += self.latency_s / 2
        return round(value, 3)

    @contextmanager
    def load(self) -> Iterator[None]:
        self.switched.append(self.now_s)
        yield
        self.switched.append(self.now_s)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    device = Simulated(0.1, 0.0035)
    _on_its_clock(monkeypatch, device)
    return device


def _on_its_clock(monkeypatch: pytest.MonkeyPatch, device: Simulated) -> None:
    monkeypatch.setattr(clock, "now_s", lambda: device.now_s)
    monkeypatch.setattr(pace, "_AT_MOST_EVERY_S", 0.0)


@settings(max_examples=30)
@given(
    st.sampled_from([0.02, 0.066, 0.1, 0.25]),
    st.floats(0.001, 0.006),
    st.sampled_from([0.0, 0.03, 0.1, 0.2]),
    st.floats(0, 0.25),
)
def test_pace_latency_and_lag_of_a_counter_are_found(
    period_s: float, latency_s: float, lag: float, offset_s: float
) -> None:
    device = Simulated(period_s, latency_s, lag, offset_s)
    with pytest.MonkeyPatch.context() as patched:
        _on_its_clock(patched, device)
        found = measure_pace(Scripted(device.counter_j), device.load)
    assert found.period_s == pytest.approx(period_s, abs=2 * latency_s)
    assert found.longest_s is not None
    assert period_s - 1e-9 <= found.longest_s <= period_s + 3 * latency_s
    assert found.latency_s == pytest.approx(latency_s)
    assert found.largest_latency_s == pytest.approx(latency_s)
    if period_s < 0.2:  # of a slower one a burst has too few ticks
        assert found.lag_s == pytest.approx(lag, abs=3 * latency_s + 1e-3)


def test_without_a_load_the_lag_is_not_known(simulated: Simulated) -> None:
    found = measure_pace(Scripted(simulated.counter_j))
    assert (found.is_loaded, found.lag_s) == (False, None)
    assert found.watched_s == pytest.approx(1.0, abs=0.01)


def test_a_counter_that_is_not_updated_has_no_pace(simulated: Simulated) -> None:
    simulated.period_s = 100.0
    found = measure_pace(Scripted(simulated.counter_j))
    assert (found.period_s, found.longest_s) == (None, None)
    assert found.watched_s == pytest.approx(5.0, abs=0.2)


def test_power_that_hardly_changes_says_nothing_of_the_lag() -> None:
    changes = [Change(tick / 10, tick / 10 + 0.001, 100.0 * tick) for tick in range(40)]
    assert lag_s(changes, [(1.0, 2.0)]) is None


def test_an_h100s_counter_does_not_lag_beyond_its_period() -> None:
    """Two recorded bursts; between two readings is the time of a reading, which ended at `time_s` or shortly before."""
    import json

    bursts = json.loads((Path(__file__).parent.parent / "benchmarks/h100/bursts.json").read_text(encoding="utf-8"))
    for recorded in bursts:
        found = lag_s(_changes(recorded["readings"]), [tuple(recorded["edges_s"][edge] for edge in ("on", "off"))])
        assert found is not None
        assert found < 0.02


def _changes(readings: Sequence[dict[str, float]]) -> list[Change]:
    return [
        Change(one["time_s"], other["time_s"], other["energy_counter_j"])
        for one, other in pairwise(readings)
        if one["energy_counter_j"] != other["energy_counter_j"]
    ]


def test_a_counter_is_measured_once_for_each_device_of_a_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(instrument: Scripted, load: object) -> CounterPace:
        asked.append(instrument.device)
        return CounterPace(
            device=instrument.device,
            period_s=0.1,
            longest_s=0.1,
            latency_s=0.002,
            largest_latency_s=0.002,
            watched_s=1,
        )

    monkeypatch.setattr(pacing, "measure_pace", measured)
    (tmp_path / ".howlow").mkdir()
    one, other = Scripted(), Scripted(device="other")
    other.uuid = "GPU-2"  # type: ignore[attr-defined]
    meters = Meters(EnergyMeter("nvml counter", "", "counter", (one, other)), no_energy(""))
    cpu = torch.device("cpu")
    found = pacing.counter_paces(meters, cpu, tmp_path)
    other.device = "cuda:0"  # as another process numbers it
    again = pacing.counter_paces(meters, cpu, tmp_path)
    assert asked == ["scripted", "other"]
    assert [counter.device for counter in found] == ["scripted", "other"]
    assert [counter.device for counter in again] == ["scripted", "cuda:0"]
    assert pacing.counter_paces(Meters(no_energy(""), no_energy("")), cpu, tmp_path) == ()
    assert PaceJob.entry.startswith("howlow.trial.entries.")


def test_a_load_on_the_cpu_begins_and_ends_with_its_context() -> None:
    load = burst.ready_load(torch.device("cpu"))
    assert load is not None
    before_s = clock.process_cpu_s()
    with load():
        until_s = clock.now_s() + 20.0
        while clock.now_s() < until_s and clock.process_cpu_s() - before_s < 0.05:
            time.sleep(0.01)
    assert clock.process_cpu_s() - before_s >= 0.05
    assert "howlow-load" not in {thread.name for thread in threading.enumerate()}
