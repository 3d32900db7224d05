"""A trial recorded on an H100, replayed: its counter and its polled power agree, and its conditions are told."""

import os
from pathlib import Path

import pytest

from howlow.meters.conditions import conditions_between
from howlow.meters.energy import EnergyMeter, InstrumentReadings, window_energy
from howlow.meters.energy_bounds import BoundedEnergy
from howlow.meters.instruments import Finding, Look
from howlow.meters.sampler import Reader
from howlow.meters.timeline import Timeline
from howlow.records import Reading, Spread, Step, read_steps, read_timeline

RECORDED = Path(__file__).parent / "recorded" / "h100"
PERIOD_S = 0.1  # of both sensors, as benchmarks/sensors.py measured it on the device


class Recording:
    """An instrument that answers with what was recorded for the moment that it is asked at."""

    device, range_j, may_hang, programs_cpu_s, problems = "cuda:0", None, False, 0.0, dict[str, str]()

    def __init__(self) -> None:
        self.now_s = 0.0
        self._looks = {seen.time_s: seen for seen in read_timeline(RECORDED)}
        self._counters = {step.start_s + step.duration_s: step.energy_counter_j for step in read_steps(RECORDED)}

    def moments_s(self) -> list[float]:
        return sorted([*self._looks, *self._counters])

    def counter_j(self) -> float | None:
        return self._counters[self.now_s]

    def look(self) -> Look:
        seen = self._looks[self.now_s]
        return Look(
            power_w=seen.power_w,
            counter_j=seen.energy_counter_j,
            temperature_c=seen.temperature_c,
            sm_clock_hz=seen.sm_clock_hz,
            throttle_reasons=seen.throttle_reasons or (),
        )

    def findings(self) -> list[Finding]:
        return []

    def replayed_into(self, reader: Reader) -> None:
        for moment_s in self.moments_s():
            self.now_s = moment_s
            if self.now_s in self._looks:
                reader.look()
            else:
                reader.read_counter()


@pytest.fixture(scope="module")
def replayed() -> Reader:
    recording = Recording()
    timeline = Timeline(Path(os.devnull))
    reader = Reader(recording, 4.0, timeline, lambda: recording.now_s, PERIOD_S)
    recording.replayed_into(reader)
    timeline.close()
    return reader


def measured(phase: str) -> tuple[float, float]:
    own: list[Step] = [step for step in read_steps(RECORDED) if (step.phase, step.part) == (phase, "measured")]
    return own[0].start_s, own[-1].start_s + own[-1].duration_s


def energy_of(kind: str, readings: InstrumentReadings, window: tuple[float, float]) -> BoundedEnergy:
    meter = EnergyMeter(f"nvml {kind}", "recorded", kind)  # type: ignore[arg-type]
    found = window_energy(meter, [readings], *window)
    assert isinstance(found, BoundedEnergy), found
    assert found.error_j is not None
    return found


@pytest.mark.parametrize("window", [measured("train"), (2.6, 7.4)])
def test_counter_and_polled_power_agree_within_their_errors(replayed: Reader, window: tuple[float, float]) -> None:
    counted, polled = (energy_of(kind, replayed.readings, window) for kind in ("counter", "power"))
    assert (counted.covers, polled.covers) == ("all_but_lag", "edges")
    assert counted.error_j is not None
    assert polled.error_j is not None
    assert abs(counted.energy_j - polled.energy_j) <= counted.error_j + polled.error_j
    assert 200 < counted.energy_j / (window[1] - window[0]) < 350


def test_polled_power_of_such_a_load_is_far_less_exact(replayed: Reader) -> None:
    """The device draws 120 W between the kernels and up to 730 W in them: four readings a second do not see that."""
    counted, polled = (energy_of(kind, replayed.readings, (2.6, 7.4)) for kind in ("counter", "power"))
    assert abs(polled.energy_j / counted.energy_j - 1) > 0.03
    assert polled.error_j is not None
    assert polled.error_j > 0.25 * polled.energy_j


def test_the_conditions_are_those_of_the_readings_in_the_measured_window(replayed: Reader) -> None:
    (found,) = conditions_between([replayed.looks], *measured("generate"))
    assert (found.device, found.readings) == ("cuda:0", 2)
    assert found.sm_clock_hz == Spread(low=1.95e9, mean=1.9575e9, high=1.965e9)
    assert found.temperature_c == Spread(low=37, mean=39.5, high=42)
    assert found.throttled_share == {"sw_power_cap": 0.5}
    (train,) = conditions_between([replayed.looks], *measured("train"))
    assert train.sm_clock_hz == Spread(low=1.98e9, mean=1.98e9, high=1.98e9)
    assert train.throttled_share == {}


def test_lines_of_that_time_are_still_read() -> None:
    first: Reading = read_timeline(RECORDED)[0]
    assert (first.power_w, first.memory_temperature_c, first.throttled_s) == (122.008, None, None)
