"""The sensors of one trial: every instrument with its reader, all on the trial's own time scale, and the timeline."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from howlow.meters import clock
from howlow.meters.conditions import conditions_between
from howlow.meters.energy import EnergyMeter, MeterKind, MeterName
from howlow.meters.energy_bounds import Point
from howlow.meters.instruments import Instrument, ProcessView
from howlow.meters.sampler import ANSWER_TIMEOUT_S, STEP_SHARE, Reader, await_sources, await_ticks
from howlow.meters.timeline import Timeline
from howlow.records import CounterPace, DeviceConditions, PhaseName, Reading


class CounterSum:
    """The sum of several counters whose readings come later; `value_j` stays None where one of them does not come."""

    def __init__(self, counters: int) -> None:
        self.value_j: float | None = None
        self._left = counters
        self._read: list[float] = []
        self._lock = threading.Lock()
        self._done = threading.Event()

    def add(self, point: Point | None) -> None:
        """Take the reading of one counter."""
        with self._lock:
            self._left -= 1
            if point is None or point.counter_j is None:
                self._done.set()
                return
            self._read.append(point.counter_j)
            if self._left == 0 and not self._done.is_set():
                self.value_j = sum(self._read)
                self._done.set()

    def awaited_j(self, timeout_s: float = ANSWER_TIMEOUT_S) -> float | None:
        """The sum, waited for no longer than that."""
        self._done.wait(timeout_s)
        return self.value_j


class Sensors:
    """Readers of all instruments, from `start` to `stop`.

    time_offset_s: the trial's time at which this process begins, more than 0 where the trial resumes. paces: what was
    measured of the counters before the first trial. further: the other devices of a trial that has several.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        meters: Mapping[MeterName, EnergyMeter],
        views: Sequence[Instrument],
        rate_hz: float,
        time_offset_s: float,
        paces: Sequence[CounterPace] = (),
        further: Sequence[torch.device] = (),
    ) -> None:
        self._further = [str(device) for device in further]
        self._origin_s = clock.now_s() - time_offset_s
        self.device = device
        self.rate_hz = rate_hz
        self.meters = meters
        self._paces = {pace.device: pace for pace in paces}
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
        polled = [part for meter in self.meters.values() if meter.kind == "power" for part in meter.instruments]
        return [
            Reader(
                instrument,
                self.rate_hz,
                self.timeline,
                self.trial_time,
                period_s,
                self._paces.get(instrument.device),
                instrument in polled,
            )
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

    def counters_soon(self) -> CounterSum | None:
        """Have the trial's own counters read, without waiting; None without counters, or where that would cost much."""
        meter = self.meters["trial"]
        readers = self.of(meter) if meter.kind == "counter" else []
        if not readers or not all(reader.may_read_in_between(STEP_SHARE / len(readers)) for reader in readers):
            return None
        found = CounterSum(len(readers))
        for reader in readers:
            reader.counter_soon(found.add)
        return found

    def begin_window(self) -> None:
        """Wait for a tick of every counter, so that a window can begin."""
        await_ticks(self._of_kind("counter"))

    def end_window(self, moment_s: float) -> None:
        """Wait until every source has a reading that includes all that happened before a moment."""
        await_sources(self._of_kind("counter"), self._of_kind("power"), moment_s)

    def _of_kind(self, kind: MeterKind) -> list[Reader]:
        return [reader for meter in self.meters.values() if meter.kind == kind for reader in self.of(meter)]

    def conditions(self, start_s: float, end_s: float) -> tuple[DeviceConditions, ...]:
        """Clocks, heat and throttling between two moments, of each device that reports any."""
        return conditions_between([reader.looks for reader in self.readers], start_s, end_s)

    def most_in_use_bytes(self, phase: PhaseName) -> int | None:
        """The most memory of the trial's own device (its fullest) that a reading of this phase showed in use."""
        return max((look.memory_bytes for look in self._own_looks(phase) if look.memory_bytes), default=None)

    def most_of_process_bytes(self, phase: PhaseName) -> int | None:
        """The most of it that this process had, by the driver's count; None where no reading of this phase knows it."""
        own = [look.process_memory_bytes for look in self._own_looks(phase)]
        return max((size for size in own if size), default=None)

    def _own_looks(self, phase: PhaseName) -> list[Reading]:
        own = {str(self.device), *self._further}
        looks = [look for reader in self.readers if reader.instrument.device in own for look in reader.looks]
        return [look for look in looks if look.phase == phase]
