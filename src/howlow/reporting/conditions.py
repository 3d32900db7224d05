"""The conditions under which trials were measured, in words: clocks, heat, throttling, and the machine's switches."""

from collections.abc import Iterable, Mapping, Sequence

from howlow.analysis.column import Unit
from howlow.records import DeviceConditions, Environment, Record, Spread
from howlow.reporting import formatting

_QUANTITIES: Mapping[str, tuple[str, Unit]] = {
    "sm_clock_hz": ("SM clock", "hertz"),
    "memory_clock_hz": ("memory clock", "hertz"),
    "cpu_clock_hz": ("CPU clock", "hertz"),
    "temperature_c": ("temperature", "celsius"),
    "memory_temperature_c": ("memory temperature", "celsius"),
    "power_limit_w": ("power limit", "watts"),
}
_TF32 = ("matmul_tf32", "cudnn_tf32", "cudnn_benchmark")


def condition_lines(records: Iterable[Record]) -> list[str]:
    """For each device what its measured windows were like, from the lowest to the highest reading of all trials."""
    devices: dict[str, list[DeviceConditions]] = {}
    for record in records:
        for found in (one for phase in record.phases if phase.phase != "load" for one in phase.conditions):
            devices.setdefault(found.device, []).append(found)
    return [f"{device}: {'; '.join(_said(found))}" for device, found in devices.items()]


def _said(found: Sequence[DeviceConditions]) -> list[str]:
    ranges = ((label, unit, [getattr(one, name) for one in found]) for name, (label, unit) in _QUANTITIES.items())
    lines = [f"{label} {said}" for label, unit, spreads in ranges if (said := _range(spreads, unit)) is not None]
    reasons = dict.fromkeys(name for one in found for name, share in (one.throttled_share or {}).items() if share)
    for reason in reasons:
        most = max((one.throttled_share or {}).get(reason, 0.0) for one in found)
        lines.append(f"clocks lowered by {reason} for up to {formatting.quantity(most, 'fraction')} of a phase")
    return lines


def _range(spreads: Iterable[Spread | None], unit: Unit) -> str | None:
    there = [spread for spread in spreads if spread is not None]
    if not there:
        return None
    low, high = (formatting.quantity(end, unit) for end in (min(s.low for s in there), max(s.high for s in there)))
    return low if low == high else f"{low} to {high}"


def condition_facts(found: Environment) -> dict[str, str | None]:
    """What is set on the machine, for the table of the environment; None where it does not say."""
    boost = {True: "allowed", False: "off", None: None}[found.cpu_boost]
    switches = found.switches or {}
    return {
        "power limit": None if found.power_limit_w is None else formatting.quantity(found.power_limit_w, "watts"),
        "CPU governor": found.governor,
        "CPU turbo": boost,
        "memory node of the GPU": None if found.device_numa_node is None else str(found.device_numa_node),
        "memory nodes of the process": formatting.plain(found.process_numa_nodes) if found.process_numa_nodes else None,
        **{name: switches.get(name) for name in _TF32 if found.device.startswith("cuda")},
    }
