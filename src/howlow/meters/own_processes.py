"""The processes of one trial: this one, and those that work for it on further devices.

Their CPU time is not the work of others on the machine, and the memory in the timeline is that of the largest.
"""

from collections.abc import Iterable
from contextlib import suppress

import psutil

from howlow.meters import clock

_further: dict[psutil.Process, float] = {}
"""The CPU time of each when it was last read: one that has ended keeps its own. Never changed in size, but replaced."""


def count_also(pids: Iterable[int]) -> None:
    """Count these processes with this one, and no others."""
    global _further
    found: dict[psutil.Process, float] = {}
    for pid in pids:
        with suppress(psutil.Error):
            found[psutil.Process(pid)] = 0.0
    _further = found


def cpu_s() -> float:
    """Seconds of CPU that all of them have used."""
    known = _further
    for process in known:
        with suppress(psutil.Error):
            times = process.cpu_times()
            known[process] = times.user + times.system
    return clock.process_cpu_s() + sum(known.values())


def largest_resident_bytes() -> int:
    """The resident memory of the one that has most."""
    sizes = [psutil.Process().memory_info().rss]
    for process in _further:
        with suppress(psutil.Error):
            sizes.append(process.memory_info().rss)
    return max(sizes)
