"""Instruments: the protocol that every source of readings keeps, and the instrument that reads this process.

Only the sampler's threads call an instrument that may hang (`howlow.meters.sampler`), never the trial's own thread.
A value that an instrument does not report is absent, never 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from howlow.meters import clock, own_processes, processor
from howlow.meters.questions import Question
from howlow.records import WarningKind


@dataclass(frozen=True)
class Look:
    """The values of a device at one moment, each None where it is not supported; `age_s` is how old they are."""

    power_w: float | None = None
    counter_j: float | None = None
    memory_bytes: int | None = None
    process_memory_bytes: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    throttled_s: Mapping[str, float] | None = None
    memory_temperature_c: float | None = None
    power_limit_w: float | None = None
    cpu_clock_hz: float | None = None
    age_s: float = 0.0


Finding = tuple[WarningKind, str]


class Instrument(Protocol):
    """A device, or a part of one, that can be read."""

    @property
    def device(self) -> str:
        """Its name in the timeline."""

    @property
    def range_j(self) -> float | None:
        """The value at which its counter wraps around to 0; None where it does not wrap."""

    @property
    def may_hang(self) -> bool:
        """Whether reading it may block forever, so that no step may read it in its own thread."""

    @property
    def programs_cpu_s(self) -> float:
        """The CPU time, in seconds, of the programs that it started; 0 where it starts none."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Why the last reading of its `counter` or its `power` failed."""

    def look(self) -> Look:
        """All its values, for the timeline."""

    def counter_j(self) -> float | None:
        """Its energy counter alone, read as fast as possible, for the steps."""

    def findings(self) -> list[Finding]:
        """The outside work and the other reasons for distrust that it knows of."""


class ProcessView:
    """This process on a CPU: its resident memory, and how busy it keeps the cores that it may use.

    Of a trial over several devices, the largest of its processes, and the CPU time of all of them.
    """

    range_j = None
    may_hang = False
    programs_cpu_s = 0.0
    problems: Mapping[str, str] = {}

    def __init__(self, device: str) -> None:
        self.device = device
        self._cores = cores()
        self._clock = Question(processor.clock_hz, is_slow=True)
        self._last = (clock.now_s(), own_processes.cpu_s())

    def look(self) -> Look:
        """Memory, and the share of the cores' time since the last look."""
        (before_s, busy_before_s), self._last = self._last, (clock.now_s(), own_processes.cpu_s())
        share = (self._last[1] - busy_before_s) / max(1e-9, (self._last[0] - before_s) * self._cores)
        return Look(
            memory_bytes=own_processes.largest_resident_bytes(),
            utilization=min(1.0, share),
            cpu_clock_hz=self._clock.if_due(),
        )

    def counter_j(self) -> None:
        """No counter."""
        return

    def findings(self) -> list[Finding]:
        """Nothing."""
        return []


def positive(value: float | None) -> float | None:
    """A power or a counter that a running device can have; None for 0, negative values, infinity and NaN."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def thousandth(
    ask: Callable[[], float | None],
    problems: dict[str, str],
    what: str,
    errors: tuple[type[Exception], ...],
    said: Callable[[Exception], str] = str,
) -> float | None:
    """Read millijoules or milliwatts and convert them to joules or watts; None where reading fails.

    what: `counter` or `power`, the key of the reason for a failure in `problems`. errors: the failures of `ask`.
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
    return len(processor.allowed_cores())
