"""One phase of a trial: its timed steps, the energy between them, and its peaks of memory.

A timed region is: synchronise the device, read the clock, work, synchronise, read the clock again (`PhaseMeter.step`;
nothing else times a step). At its end the counter is asked for, too, but the step does not wait for the answer.

The energy of the measured part is that of *segments*. A segment opens before a measured step and closes at a pause (a
checkpoint) or at the phase's end, so that the energy of a pause is never counted. Before a segment opens, and after it
closes, the phase waits for a tick of the counter: that time is in no figure. The energy of the whole phase, pauses and
burn-in included, is a window of its own, which also begins and ends at a tick.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from howlow.meters.conditions import condition_warnings, joined_conditions
from howlow.meters.energy_sums import EnergySums, Stretch
from howlow.meters.sensors import CounterSum, Sensors
from howlow.meters.totals import PhaseTotals
from howlow.records import EnergyPart, PhaseName, PhaseRecord, RecordWarning

Warn = Callable[[RecordWarning], None]


class MemoryPeaks(Protocol):
    """The highest memory of a phase so far; None where this device or system does not report it."""

    @property
    def resident_bytes(self) -> int | None:
        """The process's resident memory."""

    @property
    def allocated_bytes(self) -> int | None:
        """Allocated by torch on the device."""

    @property
    def reserved_bytes(self) -> int | None:
        """Reserved by torch on the device."""


class PhaseMemory(Protocol):
    """The process's memory, as a phase needs it. The caller passes it in, because meters change nothing themselves."""

    def begin(self) -> str | None:
        """Free what the last phase left and reset the peaks; returns why resident memory's peak cannot be reset."""

    def peaks(self) -> MemoryPeaks:
        """The peaks since `begin`."""


@dataclass
class Timed:
    """The figures of a timed region; filled when the region ends, `energy_counter_j` a moment later.

    opens_segment: it is measured, and there is no segment that it continues.
    """

    start_s: float
    opens_segment: bool = False
    duration_s: float = 0.0
    prefill_s: float | None = None
    prefill_tokens: int | None = None
    asked_counter: CounterSum | None = field(default=None, repr=False, compare=False)

    @property
    def energy_counter_j(self) -> float | None:
        """The energy counter's reading at the region's end; None until it comes, and where it does not come."""
        return self.asked_counter.value_j if self.asked_counter else None

    def counter_j(self) -> float | None:
        """The same, waited for shortly; not to be called between measured steps."""
        return self.asked_counter.awaited_j() if self.asked_counter else None


@dataclass
class PhaseMeter:
    """Times the steps of one phase and sums up its energy; `before` are its totals from before an interruption.

    has_resident_peak: whether the peak of resident memory is this phase's own.
    """

    name: PhaseName
    sensors: Sensors
    memory: PhaseMemory | None
    warn: Warn
    before: PhaseTotals | None = None
    has_resident_peak: bool = True
    _totals: PhaseTotals = field(init=False)
    _started_s: float = field(init=False)
    _sums: EnergySums = field(init=False)
    _segment: Stretch | None = field(init=False, default=None)
    _paused_s: float | None = field(init=False, default=None)
    _pauses: list[Stretch] = field(init=False, default_factory=list)
    _generated: list[tuple[Stretch, Stretch]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        kept = self.before.windows if self.before else ()
        self._sums = EnergySums(self.sensors.meters, self.sensors.of, kept)
        if self.name != "load":  # no figure rests on the energy of loading
            self.sensors.begin_window()
        self._started_s = self.sensors.trial_time()
        self._totals = self.before or PhaseTotals(start_s=self._started_s)

    def _synchronise(self) -> None:
        if self.sensors.device.type == "cuda":
            torch.cuda.synchronize(self.sensors.device)
        elif self.sensors.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def step(self, measured: bool, samples: int) -> Iterator[Timed]:
        """Time one step; a measured one belongs to the energy of the measured part."""
        self._synchronise()
        if measured and self._segment is None:
            self.sensors.begin_window()
        timed = Timed(start_s=self.sensors.trial_time(), opens_segment=measured and self._segment is None)
        if measured and self._paused_s is not None:
            self._pauses.append(Stretch(self._paused_s, timed.start_s))
            self._paused_s = None
        yield timed
        self._synchronise()
        end_s = self.sensors.trial_time()
        timed.duration_s = end_s - timed.start_s
        timed.asked_counter = self.sensors.counters_soon()
        self.sensors.steps_s += timed.duration_s
        if measured:
            self._add_measured(timed, end_s, samples)

    def _add_measured(self, timed: Timed, end_s: float, samples: int) -> None:
        segment = self._segment or Stretch(timed.start_s, end_s)
        self._segment = segment.extended(end_s, samples)
        if timed.prefill_s is not None:
            read_s = timed.start_s + timed.prefill_s
            self._generated.append((Stretch(timed.start_s, read_s, samples), Stretch(read_s, end_s, samples)))

    def mark_prefill(self, timed: Timed, tokens: int) -> None:
        """Mark, within a step that generates, that all prompts are read; the model computed `tokens` tokens for it."""
        self._synchronise()
        timed.prefill_s, timed.prefill_tokens = self.sensors.trial_time() - timed.start_s, tokens
        self.sensors.counters_soon()

    def pause(self) -> PhaseTotals:
        """Close the running segment, as before a checkpoint; returns the totals to keep in it."""
        segment, self._segment = self._segment, None
        until_s = self.sensors.trial_time() if segment is None else segment.end_s
        self.sensors.end_window(until_s)
        if segment is not None:
            self._paused_s = segment.end_s
            self._add_segment(segment)
        self._sums.renew("phase", Stretch(self._started_s, until_s))
        before_s = self.before.duration_s if self.before else 0.0
        duration_s = before_s + until_s - self._started_s
        self._update(duration_s=duration_s, windows=self._sums.windows, **self._peaks())
        return self._totals

    def _add_segment(self, segment: Stretch) -> None:
        """Add a segment, the pauses before it, and the two parts of its steps that generated."""
        totals = self._totals
        self._sums.add("measured", segment)
        for pause in self._pauses:
            self._sums.add("pauses", pause)
        for prefill, decode in self._generated:
            self._sums.add_own("prefill", prefill)
            self._sums.add_own("decode", decode)
        self._update(
            conditions=joined_conditions(totals.conditions, self.sensors.conditions(segment.start_s, segment.end_s)),
            measured_duration_s=totals.measured_duration_s + segment.length_s,
            samples=totals.samples + (segment.samples or 0),
            pauses=totals.pauses + len(self._pauses),
            pauses_s=sum((pause.length_s for pause in self._pauses), totals.pauses_s),
            prefill_s=sum((prefill.length_s for prefill, _ in self._generated), totals.prefill_s),
            decode_s=sum((decode.length_s for _, decode in self._generated), totals.decode_s),
        )
        self._pauses, self._generated = [], []

    def _peaks(self) -> dict[str, int | None]:
        """The peaks of the whole phase, before and after an interruption."""
        totals, seen = self._totals, self.memory.peaks() if self.memory else None
        return {
            "peak_in_use_bytes": _higher(totals.peak_in_use_bytes, self.sensors.most_in_use_bytes(self.name)),
            "peak_process_bytes": _higher(totals.peak_process_bytes, self.sensors.most_of_process_bytes(self.name)),
            "peak_resident_bytes": _higher(totals.peak_resident_bytes, seen.resident_bytes if seen else None),
            "peak_allocated_bytes": _higher(totals.peak_allocated_bytes, seen.allocated_bytes if seen else None),
            "peak_reserved_bytes": _higher(totals.peak_reserved_bytes, seen.reserved_bytes if seen else None),
        }

    def _update(self, **values: object) -> None:
        self._totals = self._totals.model_copy(update=values)

    def end(self) -> PhaseRecord:
        """Close the phase; returns its record."""
        totals = self.pause()
        if self.name != "load":  # nobody can make loading longer
            for found in self._sums.warnings(_parts_s(totals)):
                detail = f"{self.name}, {found.detail}"
                self.warn(found.model_copy(update={"phase": self.name, "detail": detail}))
        for warning in condition_warnings(self.name, totals.conditions):
            self.warn(warning)
        resident = totals.peak_resident_bytes if self.has_resident_peak else None
        return PhaseRecord(
            phase=self.name,
            start_s=totals.start_s,
            duration_s=totals.duration_s,
            peak_memory_bytes=resident if self.sensors.device.type == "cpu" else totals.peak_in_use_bytes,
            peak_process_memory_bytes=totals.peak_process_bytes,
            peak_allocated_bytes=totals.peak_allocated_bytes,
            peak_reserved_bytes=totals.peak_reserved_bytes,
            measured_duration_s=totals.measured_duration_s or None,
            measured_samples=totals.samples or None,
            pauses=totals.pauses,
            pauses_duration_s=totals.pauses_s,
            windows=self._sums.recorded(_parts_s(totals)),
            conditions=totals.conditions,
        )


def _parts_s(totals: PhaseTotals) -> dict[EnergyPart, float]:
    return {
        "measured": totals.measured_duration_s,
        "pauses": totals.pauses_s,
        "prefill": totals.prefill_s,
        "decode": totals.decode_s,
        "phase": totals.duration_s,
    }


def _higher(before: int | None, now: int | None) -> int | None:
    return max(before or 0, now or 0) or None
