"""RAPL, the energy counters of Intel and AMD processors, through Linux's powercap tree.

Each package zone (`intel-rapl:N`, on AMD too) and each `dram` zone below one is an instrument. `core` and `uncore` lie
inside the package and `psys` holds everything, so they are left out. A counter is in microjoules, is renewed about
every millisecond (Intel SDM, volume 3, 15.10) and starts again at 0 behind `max_energy_range_uj`.

zeus reads the same files, but starts a process for each zone to count the wrap-arounds, which takes up to a second to
notice one and would itself run on the processor that is measured; here the sampler's own readings notice them.
"""

from dataclasses import dataclass
from pathlib import Path

from howlow.meters.instruments import Finding, Look

POWERCAP = Path("/sys/class/powercap")
UPDATE_PERIOD_S = 0.001


class RaplAbsentError(Exception):
    """RAPL cannot be read here; the text says why, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class RaplZone:
    """A package or its memory; an instrument."""

    folder: Path
    device: str
    range_j: float
    may_hang: bool = False
    programs_cpu_s: float = 0.0

    def counter_j(self) -> float | None:
        """The counter; None when it cannot be read."""
        try:
            # Between steps the caches are cold: `Path.read_text` takes 2.5 times as long.
            with (self.folder / "energy_uj").open("rb", buffering=0) as file:
                return int(file.read()) / 1e6
        except (OSError, ValueError):
            return None

    def look(self) -> Look:
        """The counter; the sampler makes power of two of them."""
        return Look(counter_j=self.counter_j())

    def findings(self) -> list[Finding]:
        """Nothing."""
        return []


def zones(root: Path | None = None) -> list[RaplZone]:
    """All package and memory zones.

    Raises:
        RaplAbsentError: there is none, or they may not be read.
    """
    root = root or POWERCAP
    found = [(zone, _text(zone / "name")) for zone in sorted(root.glob("intel-rapl:*"))]
    chosen = [(zone, name) for zone, name in found if name.startswith(("package", "dram"))]
    if not chosen:
        remedy = "none in a virtual machine; on bare metal load the module intel_rapl_common"
        raise RaplAbsentError(f"no package zone in {root}", remedy)
    return [_zone(zone, name) for zone, name in chosen]


def _zone(folder: Path, name: str) -> RaplZone:
    energy = folder / "energy_uj"
    try:
        int(energy.read_text())
        range_j = int((folder / "max_energy_range_uj").read_text()) / 1e6
    except PermissionError:
        remedy = f"let this user read it: sudo chmod a+r {folder.parent}/intel-rapl:*/energy_uj (until the next start)"
        raise RaplAbsentError(f"{energy}: permission denied", remedy) from None
    except (OSError, ValueError) as error:
        raise RaplAbsentError(f"{energy}: {error}", "see the kernel's log for intel_rapl") from None
    package = folder.name.split(":")[1]
    return RaplZone(folder, name if name.startswith("package") else f"{name}-{package}", range_j)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
