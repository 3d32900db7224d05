"""A session: pauses left out, totals that go on after an interruption, peaks that forget, a timeline at its rate."""

import json
import time
from pathlib import Path

import pytest
import torch
from stand_ins import Scripted, energy, has_joules_of, soon

from howlow.memory import heap, peaks
from howlow.memory.phases import ProcessMemory
from howlow.meters import clock
from howlow.meters.energy import EnergyMeter, assumed_power, no_energy
from howlow.meters.instruments import Look
from howlow.meters.interference import MachineCounters
from howlow.meters.session import Session
from howlow.meters.totals import PhaseTotals
from howlow.records import WarningKind, read_timeline

CPU = torch.device("cpu")


def test_assumed_watts_are_multiplied_by_the_measured_time_without_pauses(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, assumed_power(40.0), 50.0, 0.0) as session, session.phase("train") as meter:
        with meter.step(measured=False, samples=1):
            time.sleep(0.05)
        with meter.step(measured=True, samples=2):
            time.sleep(0.1)
        meter.pause()
        time.sleep(0.3)
        with meter.step(measured=True, samples=3) as timed:
            time.sleep(0.1)
        record = meter.end()
    assert timed.energy_counter_j is None  # watts that the user gave are no counter
    measured = energy(record)
    assert measured.samples == record.measured_samples == 5
    assert measured.duration_s == record.measured_duration_s
    assert measured.duration_s >= 0.2
    assert measured.energy_j == pytest.approx(40 * measured.duration_s, rel=1e-3)
    assert energy(record, "phase").energy_j == pytest.approx(40 * record.duration_s, rel=1e-2)
    assert record.pauses == 1
    assert record.pauses_duration_s is not None
    assert record.pauses_duration_s >= 0.3
    assert energy(record, "pauses").energy_j == pytest.approx(40 * record.pauses_duration_s)
    assert measured.duration_s + record.pauses_duration_s < record.duration_s - 0.05  # burn-in is in neither


def test_only_what_lies_between_measured_steps_is_a_pause(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, assumed_power(40.0), 50.0, 0.0) as session, session.phase("train") as meter:
        meter.pause()
        with meter.step(measured=False, samples=1):
            time.sleep(0.02)
        meter.pause()
        with meter.step(measured=True, samples=1):
            time.sleep(0.02)
        meter.pause()
        record = meter.end()
    assert (record.pauses, record.pauses_duration_s, record.window("pauses")) == (0, 0.0, None)


def test_a_phase_goes_on_with_the_totals_of_its_part_before_an_interruption(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, assumed_power(10.0), 50.0, 0.0) as session, session.phase("train") as meter:
        for samples in (3, 1):
            with meter.step(measured=True, samples=samples):
                time.sleep(0.05)
            totals = meter.pause()
    with Session(tmp_path, CPU, assumed_power(10.0), 50.0, 7.0) as session, session.phase("train", totals) as meter:
        with meter.step(measured=True, samples=1) as timed:
            time.sleep(0.05)
        record = meter.end()
    assert timed.start_s >= 7
    assert record.start_s < 7  # where the phase began, before the interruption
    measured, pauses = energy(record), energy(record, "pauses")
    assert measured.samples == record.measured_samples == 5
    assert measured.duration_s == record.measured_duration_s
    assert measured.energy_j == pytest.approx(10 * measured.duration_s, rel=1e-2)
    assert record.pauses == 1  # the one that the interruption cut off is lost with it
    assert pauses.duration_s == record.pauses_duration_s
    assert pauses.energy_j == pytest.approx(10 * pauses.duration_s, rel=1e-2)


def test_the_whole_phase_is_one_window_however_often_it_pauses(tmp_path: Path) -> None:
    """Each part between two pauses would be too short for a counter that is updated four times a second."""
    device = Scripted(lambda: 100 * clock.now_s(), may_hang=False)
    meter_of_device = EnergyMeter("nvml counter", "test", "counter", (device,), 0.25)
    with Session(tmp_path, CPU, meter_of_device, 50.0, 0.0) as session, session.phase("train") as meter:
        for _ in range(4):
            with meter.step(measured=True, samples=1):
                time.sleep(0.1)
            meter.pause()
        record = meter.end()
    assert record.window("measured") is None
    assert energy(record, "phase").duration_s == pytest.approx(record.duration_s)
    assert has_joules_of(100, energy(record, "phase"))


def test_a_phase_with_a_hole_has_no_energy_of_the_whole(tmp_path: Path) -> None:
    answers = iter([100.0] * 12)  # then it falls silent
    device = Scripted(power_w=lambda: next(answers, None), may_hang=False)
    meter_of_device, found = EnergyMeter("nvml power", "test", "power", (device,), 0.02), []
    warn = lambda warning: found.append((warning.kind, warning.detail))  # noqa: E731
    with Session(tmp_path, CPU, meter_of_device, 20.0, 0.0, warn=warn) as session, session.phase("train") as meter:
        with meter.step(measured=True, samples=1):
            time.sleep(0.4)
        meter.pause()
        with meter.step(measured=True, samples=1):
            time.sleep(1.5)
        record = meter.end()
    assert record.window("phase") is None
    assert WarningKind.ENERGY_GAP in {kind for kind, _ in found}


def test_loading_is_not_warned_of_for_being_short(tmp_path: Path) -> None:
    found: list[tuple[WarningKind, str]] = []
    device = Scripted(power_w=lambda: 50.0, may_hang=False)
    polled = EnergyMeter("nvidia-smi", "test", "power", (device,), 1.0)
    warn = lambda warning: found.append((warning.kind, warning.detail))  # noqa: E731
    with Session(tmp_path, CPU, polled, 20.0, 0.0, warn=warn) as session:
        for name in ("load", "train"):
            with session.phase(name) as meter:  # type: ignore[arg-type]
                with meter.step(measured=True, samples=1):
                    time.sleep(0.1)
                meter.end()
    assert [kind for kind, detail in found] == [WarningKind.ENERGY_WINDOW_TOO_SHORT]
    assert found[0][1].startswith("train, ")


def test_the_process_own_memory_on_a_device_is_that_of_each_phase(tmp_path: Path) -> None:
    sizes: dict[str, int | None] = {"load": 900, "train": 500, "evaluate": None}
    device, now = Scripted(device="cpu"), list[int | None]([None])
    device.look = lambda: Look(memory_bytes=1000, process_memory_bytes=now[0])  # type: ignore[method-assign]
    found = {}
    with Session(tmp_path, CPU, no_energy("test"), 0.01, 0.0, views=[device]) as session:
        for name, size in sizes.items():
            with session.phase(name) as meter:  # type: ignore[arg-type]
                now[0] = size
                session.sensors.readers[-1].look()
                now[0] = size and size - 1
                session.sensors.readers[-1].look()
                found[name] = meter.end()
    assert {name: record.peak_process_memory_bytes for name, record in found.items()} == sizes


@pytest.mark.parametrize(("programs_cpu_s", "is_outside"), [(0.0, True), (4.5, False)])
def test_a_program_that_the_meters_started_is_no_outside_work(
    programs_cpu_s: float, is_outside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(
        [MachineCounters(0.0, 0.0, 0.0, None, 2, None, None), MachineCounters(10.0, 0.5, 5.0, None, 2, None, None)]
    )
    monkeypatch.setattr("howlow.meters.session.machine_counters", lambda: next(moments))
    device, found = Scripted(), []
    device.programs_cpu_s = programs_cpu_s
    warn = lambda warning: found.append(warning.kind)  # noqa: E731
    with Session(tmp_path, CPU, no_energy("test"), 50.0, 0.0, views=[device], warn=warn) as session:
        session.report(None)
    assert (WarningKind.OTHER_WORK_ON_MACHINE in found) == is_outside


def test_the_timeline_has_its_rate_phases_and_no_repeated_readings(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, no_energy("test"), 20.0, 0.0) as session, session.phase("evaluate") as meter:
        began_s = session.trial_time()
        soon(lambda: sum(range(10_000)) and len(session.sensors.readers[0].looks) > 10)
        elapsed_s = session.trial_time() - began_s
        meter.end()
    found = read_timeline(tmp_path)
    within = [reading for reading in found if reading.time_s > began_s]
    assert 10 <= len(within) <= 3 + 1.5 * 20 * elapsed_s
    assert {reading.phase for reading in within} == {"evaluate"}
    assert all(reading.power_w is None for reading in found)
    times = [reading.time_s for reading in found]
    assert times == sorted(set(times))
    assert max(reading.utilization or 0 for reading in found) > 0.1
    assert all((reading.memory_bytes or 0) > 50e6 for reading in found)


class Memory:
    """A phase's memory, as a test scripts it."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem, self.begun = problem, 0

    def begin(self) -> str | None:
        self.begun += 1
        return self.problem

    def peaks(self) -> peaks.Peaks:
        return peaks.Peaks(resident_bytes=100 * self.begun, allocated_bytes=10 * self.begun, reserved_bytes=None)


@pytest.mark.parametrize("problem", [None, "read-only"])
def test_each_phase_has_the_peaks_of_the_memory_that_is_passed_in(problem: str | None, tmp_path: Path) -> None:
    memory = Memory(problem)
    with Session(tmp_path, CPU, no_energy("test"), 20.0, 0.0, memory=memory) as session:
        for times in (1, 2):
            with session.phase("train") as meter:
                record = meter.end()
            assert memory.begun == times
            assert record.peak_memory_bytes == (100 * times if problem is None else None)
            assert (record.peak_allocated_bytes, record.peak_reserved_bytes) == (10 * times, None)
        assert session.peak_problem == problem


def test_a_resumed_phase_keeps_the_higher_peak(tmp_path: Path) -> None:
    before = PhaseTotals(start_s=0.0, peak_resident_bytes=150, peak_allocated_bytes=7)
    session = Session(tmp_path, CPU, no_energy("test"), 20.0, 9.0, memory=Memory())
    with session, session.phase("train", before) as meter:
        record = meter.end()
    assert (record.peak_memory_bytes, record.peak_allocated_bytes) == (150, 10)


def test_meters_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[str] = []
    monkeypatch.setattr(heap, "release", lambda device: changed.append("heap"))
    monkeypatch.setattr(peaks, "reset_peaks", lambda device: changed.append("peaks"))
    with Session(tmp_path, CPU, no_energy("test"), 20.0, 0.0) as session, session.phase("train") as meter:
        record = meter.end()
    assert (changed, record.peak_memory_bytes) == ([], None)
    ProcessMemory(CPU).begin()
    assert changed == ["heap", "peaks"], "memory is freed first, or the peak starts where the last phase left it"


def test_totals_are_the_same_after_a_checkpoint(tmp_path: Path) -> None:
    with Session(tmp_path, CPU, assumed_power(10.0), 50.0, 0.0) as session, session.phase("generate") as meter:
        with meter.step(measured=True, samples=3) as timed:
            time.sleep(0.01)
            meter.mark_prefill(timed, 5)
            time.sleep(0.01)
        totals = meter.pause()
    assert {window.part for window in totals.windows} == {"measured", "prefill", "decode", "phase"}
    assert PhaseTotals(**json.loads(json.dumps(totals.model_dump()))) == totals


def test_a_peak_is_seen_once_and_forgotten_after_the_reset() -> None:
    heap.release(CPU)  # what earlier tests left free would hold the block, and no peak be seen
    if peaks.reset_peaks(CPU) is not None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    before = peaks.peaks(CPU).resident_bytes
    block = torch.ones(100_000_000)
    seen = peaks.peaks(CPU).resident_bytes
    assert before is not None
    assert seen is not None
    assert seen - before > 190e6
    del block
    heap.release(CPU)
    peaks.reset_peaks(CPU)
    after = peaks.peaks(CPU).resident_bytes
    assert after is not None
    assert after < seen - 150e6
