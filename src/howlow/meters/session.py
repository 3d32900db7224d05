"""One trial's measurements: phases, timed steps, energy between them.

A timed region is: synchronise the device, read clock and counter, work, synchronise, read again (`PhaseMeter.step`;
the only place that does it). Energy of the measured part is that of *segments*: a segment opens before a measured step
and closes at a pause (a checkpoint) or at the phase's end, so that what happens in a pause is never counted. The energy
of the whole phase, pauses and burn-in included, stands beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from howlow.memory import heap, peaks
from howlow.meters import clock
from howlow.meters.energy import EnergyMeter, no_energy
from howlow.meters.energy_sums import EnergySum, EnergySums, Part, Window
from howlow.meters.instruments import Finding, Instrument, ProcessView
from howlow.meters.interference import Machine, look_around, machine_findings, throttling
from howlow.meters.sampler import Reader, Timeline
from howlow.records import Idle, MeterRecord, PhaseName, PhaseRecord, RecordWarning, WarningKind

Warn = Callable[[RecordWarning], None]
_FINDINGS_PATIENCE_S = 2.0
LARGEST_OVERHEAD = 0.005
_STARTING_S = 5.0  # a program beside the trial, as nvidia-smi, takes seconds to its first line
_LONG_ENOUGH_S = 10.0  # of steps: before, finding out a counter's pace is most of the cost


@dataclass
class Timed:
    """What a timed region found; filled when the region ends."""

    start_s: float
    duration_s: float = 0.0
    energy_counter_j: float | None = None
    prefill_s: float | None = None
    prefill_tokens: int | None = None


@dataclass
class Totals:
    """What a phase has summed up so far; goes into the checkpoint, so that a resumed phase keeps it.

    `energy` holds the sums of `EnergySums`; `prefill_s` and `decode_s` are the two parts of the measured steps that
    generate; `pauses_s` lie between measured steps.
    """

    start_s: float | None = None
    duration_s: float = 0.0
    measured_duration_s: float = 0.0
    samples: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    pauses: int = 0
    pauses_s: float = 0.0
    energy: dict[str, Any] = field(default_factory=dict)
    peak_in_use_bytes: int = 0
    peak_resident_bytes: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0


class Session:
    """The meters of one trial, from its start to its end; a context manager that keeps the timeline."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        energy: EnergyMeter,
        rate_hz: float,
        time_offset_s: float,
        *,
        cpu_energy: EnergyMeter | None = None,
        views: Sequence[Instrument] = (),
        warn: Warn = lambda warning: None,
    ) -> None:
        self._origin_s = clock.now_s() - time_offset_s
        self.device = device
        self.rate_hz = rate_hz
        self.meters = {"trial": energy, "cpu": cpu_energy or no_energy("no CPU beside the device was asked for")}
        self.timeline = Timeline(folder / "timeline.jsonl")
        self.warn = warn
        self.peak_problem: str | None = None
        self.steps_s = 0.0
        own = [ProcessView(str(device))] if device.type == "cpu" else []
        self.readers = self._readers([*own, *views])
        self._before = look_around()
        self._is_open = False
        self._began_s = self._ended_s = 0.0

    def _readers(self, views: Sequence[Instrument]) -> list[Reader]:
        periods: dict[Instrument, float | None] = dict.fromkeys(views, 0.0)
        for meter in self.meters.values():
            found_out = meter.update_period_s
            periods.update(dict.fromkeys(meter.instruments, found_out))
        return [
            Reader(instrument, self.rate_hz, self.timeline, self.trial_time, period_s)
            for instrument, period_s in periods.items()
        ]

    def trial_time(self) -> float:
        """Seconds since the trial's start; an interrupted trial goes on where its checkpoint stood."""
        return clock.now_s() - self._origin_s

    def __enter__(self) -> Self:
        self._began_s = self.trial_time()
        for reader in self.readers:
            reader.start()
        self._is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.look_for_outside_work()  # which may be why
        self._is_open, self._ended_s = False, self.trial_time()
        for reader in self.readers:
            reader.stop()
        problem = self.timeline.problem
        self.timeline.close()
        if problem is not None and error is None:
            raise problem

    def of(self, meter: EnergyMeter) -> list[Reader]:
        """The readers of a meter's instruments."""
        return [reader for reader in self.readers if reader.instrument in meter.instruments]

    def counters_now(self) -> float | None:
        """Fresh readings of all counters; gives the sum of the trial's own, None where one is missing."""
        found: dict[str, float | None] = {}
        for name, meter in self.meters.items():
            if meter.kind == "counter":
                points = [reader.counter_now() for reader in self.of(meter)]
                values = [point.counter_j for point in points if point is not None and point.counter_j is not None]
                found[name] = sum(values) if len(values) == len(points) else None
        return found.get("trial")

    def settle(self, moment_s: float) -> None:
        """Let every source come to know what happened before a moment."""
        for meter in self.meters.values():
            for reader in self.of(meter):
                reader.settle(moment_s, meter.kind)

    # -- how the meters did, and what else happened -------------------------------------------------------------------

    def look_for_outside_work(self) -> None:
        """Warn of what others do on the device; called when the trial has begun to work, and at its end."""
        for reader in self.readers:
            for kind, detail in reader.findings(_FINDINGS_PATIENCE_S):
                self.warn(RecordWarning(kind=kind, detail=detail))

    def report(self, idle: Idle | None) -> MeterRecord:
        """How the meters did; with its warnings, and those of what else happened. The session may have ended."""
        if self._is_open:
            self.look_for_outside_work()
        after = look_around()
        record = self._meter_record(after, idle)
        for kind, detail in self._findings(after, record):
            self.warn(RecordWarning(kind=kind, detail=detail))
        return record

    def observed(self) -> list[Finding]:
        """The reasons for distrust up to now; goes into the checkpoint, so that an interruption loses none."""
        after = look_around()
        return self._findings(after, self._meter_record(after, None))

    def _findings(self, after: Machine, record: MeterRecord) -> list[Finding]:
        slowed = [throttling(reader.looks) for reader in self.readers]
        own = replace(after, own_s=after.own_s + self._programs_cpu_s())  # what the meters started is no outside work
        return [*machine_findings(self._before, own), *(one for one in slowed if one), *self._of_meters(record)]

    def _programs_cpu_s(self) -> float:
        return sum(reader.instrument.programs_cpu_s for reader in self.readers)

    def _meter_record(self, after: Machine, idle: Idle | None) -> MeterRecord:
        programs_cpu_s = self._programs_cpu_s()
        meters_cpu_s = sum(reader.cpu_s for reader in self.readers) + programs_cpu_s
        all_cpu_s = after.own_s - self._before.own_s + programs_cpu_s
        waited_s = sum(reader.waited_s for reader in self.readers)
        return MeterRecord(
            rate_hz=min((_rate_hz(times, self._until_s - self._began_s) for times in self._times_s), default=None),
            largest_gap_s=self._largest_gap_s(),
            readings=sum(len(reader.looks) for reader in self.readers),
            late=sum(reader.late for reader in self.readers),
            cpu_share=meters_cpu_s / all_cpu_s if all_cpu_s else None,
            step_share=waited_s / self.steps_s if self.steps_s else None,
            idle=idle,
        )

    @property
    def _times_s(self) -> list[list[float]]:
        """The moments of each reader's readings."""
        return [[look.time_s for look in reader.looks] for reader in self.readers]

    @property
    def _until_s(self) -> float:
        return self.trial_time() if self._is_open else self._ended_s

    def _largest_gap_s(self, starting_s: float = 0.0) -> float | None:
        """The longest time without a reading of one reader, its first `starting_s` left out."""
        edges = [(self._began_s + starting_s, *times, self._until_s) for times in self._times_s]
        return max((later - sooner for times in edges for sooner, later in pairwise(times)), default=None)

    def _of_meters(self, record: MeterRecord) -> Iterator[Finding]:
        asked = sum(reader.asked for reader in self.readers)
        if record.late > max(1, asked // 50):
            yield WarningKind.SENSOR_LATE, f"{record.late} of {asked} readings did not come in time"
        gap_s = self._largest_gap_s(_STARTING_S)
        if gap_s is not None and gap_s > max(1.0, 4 / self.rate_hz):
            yield WarningKind.TIMELINE_GAP, f"{gap_s:.2f} s without a reading"
        for reader in self.readers:
            if reader.failures:
                detail = f"{reader.instrument.device}: {reader.failures} times, the last one: {reader.failure}"
                yield WarningKind.SENSOR_FAILED, detail
        shares = (record.cpu_share or 0.0, record.step_share or 0.0)
        if self.steps_s > _LONG_ENOUGH_S and max(shares) > LARGEST_OVERHEAD:
            detail = f"the meters took {shares[0]:.2%} of the CPU time and {shares[1]:.2%} of the steps' time"
            yield WarningKind.METER_OVERHEAD, detail

    @contextmanager
    def phase(self, name: PhaseName, totals: dict[str, Any] | None = None) -> Iterator["PhaseMeter"]:
        """A phase with peaks of its own; `totals` are those of its part before an interruption."""
        heap.release(self.device)
        self.peak_problem = peaks.reset_peaks(self.device)
        self.timeline.phase = name
        yield PhaseMeter(self, name, Totals(**totals) if totals else Totals())


@dataclass
class PhaseMeter:
    """Times the steps of one phase and sums up its energy."""

    session: Session
    name: PhaseName
    totals: Totals
    _started_s: float = field(init=False)
    _before_s: float = field(init=False)
    _sums: EnergySums = field(init=False)
    _segment: Window | None = field(init=False, default=None)
    _paused_s: float | None = field(init=False, default=None)
    _pauses: list[Window] = field(init=False, default_factory=list)
    _generated: list[tuple[Window, Window]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._sums = EnergySums(self.session.meters, self.session.of, self.totals.energy)
        self.session.counters_now()
        self._started_s, self._before_s = self.session.trial_time(), self.totals.duration_s
        if self.totals.start_s is None:
            self.totals.start_s = self._started_s

    def _synchronise(self) -> None:
        if self.session.device.type == "cuda":
            torch.cuda.synchronize(self.session.device)
        elif self.session.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def step(self, measured: bool, samples: int) -> Iterator[Timed]:
        """Time one step; a measured one belongs to the energy of the measured part."""
        self._synchronise()
        if measured and self._segment is None:
            self.session.counters_now()
        timed = Timed(start_s=self.session.trial_time())
        if measured and self._paused_s is not None:
            self._pauses.append(Window(self._paused_s, timed.start_s))
            self._paused_s = None
        yield timed
        self._synchronise()
        end_s = self.session.trial_time()
        timed.duration_s = end_s - timed.start_s
        timed.energy_counter_j = self.session.counters_now()
        self.session.steps_s += timed.duration_s
        if measured:
            self._segment = self._segment or Window(timed.start_s, end_s)
            self._segment.end_s = end_s
            self._segment.samples += samples
            if timed.prefill_s is not None:
                read_s = timed.start_s + timed.prefill_s
                self._generated.append((Window(timed.start_s, read_s), Window(read_s, end_s)))

    def mark_prefill(self, timed: Timed, tokens: int) -> None:
        """Within a step that generates: the prompts are read, `tokens` were computed for it."""
        self._synchronise()
        timed.prefill_s, timed.prefill_tokens = self.session.trial_time() - timed.start_s, tokens
        self.session.counters_now()

    def pause(self) -> dict[str, Any]:
        """Close the running segment before a checkpoint; returns the totals to keep in it."""
        segment, self._segment = self._segment, None
        totals = self.totals
        self.session.counters_now()
        until_s = self.session.trial_time() if segment is None else segment.end_s
        self.session.settle(until_s)
        if segment is not None:
            self._paused_s = segment.end_s
            totals.measured_duration_s += segment.length_s
            totals.samples += segment.samples
            self._sums.add("measured", segment)
            self._add_within()
        seen = peaks.peaks(self.session.device)
        totals.peak_in_use_bytes = max(totals.peak_in_use_bytes, self._most_in_use() or 0)
        totals.peak_resident_bytes = max(totals.peak_resident_bytes, seen.resident_bytes or 0)
        totals.peak_allocated_bytes = max(totals.peak_allocated_bytes, seen.allocated_bytes or 0)
        totals.peak_reserved_bytes = max(totals.peak_reserved_bytes, seen.reserved_bytes or 0)
        self._sums.renew("phase", Window(self._started_s, until_s))
        totals.duration_s = self._before_s + until_s - self._started_s
        return asdict(totals)

    def _add_within(self) -> None:
        """Add the pauses before this segment, and the two parts of its steps that generated."""
        totals = self.totals
        for pause in self._pauses:
            totals.pauses += 1
            totals.pauses_s += pause.length_s
            self._sums.add("pauses", pause)
        for prefill, decode in self._generated:
            totals.prefill_s += prefill.length_s
            totals.decode_s += decode.length_s
            self._sums.add_own("prefill", prefill)
            self._sums.add_own("decode", decode)
        self._pauses, self._generated = [], []

    def end(self) -> PhaseRecord:
        """Close the phase."""
        self.pause()
        self._warn_of_missing()
        totals, session, sums = self.totals, self.session, self._sums
        resident = None if session.peak_problem else totals.peak_resident_bytes or None
        measured, whole = sums.of("measured"), sums.whole("phase", totals.duration_s)
        pauses = sums.whole("pauses", totals.pauses_s)
        prefill, decode = sums.whole("prefill", totals.prefill_s), sums.whole("decode", totals.decode_s)
        covered: EnergySum | Totals | None = measured
        if session.meters["trial"].kind == "absent":
            covered = totals if totals.samples else None
        return PhaseRecord(
            phase=self.name,
            start_s=totals.start_s or 0.0,
            duration_s=totals.duration_s,
            peak_memory_bytes=resident if session.device.type == "cpu" else totals.peak_in_use_bytes or None,
            peak_allocated_bytes=totals.peak_allocated_bytes or None,
            peak_reserved_bytes=totals.peak_reserved_bytes or None,
            measured_energy_j=measured.energy_j if measured else None,
            measured_energy_error_j=measured.error_j if measured else None,
            measured_energy_readings=measured.readings if measured else None,
            measured_duration_s=covered.measured_duration_s if covered else None,
            measured_samples=covered.samples if covered else None,
            prefill_energy_j=prefill.energy_j if prefill else None,
            prefill_energy_error_j=prefill.error_j if prefill else None,
            prefill_energy_readings=prefill.readings if prefill else None,
            decode_energy_j=decode.energy_j if decode else None,
            decode_energy_error_j=decode.error_j if decode else None,
            decode_energy_readings=decode.readings if decode else None,
            pauses=totals.pauses,
            pauses_duration_s=totals.pauses_s,
            pauses_energy_j=pauses.energy_j if pauses else None,
            pauses_energy_error_j=pauses.error_j if pauses else None,
            pauses_energy_readings=pauses.readings if pauses else None,
            phase_energy_j=whole.energy_j if whole else None,
            phase_energy_error_j=whole.error_j if whole else None,
            phase_energy_readings=whole.readings if whole else None,
            phase_energy_duration_s=whole.measured_duration_s if whole else None,
            energies=sums.beside(),
        )

    def _warn_of_missing(self) -> None:
        if self.name == "load":  # no figure rests on its energy, and nobody can make it longer
            return
        totals = self.totals
        parts_s: dict[Part, float] = {
            "measured": totals.measured_duration_s,
            "phase": totals.duration_s,
            "prefill": totals.prefill_s,
            "decode": totals.decode_s,
        }
        for found in self._sums.lacking(parts_s):
            self.session.warn(found.model_copy(update={"phase": self.name, "detail": f"{self.name}, {found.detail}"}))

    def _most_in_use(self) -> int | None:
        """The most memory of the trial's own device in use, as far as the timeline saw."""
        own = str(self.session.device)
        looks = [look for reader in self.session.readers if reader.instrument.device == own for look in reader.looks]
        return max((look.memory_bytes for look in looks if look.phase == self.name and look.memory_bytes), default=None)


def _rate_hz(times_s: Sequence[float], whole_s: float) -> float:
    """Readings a second from the first to the last; over the whole time where that is less, as they ended early."""
    over_all = len(times_s) / max(1e-9, whole_s)
    return over_all if len(times_s) < 2 else min((len(times_s) - 1) / max(1e-9, times_s[-1] - times_s[0]), over_all)
