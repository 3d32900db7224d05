"""Where the time of a search goes, as its processes tell it by their events.

Each moment of a search belongs to one part: it begins when an event comes, and ends when the next one does. All is read
from one clock, that of the worker, so that a process that dies in the middle of a probe is counted as well. Only the
compiler's time is told by the process; it is moved from the probe in which it was spent.
"""

from dataclasses import dataclass, field
from typing import Literal

from howlow.jobs import BudgetSet, JobEvent, ProbeBegun, ProbeEnded, RankMeasured
from howlow.meters.clock import now_s
from howlow.records import SearchDurations

SearchPart = Literal["start", "choose", "load", "compile", "probe", "confirm"]


@dataclass(frozen=True)
class Effort:
    """The seconds of a search so far, by part, and what was done."""

    seconds: dict[SearchPart, float] = field(default_factory=dict)
    processes: int = 0
    loads: int = 0
    compilations: int = 0

    @property
    def durations(self) -> SearchDurations:
        """For the record."""
        return SearchDurations(**{part: round(seconds, 3) for part, seconds in self.seconds.items()})


class Stopwatch:
    """Follows a search from its first process on; `before`: the effort of an interrupted one."""

    def __init__(self, before: Effort | None = None) -> None:
        before = before or Effort()
        self._seconds = dict(before.seconds)
        self._processes, self._loads = before.processes, before.loads
        self._compilations = before.compilations
        self._part: SearchPart = "start"
        self._since_s = now_s()
        self._has_loaded = False

    def start_process(self) -> None:
        """A process is started now."""
        self._enter("start")
        self._processes += 1
        self._has_loaded = False

    def hear(self, event: JobEvent) -> None:
        """An event of the process came."""
        match event:
            case BudgetSet():
                self._enter("choose")
            case ProbeBegun() if not self._has_loaded:
                self._enter("load")
            case RankMeasured():
                self._enter("choose")
                self._loads, self._has_loaded = self._loads + 1, True
            case ProbeBegun():
                self._enter("confirm" if event.confirms else "probe")
            case ProbeEnded():
                self._end_probe(event)
            case _:
                pass

    def effort(self) -> Effort:
        """All of it, up to now."""
        self._enter(self._part)
        return Effort(dict(self._seconds), self._processes, self._loads, self._compilations)

    def _enter(self, part: SearchPart) -> None:
        now = now_s()
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since_s
        self._part, self._since_s = part, now

    def _end_probe(self, event: ProbeEnded) -> None:
        probed = self._part
        self._enter("choose")
        compiling_s = min(event.compiling_s, self._seconds[probed])
        self._seconds[probed] -= compiling_s
        self._seconds["compile"] = self._seconds.get("compile", 0.0) + compiling_s
        self._compilations += event.compilations
