"""Where energy comes from: a counter, integrated power, watts that the user gave, or nowhere.

A source answers `read_j`: joules on a scale of its own, of which only differences mean something. `None` is the
answer of a source that has nothing to say; it is never replaced by a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from howlow.meters import clock
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice


class EnergyMeter(Protocol):
    """A source of energy readings."""

    @property
    def name(self) -> str | None:
        """What the record calls it; None where there is no source."""

    @property
    def detail(self) -> str:
        """The device, or why there is none."""

    def read_j(self) -> float | None:
        """Joules on the source's own scale."""


@dataclass(frozen=True)
class NoEnergy:
    """No source: energy stays absent, and the record says why."""

    detail: str
    name: None = None

    def read_j(self) -> None:
        """Nothing to say."""
        return


@dataclass(frozen=True)
class AssumedPower:
    """Watts that the user gave, times time. Not a measurement, and named so wherever it shows."""

    power_w: float
    name: str = "assumed"

    @property
    def detail(self) -> str:
        """The watts."""
        return f"{self.power_w:g} W given in meters.assumed_power_w, not measured"

    def read_j(self) -> float:
        """Watts times seconds."""
        return self.power_w * clock.now_s()


@dataclass(frozen=True)
class NvmlCounter:
    """The device's own energy counter."""

    device: NvmlDevice
    name: str = "nvml counter"

    @property
    def detail(self) -> str:
        """The device."""
        return f"total energy consumption of {self.device.uuid}"

    def read_j(self) -> float | None:
        """The counter."""
        return self.device.energy_j()


@dataclass(frozen=True)
class NvmlPower:
    """Polled power: the timeline's readings are integrated afterwards, so there is no counter to read."""

    device: NvmlDevice
    name: str = "nvml power"

    @property
    def detail(self) -> str:
        """The device."""
        return f"power of {self.device.uuid}, integrated over the timeline (no energy counter)"

    def read_j(self) -> None:
        """No counter."""
        return


def integrate_power(times_s: Sequence[float], powers_w: Sequence[float], start_s: float, end_s: float) -> float | None:
    """Joules between two moments from power readings, by the trapezoidal rule with the readings held at the edges.

    Absent where fewer than two readings lie in the window: one reading says nothing about an interval.
    """
    inside = sum(start_s <= time <= end_s for time in times_s)
    if inside < 2 or end_s <= start_s:
        return None
    times, powers = list(times_s), list(powers_w)
    if times[0] > start_s:
        times, powers = [start_s, *times], [powers[0], *powers]
    if times[-1] < end_s:
        times, powers = [*times, end_s], [*powers, powers[-1]]
    energy = 0.0
    for (t0, p0), (t1, p1) in pairwise(zip(times, powers, strict=True)):
        low, high = max(t0, start_s), min(t1, end_s)
        if high > low:
            slope = (p1 - p0) / (t1 - t0)
            energy += (high - low) * (p0 + slope * ((low + high) / 2 - t0))
    return energy


def open_energy(source: str, assumed_power_w: float | None, device: torch.device) -> EnergyMeter:
    """The source that the settings ask for, as far as this device has it.

    `auto` looks only at the trial's own device: a CPU trial has no source here, whatever GPU sits beside it.
    """
    if source == "none":
        return NoEnergy("meters.energy = none")
    if source == "assumed":
        assert assumed_power_w is not None, "the settings' rule: assumed energy comes with watts"
        return AssumedPower(assumed_power_w)
    if device.type != "cuda":
        return NoEnergy(f"no energy sensor is read for the device {device.type}")
    try:
        nvml = open_nvml(device)
    except NvmlAbsentError as error:
        return NoEnergy(str(error))
    if nvml.energy_j():  # 0 for a counter that has run since the driver was loaded is no reading
        return NvmlCounter(nvml)
    if nvml.read().power_w is not None:
        return NvmlPower(nvml)
    return NoEnergy(f"NVML reads neither energy nor power on {nvml.uuid}")


def open_nvml(device: torch.device) -> NvmlDevice:
    """The trial's CUDA device in NVML.

    Raises:
        NvmlAbsentError: NVML is not there or does not know the device.
    """
    return NvmlDevice(str(torch.cuda.get_device_properties(device).uuid))
