"""What can be looked at: the protocol that every source of readings keeps, and the process itself.

One that may hang is called by the sampler's threads only (`howlow.meters.sampler`), never by the trial's own thread.
A value that the instrument does not give is absent, never 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import psutil

from howlow.meters import clock
from howlow.records import WarningKind


@dataclass(frozen=True)
class Look:
    """One look at a device; each value absent where it is not supported. `age_s`: how long ago it was taken."""

    power_w: float | None = None
    counter_j: float | None = None
    memory_bytes: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    age_s: float = 0.0


Finding = tuple[WarningKind, str]


class Instrument(Protocol):
    """A device or a zone that is read; `range_j` is where its counter starts again at 0, if it does."""

    @property
    def device(self) -> str:
        """What the timeline calls it."""

    @property
    def range_j(self) -> float | None:
        """The counter's range; None where it does not wrap."""

    @property
    def may_hang(self) -> bool:
        """Whether a question may take forever, so that no step may ask it itself."""

    @property
    def programs_cpu_s(self) -> float:
        """The CPU time that programs which it started have taken, in seconds; 0 where it starts none."""

    @property
    def problems(self) -> Mapping[str, str]:
        """By what was asked, `counter` or `power`: why it did not tell it when it was last asked."""

    def look(self) -> Look:
        """Everything that it tells; for the timeline."""

    def counter_j(self) -> float | None:
        """Its energy counter alone, as fast as can be; for the steps."""

    def findings(self) -> list[Finding]:
        """Outside work and other reasons for distrust that it knows of."""


class ProcessView:
    """This process on a CPU: its resident memory and its share of the cores that it may use."""

    range_j = None
    may_hang = False
    programs_cpu_s = 0.0
    problems: Mapping[str, str] = {}

    def __init__(self, device: str) -> None:
        self.device = device
        self._process = psutil.Process()
        self._cores = cores()
        self._last = (clock.now_s(), clock.process_cpu_s())

    def look(self) -> Look:
        """Memory, and the share since the last look."""
        (before_s, busy_before_s), self._last = self._last, (clock.now_s(), clock.process_cpu_s())
        share = (self._last[1] - busy_before_s) / max(1e-9, (self._last[0] - before_s) * self._cores)
        return Look(memory_bytes=self._process.memory_info().rss, utilization=min(1.0, share))

    def counter_j(self) -> None:
        """No counter."""
        return

    def findings(self) -> list[Finding]:
        """Nothing."""
        return []


def positive(value: float | None) -> float | None:
    """A power or a counter as it may be told: 0 and less, infinity and NaN are no reading of a device that runs."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def thousandth(
    ask: Callable[[], float | None],
    problems: dict[str, str],
    what: str,
    errors: tuple[type[Exception], ...],
    said: Callable[[Exception], str] = str,
) -> float | None:
    """Millijoules or milliwatts that are asked for, in SI; None where there are none, with the reason in `problems`.

    what: `counter` or `power`.
    """
    try:
        found = positive(ask())
    except errors as error:
        problems[what] = said(error)
        return None
    problems.pop(what, None)
    return None if found is None else found / 1000


def cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    return len(affinity()) if affinity else psutil.cpu_count() or 1
