"""The energy and power of a phase: per sample, with errors, above idle, over the whole phase, percentiles of power.

The readings of a phase's measured part are those inside its measured steps, not those in the pauses between them.
Where the energy source has several devices, power is the sum of each one's newest reading.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from howlow.analysis.statistics import mean
from howlow.records import EnergyWindow, Idle, PhaseName, PhaseRecord, Record, Step, read_lines

_PERCENTILES = {"power_p05_w": 0.05, "power_p50_w": 0.5, "power_p95_w": 0.95}


class Seen(NamedTuple):
    """What the figures need of one line of the timeline."""

    phase: PhaseName
    time_s: float
    device: str
    utilization: float | None
    memory_utilization: float | None
    power_w: float | None


_READING = {"phase": str, "time_s": int | float, "device": str, "utilization": int | float | None}


def read_seen(folder: Path) -> list[Seen]:
    """The readings; raw, as a timeline is the longest file and its models cost more than its text."""
    return [
        Seen(
            line["phase"],
            line["time_s"],
            line["device"],
            line.get("utilization"),
            line.get("memory_utilization"),
            line.get("power_w"),
        )
        for line in read_lines(folder / "timeline.jsonl", _READING)
    ]


def inside(phase: PhaseName, steps: Iterable[Step], readings: Iterable[Seen]) -> list[Seen]:
    """The readings inside the measured steps of a phase; not those of the pauses between them."""
    own = [step for step in steps if step.phase == phase and step.part == "measured"]
    spans = sorted((step.start_s, step.duration_s) for step in own)
    starts_s, ends_s = [start_s for start_s, _ in spans], [start_s + duration_s for start_s, duration_s in spans]

    def is_inside(time_s: float) -> bool:
        last = bisect_right(starts_s, time_s) - 1
        return last >= 0 and time_s <= ends_s[last]

    return [reading for reading in readings if reading.phase == phase and is_inside(reading.time_s)]


def timeline_figures(record: Record, readings: Sequence[Seen]) -> dict[str, float | None]:
    """Utilisation of the trial's own device, and percentiles of the power of those that energy comes from."""
    looks, powers = looks_of(record, readings), sorted(powers_of(record, readings))
    return {
        "utilization": _mean(reading.utilization for reading in looks),
        "memory_utilization": _mean(reading.memory_utilization for reading in looks),
        **{name: percentile(powers, share) for name, share in _PERCENTILES.items()},
    }


def looks_of(record: Record, readings: Iterable[Seen]) -> list[Seen]:
    """The readings of the trial's own device."""
    own = record.environment.device if record.environment else None
    return [reading for reading in readings if own is None or reading.device == own]


def powers_of(record: Record, readings: Iterable[Seen]) -> list[float]:
    """The power of the devices that energy comes from, in the order of the readings."""
    own = record.environment.device if record.environment else None
    devices = (record.energy.devices if record.energy else ()) or ((own,) if own else ())
    return _summed_power([reading for reading in readings if reading.device in devices], len(devices))


def _summed_power(readings: Iterable[Seen], devices: int) -> list[float]:
    newest: dict[str, float] = {}
    found = []
    for reading in readings:
        if reading.power_w is not None:
            newest[reading.device] = reading.power_w
            if len(newest) == devices:
                found.append(math.fsum(newest.values()))
    return found


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which that share of the ordered values lies, linear between two of them; None without any."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


SamplesOf = Callable[[EnergyWindow], float | None]
"""The samples by which an energy is divided."""


def energy_figures(record: Record, phase: PhaseRecord, samples_of: SamplesOf) -> dict[str, float | None]:
    """The energy of a phase with its error, above idle, of the CPU beside it, and of the whole phase."""
    measured, cpu, whole = phase.window("measured"), phase.window("measured", "cpu"), phase.window("phase")
    idle = record.meters.idle if record.meters else None
    return {
        "energy_per_sample_j": _per_sample_j(measured, samples_of),
        "power_w": _power_w(measured),
        "energy_error_per_sample_j": None if measured is None else ratio(measured.error_j, samples_of(measured)),
        "energy_above_idle_per_sample_j": _above_idle_per_sample_j(
            measured, idle.power_w if idle else None, samples_of
        ),
        "energy_above_idle_error_per_sample_j": _above_idle_error_per_sample_j(measured, idle, samples_of),
        "cpu_energy_per_sample_j": _per_sample_j(cpu, samples_of),
        "cpu_energy_above_idle_per_sample_j": _above_idle_per_sample_j(
            cpu, idle.cpu_power_w if idle else None, samples_of
        ),
        "phase_energy_j": phase.energy_j("phase"),
        "phase_power_w": _power_w(whole),
    }


def _per_sample_j(window: EnergyWindow | None, samples_of: SamplesOf) -> float | None:
    return None if window is None else ratio(window.energy_j, samples_of(window))


def _power_w(window: EnergyWindow | None) -> float | None:
    return None if window is None else ratio(window.energy_j, window.duration_s)


def _above_idle_per_sample_j(window: EnergyWindow | None, idle_w: float | None, samples_of: SamplesOf) -> float | None:
    if window is None or window.duration_s is None or idle_w is None:
        return None
    return ratio(window.energy_j - idle_w * window.duration_s, samples_of(window))


def _above_idle_error_per_sample_j(
    window: EnergyWindow | None, idle: Idle | None, samples_of: SamplesOf
) -> float | None:
    """Both errors at their worst; None where one is not known."""
    if window is None or window.error_j is None or window.duration_s is None:
        return None
    if idle is None or idle.error_w is None:
        return None
    return ratio(window.error_j + idle.error_w * window.duration_s, samples_of(window))


def meter_figures(record: Record) -> dict[str, Any]:
    """How the meters themselves did."""
    meters = record.meters
    if meters is None:
        return {}
    return {
        "idle_power_w": meters.idle.power_w if meters.idle else None,
        "meter_rate_hz": meters.rate_hz,
        "meter_largest_gap_s": meters.largest_gap_s,
        "meter_cpu_share": meters.cpu_share,
        "meter_step_share": meters.step_share,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if there else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Their ratio, or None where either is absent or nothing was there to divide by."""
    return None if numerator is None or not denominator else numerator / denominator
