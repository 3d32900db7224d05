"""`nvidia-smi` as the paper used it: a separate process that prints power, memory and utilisation at a fixed rate.

It averages power over up to a second, so it is less exact than NVML. It is read only where the settings name it or
where NVML cannot be loaded. A field that it prints as `[N/A]` is absent. When it ends, it is started again; until then,
and when it stops printing, readings are absent.

It prints at equal distances, which cannot be made random as other readings are (`howlow.meters.schedule`). It prints
more often than it is read, so that the newest line falls on another part of each reading's period.
"""

import csv
import math
import shutil
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace

import psutil

from howlow.meters import clock
from howlow.meters.instruments import Finding, Instrument, Look, positive

POWER_PERIOD_S = 1.0  # power.draw is an average over the last second on most devices
_FIELDS = "uuid,power.draw,memory.used,utilization.gpu,utilization.memory,temperature.gpu,clocks.sm,clocks.mem"
_RESTART_AFTER_S = 2.0
_LINES_EVERY = 0.618  # of a reading's period: lines at that period would beat with a load of the same period
_TIMEOUT_S = 9.0  # less than the callers', so that it is killed here and the error says so
_KILLED_WITHIN_S = 2.0
_SILENT = "look for the driver in the kernel's log (NVRM, Xid); restart the machine if it still does not answer"
_POWERLESS = "the device or its driver does not report it; use another source, or give watts (meters.assumed_power_w)"
_FAILED = "run plain nvidia-smi and make it work first"
_FAILURES = {  # nvidia-smi(1), "Return value"
    4: "let this user use it: as root, in a container with the device's rights, or ask who runs the machine",
    9: "load NVIDIA's driver (modprobe nvidia), or install the one that fits this kernel",
    15: "the GPU fell off the bus: reset it (nvidia-smi --gpu-reset) or restart the machine",
}


class SmiAbsentError(Exception):
    """nvidia-smi cannot be used here. The text says why; `remedy` says what to do, None where it is to install it."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


class NvidiaSmi:
    """One device in the output of a running nvidia-smi, as an instrument. It has power, but no counter."""

    range_j = None
    may_hang = True

    def __init__(self, uuid: str, rate_hz: float, label: str | None = None, library: Instrument | None = None) -> None:
        self.uuid = uuid
        self._library = library
        self.device = label or uuid
        self.problems: dict[str, str] = {}
        self._period_s = 1 / rate_hz
        self._newest: tuple[float, Look] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._ended_cpu_s = self._running_cpu_s = 0.0  # of programs that have ended, and of the one that runs
        self._started_s = -_RESTART_AFTER_S

    @property
    def programs_cpu_s(self) -> float:
        """The CPU time of nvidia-smi up to the last look."""
        return self._ended_cpu_s + self._running_cpu_s

    def look(self) -> Look:
        """The newest line, if it is fresh and was not returned before; else nothing."""
        self._note_cpu_time()
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                self.problems["power"] = f"nvidia-smi ended with {self._process.returncode}"
            self._start()
        newest, self._newest = self._newest, None
        age_s = 0.0 if newest is None else clock.now_s() - newest[0]
        if newest is None or age_s > 2 * self._period_s + 0.1:
            return Look()
        self.problems.clear()
        known = Look() if self._library is None else self._library.look()  # what nvidia-smi is not asked for
        return replace(
            newest[1],
            age_s=age_s,
            throttle_reasons=known.throttle_reasons,
            throttled_s=known.throttled_s,
            memory_temperature_c=known.memory_temperature_c,
            power_limit_w=known.power_limit_w,
        )

    def _note_cpu_time(self) -> None:
        """Called before `poll`: once that shows that the process has ended, its number may belong to another."""
        if self._process is not None and self._process.returncode is None:
            with suppress(psutil.Error):
                times = psutil.Process(self._process.pid).cpu_times()
                self._running_cpu_s = times.user + times.system

    def counter_j(self) -> None:
        """nvidia-smi has no counter."""
        return

    def findings(self) -> list[Finding]:
        """The findings of NVML for the same device, where the library can be loaded."""
        return [] if self._library is None else self._library.findings()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._note_cpu_time()
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # a process that is blocked in the driver cannot be killed
                self._process.wait(_KILLED_WITHIN_S)

    def _start(self) -> None:
        if clock.now_s() - self._started_s < _RESTART_AFTER_S:
            return
        self._started_s = clock.now_s()
        every = ["-lms", str(max(1, round(1000 * _LINES_EVERY * self._period_s)))]
        command = ["nvidia-smi", f"--id={self.uuid}", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits", *every]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:  # the program is gone since it was found: there is nothing to read
            return
        self._ended_cpu_s, self._running_cpu_s = self.programs_cpu_s, 0.0
        threading.Thread(target=self._follow, args=(self._process,), name="howlow-smi", daemon=True).start()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "the process has a pipe"
        for line in process.stdout:
            fields = parse(line)
            if fields is not None:
                self._newest = (clock.now_s(), fields)
        process.stdout.close()


def parse(line: str) -> Look | None:
    """The values of a line of nvidia-smi's CSV; None for a header or an incomplete line."""
    cells = [cell.strip() for cell in next(csv.reader([line]), [])]
    if len(cells) != len(_FIELDS.split(",")) or cells[0] == "uuid":
        return None
    power, memory, busy, memory_busy, temperature, sm, memory_clock = map(_number, cells[1:])
    return Look(
        power_w=positive(power),
        memory_bytes=None if memory is None else int(memory * 2**20),
        utilization=None if busy is None else busy / 100,
        memory_utilization=None if memory_busy is None else memory_busy / 100,
        temperature_c=temperature,
        sm_clock_hz=None if sm is None else sm * 1e6,
        memory_clock_hz=None if memory_clock is None else memory_clock * 1e6,
    )


def _number(cell: str) -> float | None:
    try:
        number = float(cell.split()[0])
    except (ValueError, IndexError):  # [N/A], [Not Supported], Unknown Error
        return None
    return number if math.isfinite(number) else None


def smi_devices(timeout_s: float = _TIMEOUT_S) -> dict[str, bool]:
    """The UUIDs that nvidia-smi lists, and whether it reads power on each. It is killed after the timeout.

    Raises:
        SmiAbsentError: it is not installed, fails, does not answer in time, or reads no power.
    """
    if shutil.which("nvidia-smi") is None:
        raise SmiAbsentError("nvidia-smi is not on PATH")
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise SmiAbsentError(f"nvidia-smi did not answer within {timeout_s:g} s", _SILENT) from None
    except OSError as error:
        raise SmiAbsentError(f"nvidia-smi failed: {error}", _FAILED) from None
    if done.returncode != 0:
        said = " ".join(f"{done.stderr} {done.stdout}".split())[:200] or "no output"
        remedy = _FAILURES.get(done.returncode, _FAILED)
        raise SmiAbsentError(f"nvidia-smi ended with {done.returncode}: {said}", remedy)
    lines = done.stdout.splitlines()
    found = {line.split(",")[0].strip(): look.power_w is not None for line in lines if (look := parse(line))}
    if not any(found.values()):
        raise SmiAbsentError("nvidia-smi reads no power on any device", _POWERLESS)
    return found
