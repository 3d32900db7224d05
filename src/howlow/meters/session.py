"""The meters of one trial, from its start to its end: sensors, phases, and what else happened meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from howlow.meters.energy import EnergyMeter, MeterName, no_energy
from howlow.meters.instruments import Finding, Instrument
from howlow.meters.interference import MachineCounters, machine_counters, machine_findings, throttling
from howlow.meters.phase import PhaseMemory, PhaseMeter, Warn
from howlow.meters.self_report import meter_findings, meter_record, programs_time_s
from howlow.meters.sensors import Sensors
from howlow.meters.totals import PhaseTotals
from howlow.records import CounterPace, Idle, MeterRecord, PhaseName, RecordWarning

_FINDINGS_TIMEOUT_S = 2.0


@dataclass
class PhaseInterval:
    """When this process began and ended a phase, in the trial's time; without an end as long as it runs."""

    phase: PhaseName
    start_s: float
    end_s: float | None = None


class Session:
    """The meters of one trial; as a context manager it runs the sensors and keeps the timeline.

    time_offset_s: the trial's time at which this process begins, more than 0 where the trial resumes. Without `memory`
    phases have no peaks of resident and allocated memory. `paces` is what was measured of the counters before the first
    trial; a counter without a pace is watched when the session begins. `further` are the other devices of a trial that
    has several.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        energy: EnergyMeter,
        rate_hz: float,
        time_offset_s: float,
        *,
        memory: PhaseMemory | None = None,
        cpu_energy: EnergyMeter | None = None,
        views: Sequence[Instrument] = (),
        paces: Sequence[CounterPace] = (),
        warn: Warn = lambda warning: None,
        further: Sequence[torch.device] = (),
    ) -> None:
        cpu_energy = cpu_energy or no_energy("the CPU's energy was not asked for")
        self.device = device
        meters: dict[MeterName, EnergyMeter] = {"trial": energy, "cpu": cpu_energy}
        self.sensors = Sensors(folder, device, meters, views, rate_hz, time_offset_s, paces, further)
        self.memory = memory
        self.warn = warn
        self.peak_problem: str | None = None
        self.spans: list[PhaseInterval] = []
        self._problem: OSError | None = None
        self._before = machine_counters()

    def trial_time(self) -> float:
        """Seconds since the trial's start; a resumed trial continues at the time of its checkpoint."""
        return self.sensors.trial_time()

    def __enter__(self) -> Self:
        self.sensors.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.look_for_outside_work()  # which may be the reason
        self._end_readings()
        if self._problem is not None and error is None:
            raise self._problem

    def _end_readings(self) -> None:
        if self.sensors.is_open:
            self._problem = self.sensors.stop()

    @contextmanager
    def phase(self, name: PhaseName, totals: PhaseTotals | None = None) -> Iterator[PhaseMeter]:
        """A phase with peaks of its own; `totals` are its sums from before an interruption."""
        self.peak_problem = self.memory.begin() if self.memory else None
        self.sensors.timeline.phase = name
        span = PhaseInterval(name, self.trial_time())
        self.spans.append(span)
        yield PhaseMeter(name, self.sensors, self.memory, self.warn, totals, self.peak_problem is None)
        span.end_s = self.trial_time()

    # -- how the meters did, and what else happened -------------------------------------------------------------------

    def look_for_outside_work(self) -> None:
        """Warn of the work of others on the device; called when the trial has begun to work, and at its end."""
        for reader in self.sensors.readers:
            for kind, detail in reader.findings(_FINDINGS_TIMEOUT_S):
                self.warn(RecordWarning(kind=kind, detail=detail))

    def report(self, idle: Idle | None) -> MeterRecord:
        """How the meters did; ends the readings, and warns of their problems and of the work of others.

        The session may have ended.
        """
        if self.sensors.is_open:
            self.look_for_outside_work()
        self._end_readings()  # so that the record counts every reading that the timeline has
        after = machine_counters()
        record = self._meter_record(after, idle)
        for kind, detail in self._findings(after, record):
            self.warn(RecordWarning(kind=kind, detail=detail))
        return record

    def observed(self) -> list[Finding]:
        """The reasons for distrust so far; they go into the checkpoint, so that an interruption loses none."""
        after = machine_counters()
        return self._findings(after, self._meter_record(after, None))

    def _meter_record(self, after: MachineCounters, idle: Idle | None) -> MeterRecord:
        return meter_record(self.sensors, after.own_s - self._before.own_s, idle)

    def _findings(self, after: MachineCounters, record: MeterRecord) -> list[Finding]:
        slowed = [throttling(reader.looks) for reader in self.sensors.readers]
        # The programs that the meters started are not the work of others.
        own = replace(after, own_s=after.own_s + programs_time_s(self.sensors))
        of_meters = meter_findings(self.sensors, record)
        return [*machine_findings(self._before, own), *(one for one in slowed if one), *of_meters]
