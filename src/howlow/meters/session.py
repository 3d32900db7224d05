"""One trial's measurements: phases, timed steps, energy between them.

A timed region is: synchronise the device, read clock and counter, work, synchronise, read again (`PhaseMeter.step`;
the only place that does it). Energy of the measured part is the counter's difference over *segments*: a segment opens
before a measured step and closes at a pause (a checkpoint) or at the phase's end, so that what happens in a pause is
never counted. Where the source has no counter, the timeline's power is integrated over the same segments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from howlow.meters import clock, memory
from howlow.meters.energy import EnergyMeter, integrate_power
from howlow.meters.sampler import Sampler
from howlow.records import PhaseName, PhaseRecord


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
    """What a phase has summed up so far; goes into the checkpoint, so that a resumed phase keeps it."""

    duration_s: float = 0.0
    energy_j: float | None = 0.0
    energy_duration_s: float = 0.0
    samples: int = 0
    peak_resident_bytes: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0


@dataclass
class _Segment:
    start_s: float
    start_j: float | None
    end_s: float
    end_j: float | None
    samples: int = 0


class Session:
    """The meters of one trial, from its start to its end; a context manager that keeps the timeline."""

    def __init__(
        self, folder: Path, device: torch.device, energy: EnergyMeter, rate_hz: float, time_offset_s: float
    ) -> None:
        self._origin_s = clock.now_s() - time_offset_s
        self.device = device
        self.energy = energy
        self.sampler = Sampler(folder / "timeline.jsonl", device, rate_hz, self.trial_time)
        self.peak_problem: str | None = None

    def trial_time(self) -> float:
        """Seconds since the trial's start; an interrupted trial goes on where its checkpoint stood."""
        return clock.now_s() - self._origin_s

    def __enter__(self) -> Self:
        self.sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.sampler.stop()
        except OSError:
            if error is None:
                raise

    @contextmanager
    def phase(self, name: PhaseName, totals: dict[str, Any] | None = None) -> Iterator["PhaseMeter"]:
        """A phase with peaks of its own; `totals` are those of its part before an interruption."""
        memory.release(self.device)
        self.peak_problem = memory.reset_peaks(self.device)
        self.sampler.phase = name
        yield PhaseMeter(self, name, Totals(**totals) if totals else Totals())


@dataclass
class PhaseMeter:
    """Times the steps of one phase and sums up its energy."""

    session: Session
    name: PhaseName
    totals: Totals
    _started_s: float = field(init=False)
    _counted_s: float = field(init=False)
    _started_j: float | None = field(init=False)
    _segment: _Segment | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._started_s = self._counted_s = self.session.trial_time()
        self._started_j = self.session.energy.read_j()

    def _synchronise(self) -> None:
        if self.session.device.type == "cuda":
            torch.cuda.synchronize(self.session.device)
        elif self.session.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def step(self, measured: bool, samples: int) -> Iterator[Timed]:
        """Time one step; a measured one belongs to the energy of the measured part."""
        self._synchronise()
        start_j = self.session.energy.read_j()
        timed = Timed(start_s=self.session.trial_time())
        yield timed
        self._synchronise()
        end_s = self.session.trial_time()
        timed.duration_s = end_s - timed.start_s
        timed.energy_counter_j = self.session.energy.read_j()
        if measured:
            if self._segment is None:
                self._segment = _Segment(timed.start_s, start_j, end_s, timed.energy_counter_j)
            self._segment.end_s, self._segment.end_j = end_s, timed.energy_counter_j
            self._segment.samples += samples

    def mark_prefill(self, timed: Timed, tokens: int) -> None:
        """Within a step that generates: the prompts are read, `tokens` were computed for it."""
        self._synchronise()
        timed.prefill_s, timed.prefill_tokens = self.session.trial_time() - timed.start_s, tokens

    def pause(self) -> dict[str, Any]:
        """Close the running segment before a checkpoint; returns the totals to keep in it."""
        segment, self._segment = self._segment, None
        totals = self.totals
        if segment is not None:
            energy_j = self._between(segment)
            totals.energy_j = None if energy_j is None or totals.energy_j is None else totals.energy_j + energy_j
            totals.energy_duration_s += segment.end_s - segment.start_s
            totals.samples += segment.samples
        seen = memory.peaks(self.session.device)
        totals.peak_resident_bytes = max(totals.peak_resident_bytes, seen.resident_bytes or 0)
        totals.peak_allocated_bytes = max(totals.peak_allocated_bytes, seen.allocated_bytes or 0)
        totals.peak_reserved_bytes = max(totals.peak_reserved_bytes, seen.reserved_bytes or 0)
        now_s = self.session.trial_time()
        totals.duration_s += now_s - self._counted_s
        self._counted_s = now_s
        return asdict(totals)

    def _between(self, segment: _Segment) -> float | None:
        if segment.start_j is not None and segment.end_j is not None:
            return segment.end_j - segment.start_j
        powered = [reading for reading in self.session.sampler.readings if reading.power_w is not None]
        times_s = [reading.time_s for reading in powered]
        powers_w = [reading.power_w for reading in powered if reading.power_w is not None]
        return integrate_power(times_s, powers_w, segment.start_s, segment.end_s) if powered else None

    def end(self) -> PhaseRecord:
        """Close the phase."""
        end_j = self.session.energy.read_j()
        self.pause()
        totals, on_cpu = self.totals, self.session.device.type == "cpu"
        resident = None if self.session.peak_problem else totals.peak_resident_bytes or None
        in_use = [r.memory_bytes for r in self.session.sampler.readings if r.phase == self.name and r.memory_bytes]
        return PhaseRecord(
            phase=self.name,
            start_s=self._started_s,
            duration_s=totals.duration_s,
            peak_memory_bytes=resident if on_cpu else max(in_use, default=None),
            peak_allocated_bytes=totals.peak_allocated_bytes or None,
            peak_reserved_bytes=totals.peak_reserved_bytes or None,
            measured_energy_j=totals.energy_j if totals.samples else None,
            measured_duration_s=totals.energy_duration_s if totals.samples else None,
            measured_samples=totals.samples or None,
            phase_energy_j=None if self._started_j is None or end_j is None else end_j - self._started_j,
        )
