"""NVIDIA devices through NVML (nvidia-ml-py): power, energy, memory in use, utilisation, temperature.

CUDA's numbering of devices and NVML's differ (CUDA_VISIBLE_DEVICES, the fastest-first order), so a device is found
by its UUID. A value that the device does not support is absent, not 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml


class NvmlAbsentError(Exception):
    """NVML cannot be used here; the text says why."""


@dataclass(frozen=True)
class NvmlReading:
    """One look at a device; each value absent where it is not supported."""

    power_w: float | None
    memory_bytes: int | None
    utilization: float | None
    temperature_c: float | None


class NvmlDevice:
    """One device, opened by its UUID."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except pynvml.NVMLError as error:
            raise NvmlAbsentError(f"NVML: {error}") from None

    def driver(self) -> str | None:
        """The driver's version."""
        version: str | None = _value(pynvml.nvmlSystemGetDriverVersion)
        return version

    def energy_j(self) -> float | None:
        """The energy counter: joules since the driver was loaded (NVML counts in mJ; Volta and later)."""
        millijoules = _value(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else millijoules / 1000

    def read(self) -> NvmlReading:
        """Power, memory in use, the share of time that a kernel ran, temperature."""
        milliwatts = _value(pynvml.nvmlDeviceGetPowerUsage, self._handle)
        memory = _value(pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        rates = _value(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        return NvmlReading(
            power_w=None if milliwatts is None else milliwatts / 1000,
            memory_bytes=None if memory is None else int(memory.used),
            utilization=None if rates is None else rates.gpu / 100,
            temperature_c=_value(pynvml.nvmlDeviceGetTemperature, self._handle, pynvml.NVML_TEMPERATURE_GPU),
        )


def _value(query: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None
