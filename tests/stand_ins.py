"""Stand-ins for sensors: the NVML library in C, nvidia-smi, a powercap tree, instruments that tests script."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from forked_python import run_forked

from howlow.jobs import Job, Link, StepProgress
from howlow.meters.instruments import Finding, Look
from howlow.outcomes import StoppedError
from howlow.records import EnergyPart, EnergyWindow, PhaseRecord

HERE = Path(__file__).parent


def build_nvml(folder: Path, *options: str) -> Path:
    """Compile the stand-in library; gives the folder for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in library")
    source, library = HERE / "nvml_stand_in.c", folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, *options, "-shared", "-fPIC", "-Wall", "-o", str(library), str(source), "-lm"], check=True
    )
    return folder


def run_with_nvml(library: Path, command: list[str], **environment: str) -> str:
    """Run Python with the stand-in on the loader's path, where the real nvidia-ml-py and zeus find it."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    scripted = {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": paths, **environment}
    if command[0] == "-c":
        done = run_forked(library, command[1], command[2:], os.environ | scripted)
    else:
        done = subprocess.run(
            [sys.executable, *command], env=os.environ | scripted, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def powercap_tree(root: Path, zones: dict[str, tuple[str, int, int]]) -> Path:
    """A powercap tree: zone folder -> name, counter and range in microjoules."""
    for folder, (name, energy_uj, range_uj) in zones.items():
        zone = root / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return root


class TellAfterStop(Job[None]):
    """A job that tells what it began, and, once it is asked to stop, that it has ended it."""

    entry: ClassVar[str] = "stand_ins.tell_after_stop"


def tell_after_stop(job: TellAfterStop, link: Link) -> None:
    link.report(StepProgress(phase="train", step=1, steps=2))
    while not link.stop_requested:
        time.sleep(0.01)
    link.report(StepProgress(phase="train", step=2, steps=2))
    raise StoppedError


def energy(phase: PhaseRecord, part: EnergyPart = "measured", device: str | None = None) -> EnergyWindow:
    """The energy window of a part, which must be there."""
    found = phase.window(part, device)
    assert found is not None, (part, device, phase.windows)
    return found


def has_joules_of(watts: float, window: EnergyWindow) -> bool:
    """Whether what a constant power takes in a window's time lies within the window's own bounds."""
    assert window.error_j is not None
    return abs(window.energy_j - watts * window.duration_s) <= window.error_j


def soon(holds: Callable[[], object], within_s: float = 200.0) -> None:
    """Wait until something is so, however long the machine takes."""
    until_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.01)


class Scripted:
    """An instrument whose answers are functions that a test gives."""

    def __init__(
        self,
        counter_j: Callable[[], float | None] = lambda: None,
        power_w: Callable[[], float | None] = lambda: None,
        device: str = "scripted",
        range_j: float | None = None,
        findings: list[Finding] | None = None,
        temperature_c: float | None = None,
        may_hang: bool = True,
    ) -> None:
        self.device = device
        self.range_j = range_j
        self.may_hang = may_hang
        self.programs_cpu_s = 0.0
        self.problems: dict[str, str] = {}
        self._counter_j, self._power_w = counter_j, power_w
        self._findings = findings or []
        self._temperature_c = temperature_c

    def counter_j(self) -> float | None:
        return self._counter_j()

    def look(self) -> Look:
        return Look(power_w=self._power_w(), counter_j=self._counter_j(), temperature_c=self._temperature_c)

    def findings(self) -> list[Finding]:
        return self._findings
