"""A trial's timeline for a chart: what a device read over the time, thinned, and when each phase ran.

Each point is of the readings of a short span: their mean, of memory the largest, because peaks matter there.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.rows import Trial
from howlow.analysis.statistics import mean
from howlow.records import PhaseName, read_lines

_QUANTITIES = ("power_w", "memory_bytes", "utilization", "sm_clock_hz", "cpu_clock_hz")
_OF_PEAKS = "memory_bytes"
_MOST_POINTS = 160


@dataclass(frozen=True)
class TimelineLine:
    """One quantity of one device: times in seconds since the trial began, and values."""

    quantity: str
    device: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class PhaseSpan:
    """When a phase ran."""

    phase: PhaseName
    start_s: float
    end_s: float


@dataclass(frozen=True)
class TrialTimeline:
    """The lines and the phases of a trial."""

    lines: tuple[TimelineLine, ...]
    phases: tuple[PhaseSpan, ...]


def timeline_of(trial: Trial) -> TrialTimeline:
    """The timeline of a trial; without lines where nothing was read."""
    readings = list(read_lines(trial.folder / "timeline.jsonl", {"time_s": int | float, "device": str, "phase": str}))
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for reading in readings:
        for quantity in _QUANTITIES:
            if (value := reading.get(quantity)) is not None:
                found[quantity, reading["device"]].append((reading["time_s"], value))
    lines = (_line(quantity, device, points) for (quantity, device), points in found.items() if len(points) > 1)
    return TrialTimeline(tuple(lines), tuple(_spans(readings)))


def _line(quantity: str, device: str, points: Sequence[tuple[float, float]]) -> TimelineLine:
    width = -(-len(points) // _MOST_POINTS)
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    of_values = max if quantity == _OF_PEAKS else mean
    return TimelineLine(
        quantity,
        device,
        tuple(mean([time_s for time_s, _ in part]) for part in parts),
        tuple(float(of_values([value for _, value in part])) for part in parts),
    )


def _spans(readings: Iterable[Mapping[str, Any]]) -> list[PhaseSpan]:
    """From the first to the last reading of each stretch of one phase."""
    found: list[PhaseSpan] = []
    for reading in sorted(readings, key=lambda reading: float(reading["time_s"])):
        phase, time_s = reading["phase"], reading["time_s"]
        start_s = found.pop().start_s if found and found[-1].phase == phase else time_s
        found.append(PhaseSpan(phase, start_s, time_s))
    return found
