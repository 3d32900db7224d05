"""What stands beside the means: errors, energy above idle, the CPU's own, the whole phase, percentiles of power."""

from pathlib import Path

import pytest
from test_rows import COUNTER, phase_of, steps_of, write_trial

from howlow.analysis import rows
from howlow.analysis.energy import Seen, inside, percentile
from howlow.records import DeviceConditions, EnergyWindow, Idle, MeterRecord, Reading, Spread, Step

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


# -- conditions, and the sum of all energies ------------------------------------------------------------------------


def measured_window(device: str | None, energy_j: float, **values: float) -> EnergyWindow:
    shape = {"part": "measured", "duration_s": 2.0, "samples": 16}
    return EnergyWindow.model_validate({"device": device, "energy_j": energy_j, **shape, **values})


ZONES = (measured_window("package-0", 60.0), measured_window("dram-0", 20.0))


def test_the_sum_of_gpu_cpu_and_dram_stands_where_all_three_are_measured(tmp_path: Path) -> None:
    windows = (measured_window(None, 600.0), measured_window("cpu", 80.0), *ZONES)
    row = metered(tmp_path, phases=(phase_of("train", windows=windows),))
    assert row["train_total_energy_per_sample_j"] == 680 / 16
    assert row["train_dram_energy_per_sample_j"] == 20 / 16
    assert row["train_cpu_energy_per_sample_j"] == 80 / 16


@pytest.mark.parametrize(
    "windows",
    [
        (measured_window(None, 600.0), measured_window("cpu", 60.0)),  # one package without a memory zone
        (measured_window(None, 600.0), measured_window("cpu", 120.0), *ZONES, measured_window("package-1", 60.0)),
        (measured_window(None, 80.0), *ZONES),  # the CPU's own trial: its energy is the sum of both already
        (measured_window(None, 600.0), measured_window("cpu", 80.0).model_copy(update={"duration_s": 1.0}), *ZONES),
    ],
)
def test_a_sum_that_lacks_a_part_is_absent(tmp_path: Path, windows: tuple[EnergyWindow, ...]) -> None:
    row = metered(tmp_path, phases=(phase_of("train", windows=windows),))
    assert row["train_total_energy_per_sample_j"] is None
    assert row["train_energy_per_sample_j"] is not None


def test_a_cpus_own_trial_says_what_its_memory_took(tmp_path: Path) -> None:
    row = metered(tmp_path, phases=(phase_of("train", windows=(measured_window(None, 80.0), *ZONES)),))
    assert row["train_dram_energy_per_sample_j"] == 20 / 16


def test_the_statistical_error_of_polled_power_is_a_column(tmp_path: Path) -> None:
    windows = (measured_window(None, 600.0, error_j=8.0, statistical_error_j=32.0),)
    row = metered(tmp_path, phases=(phase_of("train", windows=windows),))
    assert row["train_energy_statistical_error_per_sample_j"] == 2
    assert row["train_energy_error_per_sample_j"] == 0.5


def test_conditions_are_those_of_the_trials_own_device(tmp_path: Path) -> None:
    clock = Spread(low=1e9, mean=1.5e9, high=2e9)
    shares = {"sw_power_cap": 0.75, "sw_thermal_slowdown": 0.25}
    own = DeviceConditions(device="cuda:0", readings=9, duration_s=2, sm_clock_hz=clock, throttled_share=shares)
    other = DeviceConditions(device="GPU-1", readings=9, duration_s=2, sm_clock_hz=Spread(low=1, mean=1, high=1))
    row = metered(tmp_path, phases=(phase_of("train", conditions=(other, own)),))
    assert (row["train_clock_hz"], row["train_throttled_share"]) == (1.5e9, 0.75)
    assert row["train_temperature_c"] is None
    unknown = metered(tmp_path / "unknown", phases=(phase_of("train"),))
    assert (unknown["train_clock_hz"], unknown["train_throttled_share"]) == (None, None)
