"""RAPL, the energy counters of Intel and AMD processors, through Linux's powercap tree.

Each package zone (`intel-rapl:N`, on AMD too) and each `dram` zone below one is an instrument. `core` and `uncore` lie
inside the package and `psys` holds everything, so they are left out. A counter is in microjoules, is renewed about
every millisecond (Intel SDM, volume 3, 15.10) and starts again at 0 behind `max_energy_range_uj`.

zeus reads the same files, but starts a process for each zone to count the wrap-arounds, which takes up to a second to
notice one and would itself run on the processor that is measured; here the sampler's own readings notice them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from howlow.meters.instruments import Finding, Look

POWERCAP = Path("/sys/class/powercap")
UPDATE_PERIOD_S = 0.001
_FORMS = ("intel-rapl:*/intel-rapl:*:*", "intel-rapl:*")  # a container may pass the tree on without its flat links


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
    problems: dict[str, str] = field(default_factory=dict, compare=False)

    def counter_j(self) -> float | None:
        """The counter; None when it cannot be read."""
        try:
            # Between steps the caches are cold: `Path.read_text` takes 2.5 times as long.
            with (self.folder / "energy_uj").open("rb", buffering=0) as file:
                found = int(file.read()) / 1e6
        except (OSError, ValueError) as error:
            self.problems["counter"] = str(error)
            return None
        self.problems.clear()
        return found

    def look(self) -> Look:
        """The counter; the sampler makes power of two of them."""
        return Look(counter_j=self.counter_j())

    def findings(self) -> list[Finding]:
        """Nothing."""
        return []


def folders(root: Path | None = None) -> dict[str, Path]:
    """Where each package and memory zone lies, by its name; whether it may be read is seen by `zone`.

    Raises:
        RaplAbsentError: there is none.
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
        remedy = "none in a virtual machine; on bare metal load the module intel_rapl_common"
        raise RaplAbsentError(f"no package zone in {root}", remedy)
    return named


def _device(folder: Path, name: str) -> str:
    """A package's own name, which holds its number; a memory zone's with that of its package."""
    return name if name.startswith("package") else f"{name}-{folder.name.split(':')[1]}"


def zone(folder: Path, device: str) -> RaplZone:
    """The zone in a folder.

    Raises:
        RaplAbsentError: it cannot be read, or must not be.
    """
    energy = folder / "energy_uj"
    try:
        int(energy.read_text())
        range_j = int((folder / "max_energy_range_uj").read_text()) / 1e6
    except PermissionError:
        remedy = f"let this user read it: sudo chmod a+r {folder.parent}/intel-rapl:*/energy_uj (until the next start)"
        raise RaplAbsentError(f"{energy}: permission denied", remedy) from None
    except (OSError, ValueError) as error:
        raise RaplAbsentError(f"{energy}: {error}", "see the kernel's log for intel_rapl") from None
    return RaplZone(folder, device, range_j)


def zones(root: Path | None = None) -> list[RaplZone]:
    """All package and memory zones.

    Raises:
        RaplAbsentError: there is none, or one cannot be read: the others' sum would pass for the whole.
    """
    return [zone(folder, device) for device, folder in folders(root).items()]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
