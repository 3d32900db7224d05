"""The measured window: throughput, time, energy and power are all of it, whatever lies between the steps."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rows import COUNTER, only_row, phase_of, steps_of, write_trial

from howlow.analysis.phase_figures import phase_figures
from howlow.records import EnergyWindow, PhaseRecord, Record, Step, measured_steps, window_times_s

SECONDS = st.floats(1e-4, 1e3)
SEGMENT = st.lists(st.tuples(SECONDS, st.floats(0.0, 1.0), st.integers(1, 64)), min_size=1, max_size=5)
"""Steps without a pause: each one's time, what lies before it, and its samples."""


@pytest.fixture(scope="module")
def a_record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return write_trial(tmp_path_factory.mktemp("trial"), energy=COUNTER)


def laid_in_time(segments: list[list[tuple[float, float, int]]]) -> list[Step]:
    """A burn-in step, then the measured steps of the segments, with a pause of 5 s before each segment."""
    steps, now = steps_of("train", [1.0]), 1.0
    for segment in segments:
        for index, (duration_s, gap_s, samples) in enumerate(segment):
            now += 5.0 if index == 0 else gap_s
            fields: dict[str, Any] = {"samples": samples, "opens_segment": True if index == 0 else None}
            (step,) = steps_of("train", [duration_s], now, **fields)
            steps.append(step.model_copy(update={"part": "measured", "step": len(steps)}))
            now += duration_s
    return steps


def lengths_s(segments: list[list[tuple[float, float, int]]]) -> list[float]:
    return [math.fsum(duration + gap for duration, gap, _ in segment) - segment[0][1] for segment in segments]


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_the_parts_that_steps_take_add_up_to_the_window(segments: list[list[tuple[float, float, int]]]) -> None:
    times_s = window_times_s(measured_steps(laid_in_time(segments), "train"))
    assert math.fsum(times_s) == pytest.approx(math.fsum(lengths_s(segments)))
    durations_s = [duration_s for segment in segments for duration_s, _, _ in segment]
    assert all(took >= own * (1 - 1e-6) for took, own in zip(times_s, durations_s, strict=True))


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.data())
def test_power_is_energy_per_sample_times_samples_per_second(
    a_record: Record, segments: list[list[tuple[float, float, int]]], data: st.DataObject
) -> None:
    """Also where some segments, being too short for the source, have no energy."""
    has_energy = data.draw(st.lists(st.booleans(), min_size=len(segments), max_size=len(segments)).filter(any))
    powers_w = data.draw(st.lists(st.floats(1.0, 1e3), min_size=len(segments), max_size=len(segments)))
    times_s = lengths_s(segments)
    samples = [sum(count for _, _, count in segment) for segment in segments]
    covered = [index for index, there in enumerate(has_energy) if there]
    energy = EnergyWindow(
        part="measured",
        energy_j=sum(powers_w[index] * times_s[index] for index in covered),
        error_j=1.0,
        duration_s=sum(times_s[index] for index in covered),
        samples=sum(samples[index] for index in covered),
    )
    phase = PhaseRecord(
        phase="train",
        start_s=0.0,
        duration_s=1e4,
        measured_duration_s=sum(times_s),
        measured_samples=sum(samples),
        windows=(energy,),
    )
    steps = laid_in_time(segments)
    found = phase_figures(a_record.model_copy(update={"phases": (phase,)}), "train", steps, [])
    power_w, energy_j, rate = (found[name] for name in ("power_w", "energy_per_sample_j", "samples_per_s"))
    assert power_w is not None
    assert energy_j is not None
    assert rate is not None
    assert power_w == pytest.approx(energy_j * rate, rel=1e-12)
    assert min(powers_w) * (1 - 1e-9) <= power_w <= max(powers_w) * (1 + 1e-9)
    assert found["time_per_sample_s"] == pytest.approx(1 / rate, rel=1e-12)


def test_what_lies_between_steps_is_the_hosts_share_and_in_the_throughput(tmp_path: Path) -> None:
    # Measured: 2 s, a gap of 1 s, 3 s; a pause of 5 s; 2 s. A window of 8 s in which the steps took 7 s.
    steps = laid_in_time([[(2.0, 0.0, 8), (3.0, 1.0, 8)], [(2.0, 0.0, 8)]])
    energy = EnergyWindow(part="measured", energy_j=2400.0, duration_s=8.0, samples=24)
    phase = phase_of("train", measured_duration_s=8.0, measured_samples=24, windows=(energy,))
    write_trial(tmp_path, steps=steps, phases=(phase,), energy=COUNTER)
    row = only_row(tmp_path)
    assert row["train_samples_per_s"] == 3.0
    assert row["train_tokens_per_s"] == 375.0
    assert row["train_time_per_sample_s"] == pytest.approx(1 / 3)
    assert row["train_host_share"] == 1 / 8
    assert (row["train_power_w"], row["train_energy_per_sample_j"]) == (300.0, 100.0)
    assert row["train_step_time_p50_s"] == 2.0
    assert row["train_step_time_p05_s"] == 2.0
    assert row["train_step_time_p95_s"] == pytest.approx(2.9)


def test_where_the_record_lacks_the_window_time_is_that_of_the_steps(tmp_path: Path) -> None:
    phase = phase_of("train", samples=8, time_s=1.0, energy_j=100.0, measured_duration_s=1.0, measured_samples=8)
    write_trial(tmp_path, steps=steps_of("train", [9.0, 1.0, 3.0]), phases=(phase,), energy=COUNTER)
    row = only_row(tmp_path)
    assert row["train_samples_per_s"] == 4.0
    assert row["train_host_share"] is None
    assert row["train_power_w"] == row["train_energy_per_sample_j"] * row["train_samples_per_s"] == 100.0
    assert row["train_step_time_p50_s"] == 2.0


def test_a_record_of_schema_1_keeps_its_throughput_and_its_energy(a_record: Record) -> None:
    energy = EnergyWindow(part="measured", energy_j=100.0, duration_s=5.0, samples=16)
    phase = phase_of("train", measured_duration_s=5.0, measured_samples=16, windows=(energy,))
    old = a_record.model_copy(update={"phases": (phase,), "schema_version": 1})
    found = phase_figures(old, "train", steps_of("train", [9.0, 1.0, 3.0]), [])
    assert (found["samples_per_s"], found["host_share"]) == (4.0, None)
    assert (found["energy_per_sample_j"], found["power_w"]) == (100 / 16, 20.0)


def test_older_lines_do_not_say_where_segments_open() -> None:
    steps = measured_steps(steps_of("train", [9.0, 1.0, 3.0]), "train")
    apart = [step.model_copy(update={"start_s": start_s}) for step, start_s in zip(steps, (1.0, 50.0), strict=True)]
    assert window_times_s(apart) == [1.0, 3.0]
