"""Readers: a sensor that hangs blocks nobody, a missing reading is a gap, wraps are undone, resets are noticed."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import Scripted, energy, has_joules_of, soon

from howlow.meters import clock
from howlow.meters.counters import UpdatePeriod
from howlow.meters.energy import EnergyMeter, window_energy
from howlow.meters.energy_bounds import BoundedEnergy
from howlow.meters.instruments import Instrument, Look
from howlow.meters.sampler import STEP_SHARE, Reader
from howlow.meters.session import Session
from howlow.meters.timeline import Timeline
from howlow.records import Reading, RecordWarning, WarningKind, read_timeline


@contextmanager
def reading(
    folder: Path,
    instrument: Instrument,
    period_s: float | None = 0.01,
    now: Callable[[], float] | None = None,
) -> Iterator[Reader]:
    started_s, timeline = clock.now_s(), Timeline(folder / "timeline.jsonl")
    reader = Reader(instrument, 50.0, timeline, now or (lambda: clock.now_s() - started_s), period_s)
    reader.start()
    try:
        yield reader
    finally:
        reader.stop()
        timeline.close()


def counter(watts: float) -> Scripted:
    return Scripted(counter_j=lambda: 1000 + watts * clock.now_s())


def session_of(folder: Path, *instruments: Scripted, found: list[tuple[WarningKind, str]] | None = None) -> Session:
    meter = EnergyMeter("nvml counter", "test", "counter", instruments, 0.01)

    def warn(warning: RecordWarning) -> None:
        if found is not None:
            found.append((warning.kind, warning.detail))

    return Session(folder, torch.device("cpu"), meter, 20.0, 0.0, warn=warn)


@given(st.floats(0.005, 1.1), st.floats(0, 1), st.floats(0.0008, 0.004))
def test_a_counter_is_never_thought_faster_than_it_is(period_s: float, offset_s: float, every_s: float) -> None:
    found, time_s = UpdatePeriod(), 0.0
    while found.wants_fast_readings:
        time_s += every_s
        found.add_fast(time_s, math.floor((time_s + offset_s) / period_s))
    assert found.period_s is not None
    assert period_s * (1 - 1e-9) <= found.period_s <= period_s + 2 * every_s + 1e-9
    assert found.usual_period_s == pytest.approx(period_s, abs=2 * every_s)


@given(st.floats(3.5, 20.0), st.floats(0, 1))
def test_the_period_of_a_counter_that_was_not_seen_to_change_twice_is_unknown(period_s: float, offset_s: float) -> None:
    found, time_s = UpdatePeriod(), 0.0
    while found.wants_fast_readings:
        time_s += 0.001
        found.add_fast(time_s, math.floor((time_s + offset_s) / period_s))
    assert found.period_s is None
    assert found.watched_s == pytest.approx(3.0, abs=0.01)


def test_a_reading_counts_when_it_was_taken(tmp_path: Path) -> None:
    class Late(Scripted):
        def look(self) -> Look:
            return Look(power_w=100.0, age_s=0.3)

    with reading(tmp_path, Late(), now=lambda: 5.0) as reader:
        soon(lambda: reader.points)
    assert {point.time_s for point in reader.points} == {4.7}


def test_a_reader_that_hangs_is_waited_for_once_and_catches_up(tmp_path: Path) -> None:
    hung, release, answered = threading.Event(), threading.Event(), threading.Event()

    def read() -> float:
        if hung.is_set():
            release.wait(60)
            answered.set()
        return 10 * clock.now_s()

    with reading(tmp_path, Scripted(counter_j=read)) as reader:
        assert reader.ask(reader.read_counter, timeout_s=60) is not None
        hung.set()
        time.sleep(0.05)
        # Had each of them its own timeout, the reading would have an answer before the last of 10,000.
        assert [reader.ask(reader.read_counter) for _ in range(10_000)] == [None] * 10_000
        assert not answered.is_set()
        assert reader.late >= 10_000
        hung.clear()
        release.set()
        soon(answered.is_set)
        soon(lambda: reader.ask(reader.read_counter, timeout_s=60) is not None)
    times = [point.time_s for point in reader.points]
    assert max(b - a for a, b in pairwise(times)) > 0.05  # the gap stays a gap


def test_an_instrument_that_never_answers_does_not_keep_the_session_from_ending(tmp_path: Path) -> None:
    forever, answered = threading.Event(), threading.Event()

    def read() -> None:
        forever.wait(120)
        answered.set()

    found: list[tuple[WarningKind, str]] = []
    with session_of(tmp_path, Scripted(counter_j=read), found=found) as session:
        with session.phase("train") as phase:
            for _ in range(8):
                with phase.step(measured=True, samples=1):
                    time.sleep(0.02)
            record = phase.end()
        session.report(None)
    assert not answered.is_set(), "the session ended while the instrument still hung"
    assert record.windows == ()
    assert record.measured_samples == 8
    assert {WarningKind.ENERGY_GAP, WarningKind.SENSOR_LATE} <= {kind for kind, _ in found}
    forever.set()


def test_a_steps_end_does_not_wait_for_the_counter_whose_reading_comes_later(tmp_path: Path) -> None:
    is_asked, answers = threading.Event(), threading.Event()

    def read() -> float:
        if is_asked.is_set():
            answers.wait(60)
        return 1000 + 100 * clock.now_s()

    with session_of(tmp_path, Scripted(counter_j=read)) as session, session.phase("train") as phase:
        with phase.step(measured=True, samples=1) as timed:
            time.sleep(0.05)
            is_asked.set()
        assert timed.energy_counter_j is None
        assert timed.counter_j() is None  # not within 50 ms
        answers.set()
        is_asked.clear()
        assert timed.asked_counter is not None
        assert timed.asked_counter.awaited_j(60) is not None
        assert timed.energy_counter_j == timed.counter_j()
        phase.end()


def test_readings_between_edges_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    def slow() -> float:
        time.sleep(0.005)
        return 1000 + 100 * clock.now_s()

    with session_of(tmp_path, Scripted(counter_j=slow)) as session, session.phase("train") as phase:
        started_s, read = clock.now_s(), []
        for _ in range(60):
            with phase.step(measured=True, samples=1) as timed:
                time.sleep(0.002)
            read.append(timed.asked_counter is not None and timed.asked_counter.awaited_j(60) is not None)
        elapsed_s = clock.now_s() - started_s
        phase.end()
    assert read[0]
    assert sum(read) <= 1 + elapsed_s * STEP_SHARE / 0.005  # each took 5 ms or more


def test_missing_answers_leave_no_values_and_looks_that_tell_nothing_no_lines(tmp_path: Path) -> None:
    with reading(tmp_path, Scripted(power_w=lambda: None)) as silent:
        time.sleep(0.15)
    assert (read_timeline(tmp_path), silent.looks) == ([], [])
    with reading(tmp_path, Scripted(power_w=lambda: None, temperature_c=50.0)):
        time.sleep(0.15)
    lines = read_timeline(tmp_path)
    assert len(lines) > 3
    assert all(line.power_w is None and line.energy_counter_j is None for line in lines)
    assert "power_w" not in (tmp_path / "timeline.jsonl").read_text()


def test_an_instrument_that_fails_costs_a_reading_and_not_the_thread(tmp_path: Path) -> None:
    fails = threading.Event()

    def counter_j() -> float:
        if fails.is_set():
            raise LookupError("the binding is too old")
        return 1000 + 100 * clock.now_s()

    found: list[tuple[WarningKind, str]] = []
    with session_of(tmp_path, Scripted(counter_j), found=found) as session, session.phase("train") as phase:
        (reader,) = [one for one in session.sensors.readers if one.instrument.device == "scripted"]
        fails.set()
        assert reader.ask(reader.read_counter) is None
        time.sleep(0.3)
        fails.clear()
        with phase.step(measured=True, samples=1):
            time.sleep(0.3)
        fails.set()
        with phase.step(measured=True, samples=1):
            time.sleep(0.6)
        record = phase.end()
        meters = session.report(None)
    assert record.window("measured") is None
    said = dict(found)
    assert "LookupError: the binding is too old" in said[WarningKind.SENSOR_FAILED]
    assert WarningKind.ENERGY_GAP in said
    assert meters.largest_gap_s is not None
    assert meters.largest_gap_s >= 0.6  # to the session's end, where nothing was read any more


def test_an_instrument_that_always_fails_is_not_asked_for_its_update_period_forever(tmp_path: Path) -> None:
    asked = 0

    def counter_j() -> float:
        nonlocal asked
        asked += 1
        raise LookupError("the binding is too old")

    with reading(tmp_path, Scripted(counter_j)) as reader:
        while reader._found_period.wants_fast_readings:
            reader.read_fast()
        before, started_s = asked, clock.now_s()
        time.sleep(0.3)
        elapsed_s = clock.now_s() - started_s
    assert asked - before <= 5 + 1.5 * 50 * elapsed_s  # at the timeline's rate only


def test_a_sensor_that_dies_shows_in_the_rate_and_the_gap(tmp_path: Path) -> None:
    alive = [50.0] * 5
    with session_of(tmp_path, Scripted(power_w=lambda: alive.pop() if alive else None)) as session:
        soon(lambda: not alive)
        time.sleep(1.0)
        meters = session.report(None)
    assert meters.largest_gap_s is not None
    assert meters.largest_gap_s > 0.9
    assert meters.rate_hz is not None
    assert meters.rate_hz <= 5 / 1.0  # of 20


def test_a_program_may_take_seconds_to_its_first_line_but_not_between_lines(
    tmp_path: Path,
) -> None:
    found: list[tuple[WarningKind, str]] = []
    session = session_of(tmp_path, Scripted(), found=found)
    (reader,) = [one for one in session.sensors.readers if one.instrument.device == "scripted"]
    line = {"device": "scripted", "phase": "train"}
    session.sensors.began_s, session.sensors._ended_s = 10.0, 30.0
    reader.looks[:] = [Reading(time_s=13 + tick / 4, **line) for tick in range(68)]
    process = [Reading(time_s=10 + tick / 4, **line) for tick in range(80)]
    session.sensors.readers[0].looks[:] = process
    assert session.report(None).largest_gap_s == pytest.approx(3)
    assert found == []
    del reader.looks[20:40]
    session.report(None)
    assert [kind for kind, _ in found] == [WarningKind.TIMELINE_GAP]
    session.sensors.timeline.close()


def read_all(raw_j: list[float], range_j: float | None, apart_s: float = 1.0) -> Reader:
    values, now = iter(raw_j), [0.0]

    def tick() -> float:
        now[0] += apart_s / 2
        return now[0]

    reader = Reader(
        Scripted(counter_j=lambda: next(values), range_j=range_j), 1.0, Timeline(Path("/dev/null")), tick, 0.1
    )
    for _ in raw_j:
        reader.read_counter()
    reader._timeline.close()
    return reader


def test_a_wrap_around_is_undone() -> None:
    points = read_all([900.0, 980.0, 60.0, 140.0], range_j=1000.0, apart_s=0.1).points
    assert [point.counter_j for point in points] == [900, 980, 1060, 1140]
    assert {point.epoch for point in points} == {0}


@pytest.mark.parametrize(("raw", "range_j"), [([5e6, 5e6 + 50, 10.0], 5.1e6), ([900.0, 20.0], None)])
def test_a_counter_that_was_reset_starts_a_new_epoch(raw: list[float], range_j: float | None) -> None:
    points = read_all(raw, range_j).points
    assert points[-1].epoch == 1
    assert all(later.counter_j >= sooner.counter_j for sooner, later in pairwise(points))


def test_a_wrap_that_could_have_happened_twice_is_no_measurement() -> None:
    assert read_all([10.0, 20.0], range_j=1000.0, apart_s=60.0).points[-1].epoch == 1


def test_the_update_period_of_a_counter_is_found_out(tmp_path: Path) -> None:
    asked = 0

    def counter_j() -> float:
        nonlocal asked
        asked += 1
        return 3.0 * (asked // 30)

    with reading(tmp_path, Scripted(counter_j), period_s=None, now=lambda: asked / 1000) as reader:
        soon(lambda: not reader._found_period.wants_fast_readings)
    assert 0.03 <= reader.update_period_s <= 0.04  # a reading of everything may lie in between
    assert reader.readings.step_j == 0.0  # it is exact whenever it changes
    coarse_and_late = UpdatePeriod()
    for tick in range(3000):
        joules = 40.0 + 7.3 * (tick // 100) ** 1.2
        coarse_and_late.add_fast(tick / 1000, math.floor(joules / 2.5) * 2.5)
    assert coarse_and_late.step_j == 2.5


def test_of_several_devices_the_one_without_energy_is_named(tmp_path: Path) -> None:
    found: list[tuple[WarningKind, str]] = []
    package, dead = counter(100), Scripted(lambda: 7.0, device="dram-0")
    with session_of(tmp_path, package, dead, found=found) as session, session.phase("train") as phase:
        with phase.step(measured=True, samples=1):
            time.sleep(0.5)
        record = phase.end()
    assert record.window("measured") is None
    of_package = energy(record, device="scripted")
    assert has_joules_of(100, of_package)
    (detail,) = [text for kind, text in found if kind == WarningKind.COUNTER_STOOD_STILL]
    assert "nvml counter" in detail
    assert "the counter stood still for" in detail
    assert detail.endswith("(dram-0; meters.devices can leave it out)")


def test_several_devices_are_summed_and_each_has_its_rows(tmp_path: Path) -> None:
    one, other = counter(100), counter(50)
    other.device = "other"
    with session_of(tmp_path, one, other) as session, session.phase("train") as phase:
        for _ in range(5):
            with phase.step(measured=True, samples=2):
                time.sleep(0.05)
        record = phase.end()
    measured, of_other = energy(record), energy(record, device="other")
    assert measured.samples == 10
    assert has_joules_of(150, measured)
    assert has_joules_of(50, of_other)
    assert {line.device for line in read_timeline(tmp_path)} == {"cpu", "scripted", "other"}


def test_the_cpu_beside_it_is_never_added(tmp_path: Path) -> None:
    gpu, cpu = counter(100), counter(20)
    cpu.device = "package-0"
    meter = EnergyMeter("nvml counter", "test", "counter", (gpu,), 0.01)
    beside = EnergyMeter("rapl", "test", "counter", (cpu,), 0.01)
    session = Session(tmp_path, torch.device("cpu"), meter, 20.0, 0.0, cpu_energy=beside)
    with session, session.phase("train") as phase:
        for _ in range(5):
            with phase.step(measured=True, samples=2):
                time.sleep(0.05)
        record = phase.end()
    measured, of_cpu = energy(record), energy(record, device="cpu")
    assert has_joules_of(100, measured)
    assert has_joules_of(20, of_cpu)
    assert of_cpu.samples == 10


def test_a_phase_that_goes_on_keeps_the_energy_of_before(tmp_path: Path) -> None:
    totals = None
    for _ in range(2):
        with session_of(tmp_path, counter(100)) as session, session.phase("train", totals) as phase:
            for _ in range(5):
                with phase.step(measured=True, samples=2):
                    time.sleep(0.05)
            totals = phase.pause()
            record = phase.end()
    measured, whole = energy(record), energy(record, "phase")
    assert measured.samples == record.measured_samples == 20
    assert has_joules_of(100, measured)
    assert has_joules_of(100, whole)


def test_the_date_may_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter([1e9, -1e9, 5e8] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    with session_of(tmp_path, counter(100)) as session, session.phase("train") as phase:
        for _ in range(4):
            with phase.step(measured=True, samples=1) as timed:
                time.sleep(0.05)
            assert 0.045 < timed.duration_s < 60
        record = phase.end()
    measured = energy(record)
    assert has_joules_of(100, measured)
    times = [line.time_s for line in read_timeline(tmp_path) if line.device == "scripted"]
    assert times == sorted(times)


def test_the_meters_tell_their_rate_gap_and_cost(tmp_path: Path) -> None:
    with session_of(tmp_path, counter(100)) as session:
        with session.phase("train") as phase:
            for _ in range(10):
                with phase.step(measured=True, samples=1):
                    time.sleep(0.05)
            phase.end()
        soon(lambda: len(session.sensors.readers[-1].looks) > 5)
        found = session.report(None)
    taken = [reading.time_s for reading in read_timeline(tmp_path) if reading.device == "scripted"]
    gaps = [later - sooner for sooner, later in pairwise(taken)]
    assert found.largest_gap_s is not None
    assert found.rate_hz is not None
    assert found.largest_gap_s >= max(gaps) - 1e-9
    assert found.rate_hz <= len(gaps) / sum(gaps) + 1e-9
    assert found.readings >= len(taken) > 5
    assert found.cpu_share is not None
    assert found.step_share is not None
    assert 0 < found.step_share < 1


@pytest.mark.parametrize(("prefill_s", "is_there"), [(0.2, True), (0.005, False)])
def test_the_parts_of_a_generation_have_their_energies(tmp_path: Path, prefill_s: float, is_there: bool) -> None:
    """A counter that is updated every 10 ms cannot tell what 5 ms took."""

    def steps() -> float:
        return math.floor(clock.now_s() / 0.01) * 0.01 * 100

    longest_s = math.inf
    while longest_s > 2 * prefill_s:  # where the machine paused in one of these moments, nothing was tried
        longest_s, warnings = 0.0, list[tuple[WarningKind, str]]()
        with session_of(tmp_path, Scripted(counter_j=steps), found=warnings) as session:
            time.sleep(0.1)
            with session.phase("generate") as phase:
                for _ in range(3):
                    with phase.step(measured=True, samples=1) as timed:
                        started_s = clock.now_s()
                        time.sleep(prefill_s)
                        phase.mark_prefill(timed, 10)
                        longest_s = max(longest_s, clock.now_s() - started_s)
                        time.sleep(0.3)
                record = phase.end()
    prefill = record.window("prefill")
    assert (prefill is not None) == is_there
    said = [detail for kind, detail in warnings if kind is WarningKind.ENERGY_WINDOW_TOO_SHORT]
    assert len(said) == (0 if is_there else 1)
    assert all(detail.startswith("generate, reading prompts, nvml counter: ") for detail in said)
    assert all(detail.endswith("s would do") for detail in said)
    measured, decode = energy(record), energy(record, "decode")
    assert energy(record, "phase").readings is not None
    assert decode.readings is not None
    assert decode.samples == measured.samples == 3
    if prefill is not None:
        assert prefill.error_j is not None
        assert prefill.samples == 3
        # A step's parts leave out what lies between two steps.
        assert prefill.energy_j + decode.energy_j <= measured.energy_j + 3
        assert prefill.energy_j >= 3 * 100 * prefill_s - prefill.error_j


def test_a_full_disk_ends_the_trial_and_not_the_sampler(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), session_of(tmp_path, counter(100)) as session:  # noqa: PT012
        session.sensors.timeline._writer.append = lambda line: (_ for _ in ()).throw(OSError(28, "No space left"))  # type: ignore[method-assign]
        soon(lambda: session.sensors.timeline.problem)


def test_windows_of_a_real_reader_have_the_known_joules(tmp_path: Path) -> None:
    meter = EnergyMeter("nvml counter", "test", "counter")
    with reading(tmp_path, counter(250)) as reader:
        soon(lambda: reader.points and reader.points[-1].time_s > 0.6)
        found = window_energy(meter, [reader.readings], 0.1, 0.5)
        apart_s = max(later.time_s - sooner.asked_s for sooner, later in pairwise(reader.points))
    assert isinstance(found, BoundedEnergy)
    assert found.error_j is not None
    assert abs(found.energy_j - 100) <= found.error_j
    assert found.error_j <= 2 * 250 * apart_s
