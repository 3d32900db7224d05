"""What Linux says of the processor: its cores, their clock, who sets it, and the memory nodes.

What Linux does not say is None.
"""

from pathlib import Path

import psutil

_CPUS = Path("/sys/devices/system/cpu")
_NODES = Path("/sys/devices/system/node")
_PCI = Path("/sys/bus/pci/devices")
_GOVERNORS = "cpu[0-9]*/cpufreq/scaling_governor"
_MOST_CORES = 8  # whose clock is read: each reading asks a core


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    return list(affinity()) if affinity else list(range(psutil.cpu_count() or 1))


def governor(cpus: Path = _CPUS) -> str | None:
    """How Linux sets the frequency of the cores, e.g. "performance"; None where it does not say."""
    try:
        found = {path.read_text().strip() for path in cpus.glob(_GOVERNORS)}
    except OSError:
        return None
    return ", ".join(sorted(found)) or None


def boost(cpus: Path = _CPUS) -> bool | None:
    """Whether the cores may exceed their nominal frequency (turbo)."""
    no_turbo = _number(cpus / "intel_pstate" / "no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    allowed = _number(cpus / "cpufreq" / "boost")
    return None if allowed is None else allowed != 0


def clock_hz(cpus: Path = _CPUS) -> float | None:
    """The mean clock of the first cores that this process may use."""
    paths = (cpus / f"cpu{core}" / "cpufreq" / "scaling_cur_freq" for core in allowed_cores()[:_MOST_CORES])
    found = [kilohertz for path in paths if (kilohertz := _number(path))]
    return 1000 * sum(found) / len(found) if found else None


def nodes(cores: list[int] | None = None, root: Path = _NODES) -> tuple[int, ...] | None:
    """The memory nodes (NUMA) of these cores, by default of those that this process may use."""
    wanted = set(allowed_cores() if cores is None else cores)
    lists = {int(path.parent.name[4:]): _text(path) for path in root.glob("node[0-9]*/cpulist")}
    return tuple(sorted(node for node, listed in lists.items() if wanted & _listed(listed))) or None


def node_of_pci(bus_id: str, root: Path = _PCI) -> int | None:
    """The memory node that a PCI device is attached to; NVML writes eight digits of its domain, Linux four."""
    domain, _, rest = bus_id.lower().partition(":")
    node = _number(root / f"{domain[-4:]}:{rest}" / "numa_node")
    return node if node is not None and node >= 0 else None


def _listed(text: str) -> set[int]:
    """The numbers of Linux's notation, e.g. `0-3,8`."""
    parts = (part.partition("-") for part in text.split(",") if part)
    return {core for first, _, last in parts for core in range(int(first), int(last or first) + 1)}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
