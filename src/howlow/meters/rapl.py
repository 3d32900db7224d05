"""RAPL, the energy counters of Intel and AMD processors, through Linux's powercap tree.

Each package zone (`intel-rapl:N`, on AMD too) and each `dram` zone in a package is an instrument. The zones `core` and
`uncore` are parts of the package and `psys` includes it, so they are left out. A counter is in microjoules, is updated
about every millisecond (Intel SDM, volume 3, 15.10) and wraps around to 0 after `max_energy_range_uj`.

zeus reads the same files, but counts the wrap-arounds in a process for each zone, which notices one after up to a
second and runs on the processor that is measured. Here the sampler's own readings notice them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from howlow.meters.instruments import Finding, Look

POWERCAP = Path("/sys/class/powercap")
COUNTER_PERIOD_S = 0.001
_FORMS = ("intel-rapl:*/intel-rapl:*:*", "intel-rapl:*")  # a container may pass the tree on without its flat links


class RaplAbsentError(Exception):
    """RAPL cannot be read here. The text says why, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class RaplZone:
    """A package, or its memory, as an instrument."""

    folder: Path
    device: str
    range_j: float
    may_hang: bool = False
    programs_cpu_s: float = 0.0
    problems: dict[str, str] = field(default_factory=dict, compare=False)

    def counter_j(self) -> float | None:
        """The counter; None where it cannot be read."""
        try:
            # Unbuffered, because this runs between steps, when caches are cold: `Path.read_text` is far slower then.
            with (self.folder / "energy_uj").open("rb", buffering=0) as file:
                found = int(file.read()) / 1e6
        except (OSError, ValueError) as error:
            self.problems["counter"] = str(error)
            return None
        self.problems.clear()
        return found

    def look(self) -> Look:
        """The counter; the sampler computes power from consecutive readings."""
        return Look(counter_j=self.counter_j())

    def findings(self) -> list[Finding]:
        """Nothing."""
        return []


def folders(root: Path | None = None) -> dict[str, Path]:
    """The folder of each package and memory zone, by the zone's name; `zone` shows whether it can be read.

    Raises:
        RaplAbsentError: there is no zone.
    """
    root = root or POWERCAP
    everything = {folder.name: folder for form in _FORMS for folder in sorted(root.glob(form))}
    found = {folder: _text(folder / "name") for _, folder in sorted(everything.items())}
    named: dict[str, Path] = {}
    for folder, name in found.items():
        if name.startswith(("package", "dram")):
            device = _device(folder, name)
            named[f"{device} ({folder.name})" if device in named else device] = folder
    if not named:
        remedy = "virtual machines have none; on bare metal load the kernel module intel_rapl_common"
        raise RaplAbsentError(f"no package zone in {root}", remedy)
    return named


def _device(folder: Path, name: str) -> str:
    """The name of a package, which includes its number; for a memory zone, with the number of its package."""
    return name if name.startswith("package") else f"{name}-{folder.name.split(':')[1]}"


def zone(folder: Path, device: str) -> RaplZone:
    """The zone in a folder.

    Raises:
        RaplAbsentError: it cannot be read, or this user may not read it.
    """
    energy = folder / "energy_uj"
    try:
        int(energy.read_text())
        range_j = int((folder / "max_energy_range_uj").read_text()) / 1e6
    except PermissionError:
        remedy = f"let this user read it: sudo chmod a+r {folder.parent}/intel-rapl:*/energy_uj (until the next boot)"
        raise RaplAbsentError(f"{energy}: permission denied", remedy) from None
    except (OSError, ValueError) as error:
        raise RaplAbsentError(f"{energy}: {error}", "see the kernel's log for intel_rapl") from None
    return RaplZone(folder, device, range_j)


def zones(root: Path | None = None) -> list[RaplZone]:
    """All package and memory zones.

    Raises:
        RaplAbsentError: there is no zone, or one cannot be read; the sum of the others would look like the whole.
    """
    return [zone(folder, device) for device, folder in folders(root).items()]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
