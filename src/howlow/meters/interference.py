"""Interference: what else happened on the machine and the device while a trial ran, as warnings for its record.

The machine's counters are read at the trial's start and end. The load of other processes is the busy time of the cores
that this process may use, less its own CPU time (proc(5), /proc/stat). What an instrument knows about its device (other
processes, partitions, a power limit) comes from `Instrument.findings`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from howlow.meters import clock, own_processes
from howlow.meters.instruments import Finding
from howlow.meters.processor import allowed_cores
from howlow.records import Reading, WarningKind

LARGEST_SHARE = 0.05  # of the cores' time
_SHORTEST_S = 1.0
_SWAPPED_PAGES = 4096
_SLOWED = {"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"}


@dataclass(frozen=True)
class MachineCounters:
    """The machine's counters at one moment; None where the system does not report one."""

    at_s: float
    own_s: float
    busy_s: float | None
    load: float | None
    cores: int
    swapped_pages: int | None
    throttles: int | None


def machine_counters() -> MachineCounters:
    """The machine's counters now."""
    allowed = allowed_cores()
    return MachineCounters(
        at_s=clock.now_s(),
        own_s=own_processes.cpu_s(),
        busy_s=_busy_s(allowed),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        cores=len(allowed),
        swapped_pages=_swapped_pages(),
        throttles=_throttles(),
    )


def machine_findings(before: MachineCounters, after: MachineCounters) -> list[Finding]:
    """What happened on the machine between two moments besides this process's work."""
    found = [_others(before, after), _swap(before, after), _cpu_throttling(before, after)]
    return [finding for finding in found if finding is not None]


def _others(before: MachineCounters, after: MachineCounters) -> Finding | None:
    elapsed_s = after.at_s - before.at_s
    if before.busy_s is None or after.busy_s is None or elapsed_s < _SHORTEST_S:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    share = others_s / (elapsed_s * before.cores)
    if share <= LARGEST_SHARE:
        return None
    load = "" if before.load is None else f"; load average {before.load:.2f} at the start"
    detail = f"other processes took {share:.0%} of the {before.cores} cores' time{load}"
    return WarningKind.OTHER_WORK_ON_MACHINE, detail


def _swap(before: MachineCounters, after: MachineCounters) -> Finding | None:
    if before.swapped_pages is None or after.swapped_pages is None:
        return None
    pages = after.swapped_pages - before.swapped_pages
    if pages < _SWAPPED_PAGES:
        return None
    return WarningKind.SWAPPING, f"{pages} pages were swapped in or out"


def _cpu_throttling(before: MachineCounters, after: MachineCounters) -> Finding | None:
    if before.throttles is None or after.throttles is None or after.throttles <= before.throttles:
        return None
    return WarningKind.THROTTLED, f"the CPU throttled for heat {after.throttles - before.throttles} time(s)"


def throttling(looks: Sequence[Reading]) -> Finding | None:
    """A device that throttled for heat or because of its power supply, after loading."""
    working = [_SLOWED & set(look.throttle_reasons or ()) for look in looks if look.phase != "load"]
    slowed = [reasons for reasons in working if reasons]
    if not slowed:
        return None
    share = len(slowed) / len(working)
    return (
        WarningKind.THROTTLED,
        f"{looks[0].device}: {', '.join(sorted(set().union(*slowed)))} in {share:.0%} of readings",
    )


# -- the system's counters ------------------------------------------------------------------------------------------


def _busy_s(allowed: Sequence[int]) -> float | None:
    """Seconds in which these cores were busy; `user` includes the time of guests."""
    times = psutil.cpu_times(percpu=True)
    if not times or max(allowed) >= len(times):
        return None
    parts = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times[core], part, 0.0) for core in allowed for part in parts)


def _swapped_pages() -> int | None:
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith(("pswpin ", "pswpout "))]
    return sum(counts) if counts else None


def _throttles() -> int | None:
    counts = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    found = [int(text) for path in counts if (text := _text(path)).isdigit()]
    return sum(found) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
