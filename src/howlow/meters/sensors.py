"""The sensors of one trial: every instrument with its reader, all on the trial's own time scale, and the timeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from howlow.meters import clock
from howlow.meters.conditions import conditions_between
from howlow.meters.energy import EnergyMeter, MeterName
from howlow.meters.instruments import Instrument, ProcessView
from howlow.meters.sampler import Reader
from howlow.meters.timeline import Timeline
from howlow.records import DeviceConditions, PhaseName


class Sensors:
    """Readers of all instruments, from `start` to `stop`.

    time_offset_s: the trial's time at which this process begins, more than 0 where the trial resumes.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        meters: Mapping[MeterName, EnergyMeter],
        views: Sequence[Instrument],
        rate_hz: float,
        time_offset_s: float,
    ) -> None:
        self._origin_s = clock.now_s() - time_offset_s
        self.device = device
        self.rate_hz = rate_hz
        self.meters = meters
        self.timeline = Timeline(folder / "timeline.jsonl")
        own = [ProcessView(str(device))] if device.type == "cpu" else []
        self.readers = self._readers([*own, *views])
        self.steps_s = 0.0
        self.is_open = False
        self.began_s = self._ended_s = 0.0

    def _readers(self, views: Sequence[Instrument]) -> list[Reader]:
        periods: dict[Instrument, float | None] = dict.fromkeys(views, 0.0)
        for meter in self.meters.values():
            periods.update(dict.fromkeys(meter.instruments, meter.update_period_s))
        return [
            Reader(instrument, self.rate_hz, self.timeline, self.trial_time, period_s)
            for instrument, period_s in periods.items()
        ]

    def trial_time(self) -> float:
        """Seconds since the trial's start; a resumed trial continues at the time of its checkpoint."""
        return clock.now_s() - self._origin_s

    @property
    def until_s(self) -> float:
        """The end of the readings: now, as long as the readers run."""
        return self.trial_time() if self.is_open else self._ended_s

    def start(self) -> None:
        """Start every reader."""
        self.began_s = self.trial_time()
        for reader in self.readers:
            reader.start()
        self.is_open = True

    def stop(self) -> OSError | None:
        """Stop every reader and close the timeline; returns the first problem in writing it."""
        self.is_open, self._ended_s = False, self.trial_time()
        for reader in self.readers:
            reader.stop()
        problem = self.timeline.problem
        self.timeline.close()
        return problem

    def of(self, meter: EnergyMeter) -> list[Reader]:
        """The readers of a meter's instruments."""
        return [reader for reader in self.readers if reader.instrument in meter.instruments]

    def counters_now(self) -> float | None:
        """Read all counters now; returns the sum of the trial's own, None where one did not answer."""
        found: dict[str, float | None] = {}
        for name, meter in self.meters.items():
            if meter.kind == "counter":
                points = [reader.counter_now() for reader in self.of(meter)]
                values = [point.counter_j for point in points if point is not None and point.counter_j is not None]
                found[name] = sum(values) if len(values) == len(points) else None
        return found.get("trial")

    def settle(self, moment_s: float) -> None:
        """Wait until every source has a reading that includes all that happened before a moment."""
        for meter in self.meters.values():
            for reader in self.of(meter):
                reader.settle(moment_s, meter.kind)

    def conditions(self, start_s: float, end_s: float) -> tuple[DeviceConditions, ...]:
        """Clocks, heat and throttling between two moments, of each device that reports any."""
        return conditions_between([reader.looks for reader in self.readers], start_s, end_s)

    def most_in_use_bytes(self, phase: PhaseName) -> int | None:
        """The most memory of the trial's own device that a reading of this phase showed in use."""
        own = str(self.device)
        looks = [look for reader in self.readers if reader.instrument.device == own for look in reader.looks]
        return max((look.memory_bytes for look in looks if look.phase == phase and look.memory_bytes), default=None)
