"""The conditions of a phase as figures, and the energy of everything that was measured in it.

Total energy is the sum of what the accelerator, the CPU and its memory took in the same window. It exists only where
all three were measured: a sum that lacks one of them would look like a whole.
"""

import math
from collections.abc import Mapping

from howlow.analysis.energy import ratio
from howlow.records import DeviceConditions, EnergyWindow, PhaseRecord, Record, Spread


def condition_figures(record: Record, phase: PhaseRecord) -> dict[str, float | None]:
    """The mean clock and temperature of the trial's own device, and how long its clocks were lowered."""
    own = record.environment.device if record.environment else None
    found = next((one for one in phase.conditions if one.device == own), None)
    if found is None:
        return {}
    return {
        "clock_hz": _mean(found.sm_clock_hz or found.cpu_clock_hz),
        "temperature_c": _mean(found.temperature_c),
        "throttled_share": _throttled(found),
    }


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean


def _throttled(found: DeviceConditions) -> float | None:
    """By the reason that lowered them the longest: reasons may hold at the same time, so they are not added."""
    return None if found.throttled_share is None else max(found.throttled_share.values(), default=0.0)


def further_energy_figures(
    record: Record, phase: PhaseRecord, figures: Mapping[str, float | None]
) -> dict[str, float | None]:
    """The statistical error of energy/sample, the memory's energy/sample, and total energy/sample.

    figures: those of the phase so far; what is computed here divides by the same samples.
    """
    measured, cpu = phase.window("measured"), phase.window("measured", "cpu")
    dram_j = _dram_j(phase)
    with_dram, per_sample_j = cpu or measured, figures["cpu_energy_per_sample_j" if cpu else "energy_per_sample_j"]
    return {
        "energy_statistical_error_per_sample_j": _part(
            measured, measured.statistical_error_j if measured else None, figures["energy_per_sample_j"]
        ),
        "dram_energy_per_sample_j": _part(with_dram, dram_j, per_sample_j),
        "total_energy_per_sample_j": _total_j(record, measured, cpu, figures) if dram_j is not None else None,
    }


def _dram_j(phase: PhaseRecord) -> float | None:
    """The energy of all memory zones; None where a package has none."""
    zones = {window.device: window for window in phase.windows if window.part == "measured" and window.device}
    kinds = {name: name.partition("-")[0] for name in zones}  # package-0, dram-0: the meters' names of RAPL's zones
    packages = [name for name, kind in kinds.items() if kind == "package"]
    memories = [name for name, kind in kinds.items() if kind == "dram"]
    if not packages or len(packages) != len(memories):
        return None
    return math.fsum(zones[name].energy_j for name in memories)


def _part(window: EnergyWindow | None, part_j: float | None, per_sample_j: float | None) -> float | None:
    """A part of a window's energy, per sample as the window's own is."""
    share = None if window is None else ratio(part_j, window.energy_j)
    return None if share is None or per_sample_j is None else share * per_sample_j


def _total_j(
    record: Record, measured: EnergyWindow | None, cpu: EnergyWindow | None, figures: Mapping[str, float | None]
) -> float | None:
    """Accelerator and CPU together, where both are measured over the same time."""
    is_assumed = record.energy is None or record.energy.name == "assumed"
    if is_assumed or measured is None or cpu is None or measured.duration_s is None or cpu.duration_s is None:
        return None
    device_j, cpu_j = figures["energy_per_sample_j"], figures["cpu_energy_per_sample_j"]
    if device_j is None or cpu_j is None or not math.isclose(measured.duration_s, cpu.duration_s, rel_tol=0.01):
        return None
    return device_j + cpu_j
