"""What stands beside the means: errors, energy above idle, the CPU's own, the whole phase, percentiles of power."""

from pathlib import Path

import pytest
from test_rows import COUNTER, phase_of, steps_of, write_trial

from howlow.analysis import rows
from howlow.analysis.energy import Seen, inside, percentile
from howlow.records import EnergyWindow, Idle, MeterRecord, Reading, Step

IDLE = Idle(power_w=60.0, error_w=1.5, duration_s=3.0, measured_at="2026-11-24T00:00:00+00:00")


def metered(folder: Path, **fields: object) -> dict[str, object]:
    """A trial of 16 measured samples in 2 s that took 600 J: 300 W, at an idle power of 60 W."""
    measured = EnergyWindow(part="measured", energy_j=600.0, error_j=8.0, duration_s=2.0, samples=16, readings=9)
    whole = EnergyWindow(part="phase", energy_j=1000.0, duration_s=5.0)
    cpu = EnergyWindow(device="cpu", part="measured", energy_j=80, duration_s=2.0, samples=16, readings=9)
    phase = phase_of("train", windows=(measured, whole, cpu))
    values: dict[str, object] = {"phases": (phase,), "energy": COUNTER, "meters": MeterRecord(rate_hz=4.0, idle=IDLE)}
    write_trial(folder, steps=steps_of("train", [1.0, 1.0, 1.0]), **(values | fields))  # type: ignore[arg-type]
    return rows([folder]).rows[0]


def test_energy_has_its_error_and_what_is_above_idle(tmp_path: Path) -> None:
    row = metered(tmp_path)
    assert row["train_energy_per_sample_j"] == 600 / 16
    assert row["train_energy_error_per_sample_j"] == 8 / 16
    assert row["train_energy_above_idle_per_sample_j"] == (600 - 60 * 2) / 16
    assert row["train_energy_above_idle_error_per_sample_j"] == (8 + 1.5 * 2) / 16
    assert row["idle_power_w"] == 60
    assert row["meter_rate_hz"] == 4


def test_the_cpu_is_a_column_of_its_own_and_never_added(tmp_path: Path) -> None:
    row = metered(tmp_path)
    assert row["train_cpu_energy_per_sample_j"] == 80 / 16
    assert row["train_power_w"] == 300


def test_the_whole_phase_stands_beside_the_measured_part(tmp_path: Path) -> None:
    row = metered(tmp_path)
    assert (row["train_phase_energy_j"], row["train_phase_power_w"]) == (1000, 200)


def test_without_an_idle_reading_nothing_is_taken_off_and_nothing_is_zero(tmp_path: Path) -> None:
    row = metered(tmp_path, meters=None)
    assert row["train_energy_above_idle_per_sample_j"] is None
    assert row["train_energy_above_idle_error_per_sample_j"] is None
    assert row["idle_power_w"] is None


def reading(time_s: float, device: str = "cuda:0", **values: float) -> Reading:
    return Reading(time_s=time_s, device=device, phase="train", **values)  # type: ignore[arg-type]


def test_percentiles_are_of_the_readings_inside_the_measured_steps(tmp_path: Path) -> None:
    powers = [10.0, *range(100, 201, 10), 10.0]
    times = [0.5, *(1.1 + index / 10 for index in range(11)), 9.0]  # the first in burn-in, the last behind the end
    seen = [reading(time, power_w=power) for time, power in zip(times, powers, strict=True)]
    row = metered(tmp_path, readings=seen)
    assert row["train_power_p50_w"] == 150
    assert row["train_power_p05_w"] == pytest.approx(105)
    assert row["train_power_p95_w"] == pytest.approx(195)


def test_readings_in_a_pause_between_measured_steps_are_not_the_steps_own() -> None:
    shape = {"phase": "train", "part": "measured", "duration_s": 1.0}
    steps = [Step.model_construct(step=at, start_s=start_s, **shape) for at, start_s in enumerate((1.0, 2.0, 4.0))]
    seen = [Seen("train", time_s, "cuda:0", 0.5, None, 100.0) for time_s in (0.9, 1.0, 2.5, 3.0, 3.5, 4.5, 5.1)]
    assert [reading.time_s for reading in inside("train", steps, seen)] == [1.0, 2.5, 3.0, 4.5]


def test_the_power_of_several_devices_is_summed(tmp_path: Path) -> None:
    source = COUNTER.model_copy(update={"devices": ("cuda:0", "cuda:1")})
    seen = [
        reading(1.1, power_w=100.0),
        reading(1.2, "cuda:1", power_w=50.0),
        reading(1.3, power_w=120.0),
        reading(1.4, "cuda:1", power_w=70.0),
    ]
    assert metered(tmp_path, readings=seen, energy=source)["train_power_p50_w"] == 170


def test_another_devices_utilisation_is_not_the_trials(tmp_path: Path) -> None:
    seen = [reading(1.1, utilization=0.8, memory_utilization=0.5), reading(1.2, "GPU-other", utilization=0.1)]
    row = metered(tmp_path, readings=seen)
    assert row["train_utilization"] == 0.8
    assert row["train_memory_utilization"] == 0.5


def test_a_percentile_lies_between_two_values() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == 3
    assert percentile([0.0, 10.0], 0.25) == 2.5
