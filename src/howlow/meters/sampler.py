"""The timeline: readings at a fixed rate from a thread of the trial's process, one JSON line each.

The readings' times are kept on the trial's own scale. A reading that comes late is written with the time at which it
was taken; a reading that is missed is a gap, never a repeated value.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from howlow.meters import clock
from howlow.meters.energy import open_nvml
from howlow.meters.machine import cores
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice
from howlow.records import LineWriter, PhaseName, Reading


class Sampler:
    """Takes readings of one device until it is stopped; `readings` holds those of this process."""

    def __init__(self, path: Path, device: torch.device, rate_hz: float, trial_time: Callable[[], float]) -> None:
        self.readings: list[Reading] = []
        self.phase: PhaseName = "load"
        self._writer = LineWriter(path)
        self._device = device
        self._period_s = 1 / rate_hz
        self._trial_time = trial_time
        self._nvml = _nvml(device)
        self._process = psutil.Process()
        self._cores = cores()
        self._last = (clock.now_s(), self._busy_s())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="howlow-sampler", daemon=True)
        self._problem: OSError | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and raise what kept the thread from writing (a full disk)."""
        self._stopped.set()
        self._thread.join()
        self._writer.close()
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        due = clock.now_s() + self._period_s
        while not self._stopped.wait(max(0.0, due - clock.now_s())):
            reading = self._read()
            self.readings.append(reading)
            try:
                self._writer.append(reading.model_dump_json(exclude_none=True))
            except OSError as error:
                self._problem = error
                return
            due = max(due + self._period_s, clock.now_s())  # a late reading does not make the next ones hurry

    def _busy_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _read(self) -> Reading:
        time_s = self._trial_time()
        if self._nvml is not None:
            seen = self._nvml.read()
            return Reading(
                time_s=time_s,
                device=str(self._device),
                power_w=seen.power_w,
                memory_bytes=seen.memory_bytes,
                utilization=seen.utilization,
                temperature_c=seen.temperature_c,
                phase=self.phase,
            )
        (before_s, busy_before_s), self._last = self._last, (clock.now_s(), self._busy_s())
        share = (self._last[1] - busy_before_s) / ((self._last[0] - before_s) * self._cores)
        return Reading(
            time_s=time_s,
            device=str(self._device),
            memory_bytes=self._process.memory_info().rss if self._device.type == "cpu" else None,
            utilization=min(1.0, share) if self._device.type == "cpu" else None,
            phase=self.phase,
        )


def _nvml(device: torch.device) -> NvmlDevice | None:
    if device.type != "cuda":
        return None
    try:
        return open_nvml(device)
    except NvmlAbsentError:
        return None
