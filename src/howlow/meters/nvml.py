"""NVIDIA devices through NVML (nvidia-ml-py): energy, power, memory, utilisation, temperature, clocks, throttling.

CUDA's numbering of devices and NVML's differ (CUDA_VISIBLE_DEVICES, the fastest-first order), so a device is found
by its UUID. A value that the device does not support is absent, not 0.
"""

import os
from collections.abc import Callable
from typing import Any

import pynvml
import torch

from howlow.meters.instruments import Finding, Look, thousandth
from howlow.records import WarningKind

INSTANT_PERIOD_S, AVERAGED_PERIOD_S = 0.1, 1.0  # NVML's documentation of nvmlDeviceGetPowerUsage; the first as seen
_RANGE_J = 2**32 / 1000  # should the driver count in 32 bits
_THROTTLES = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}
_VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
_ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)  # the second: the driver is older than a question
_PROCESSES = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
)
"""Each with its form for older drivers."""

_TOLD = {
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "permission denied",
        "let this user read it: as root, in a container with the device's rights, or ask who runs the machine",
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the GPU is lost",
        "reset it (nvidia-smi --gpu-reset) or restart the machine; the kernel's log (Xid) says why it fell off the bus",
    ),
}
"""Errors that a person can do something about: in words, and what to do."""


class NvmlAbsentError(Exception):
    """NVML cannot be used here; the text says why, `remedy` what to do where the library's answer tells."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


def _absent(error: pynvml.NVMLError) -> NvmlAbsentError:
    return NvmlAbsentError(f"NVML: {_said(error)}", _TOLD.get(error.value, (None, None))[1])


def _said(error: Exception) -> str:
    return _TOLD.get(getattr(error, "value", None), (str(error), None))[0]


class NvmlDevice:
    """One device, opened by its UUID; an instrument. `label` is its name in the timeline, by default the UUID."""

    range_j = _RANGE_J
    may_hang = True
    programs_cpu_s = 0.0

    def __init__(self, uuid: str, label: str | None = None) -> None:
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self.problems: dict[str, str] = {}
        try:
            pynvml.nvmlInit()
            self._handle = self._opened()
        except pynvml.NVMLError as error:
            raise _absent(error) from None
        self.device = label or self.uuid
        self._card = self._whole_card()
        self.reads_instant_power = self._instant_power_w() is not None

    def _opened(self) -> Any:
        # Where any card has fallen off the bus, none is found by its UUID (nvml.h, nvmlDeviceGetHandleByUUID).
        for index in range(pynvml.nvmlDeviceGetCount()):
            card = _value(pynvml.nvmlDeviceGetHandleByIndex, index)
            if card is not None and _value(pynvml.nvmlDeviceGetUUID, card) == self.uuid:
                return card
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except pynvml.NVMLError_NotFound:
            if self.uuid.startswith("MIG-"):
                raise
        # Of a partition CUDA tells the UUID as of a card, without what it begins with (cuDeviceGetUuid_v2).
        self.uuid = f"MIG-{self.uuid.removeprefix('GPU-')}"
        return pynvml.nvmlDeviceGetHandleByUUID(self.uuid)

    def _whole_card(self) -> Any:
        """What power and energy are asked of: a partition (MIG) has none of its own."""
        parent = None
        if self.uuid.startswith("MIG-"):
            parent = _value(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, self._handle)
        return self._handle if parent is None else parent

    def driver(self) -> str | None:
        """The driver's version."""
        version: str | None = _value(pynvml.nvmlSystemGetDriverVersion)
        return version

    def power_limit_w(self) -> float | None:
        """The limit that the driver enforces."""
        limit = _value(pynvml.nvmlDeviceGetEnforcedPowerLimit, self._card)
        return None if limit is None else limit / 1000

    def name(self) -> str | None:
        """The model."""
        name: str | None = _value(pynvml.nvmlDeviceGetName, self._handle)
        return name

    def counter_j(self) -> float | None:
        """The energy counter: joules since the driver was loaded (NVML counts in mJ; Volta and later).

        0 is no reading of a counter that has run since the driver was loaded.
        """
        return self._thousandth("counter", pynvml.nvmlDeviceGetTotalEnergyConsumption)

    def counter_problem(self) -> tuple[str, str] | None:
        """Why the counter is not read, and what to do; None where it is read, or the device has none."""
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._card)
        except pynvml.NVMLError as error:
            return _TOLD.get(error.value)
        except pynvml.NVMLLibraryMismatchError:
            return None
        return None

    def power_w(self) -> float | None:
        """The power of this moment where the device tells it, else the averaged one."""
        if self.reads_instant_power:
            return self._instant_power_w()
        return self._thousandth("power", pynvml.nvmlDeviceGetPowerUsage)

    def _thousandth(self, what: str, query: Callable[[Any], int]) -> float | None:
        return thousandth(lambda: query(self._card), self.problems, what, _ERRORS, _said)

    def _instant_power_w(self) -> float | None:
        return self._thousandth("power", _instant_power_mw)

    def look(self) -> Look:
        """Everything for the timeline."""
        memory = _value(pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        rates = _value(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        reasons = _value(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self._card) or 0
        return Look(
            power_w=self.power_w(),
            counter_j=self.counter_j(),
            memory_bytes=None if memory is None else int(memory.used),
            utilization=None if rates is None else rates.gpu / 100,
            memory_utilization=None if rates is None else rates.memory / 100,
            temperature_c=self._temperature_c(),
            sm_clock_hz=self._clock_hz(pynvml.NVML_CLOCK_SM),
            memory_clock_hz=self._clock_hz(pynvml.NVML_CLOCK_MEM),
            throttle_reasons=tuple(name for name, bit in _THROTTLES.items() if reasons & bit),
        )

    def _temperature_c(self) -> float | None:
        """NVML is about to replace the first question by the second."""
        for name in ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):
            query = getattr(pynvml, name, None)
            degrees = _value(query, self._card, pynvml.NVML_TEMPERATURE_GPU) if query else None
            if degrees is not None:
                return float(degrees)
        return None

    def _clock_hz(self, which: int) -> float | None:
        megahertz = _value(pynvml.nvmlDeviceGetClockInfo, self._card, which)
        return None if megahertz is None else megahertz * 1e6

    # -- reasons for distrust ---------------------------------------------------------------------------------------

    def findings(self) -> list[Finding]:
        """Other processes, MIG, vGPU and a power limit below the default."""
        found = [self._others(), self._partition(), self._virtual(), self._cap()]
        return [finding for finding in found if finding is not None]

    def _others(self) -> Finding | None:
        """Processes beside this one; in a container NVML may give this process another number."""
        seen: set[int] = set()
        for forms in _PROCESSES:
            answers = (_value(query, self._handle) for query in forms)
            seen.update(process.pid for process in next((one for one in answers if one is not None), ()))
        is_in_namespace = os.getpid() not in seen and _in_namespace()
        others = len(seen - {os.getpid()}) - (is_in_namespace and _uses_cuda())
        if others <= 0:
            return None
        return WarningKind.OTHER_PROCESS_ON_DEVICE, f"{others} other process(es) on {self.device}"

    def _partition(self) -> Finding | None:
        modes = _value(pynvml.nvmlDeviceGetMigMode, self._card)
        if not self.uuid.startswith("MIG-") and not (modes and modes[0]):
            return None
        detail = f"{self.device} is partitioned (MIG): energy and power are those of the whole card"
        return WarningKind.DEVICE_PARTITIONED, detail

    def _virtual(self) -> Finding | None:
        if _value(pynvml.nvmlDeviceGetVirtualizationMode, self._card) != _VGPU:
            return None
        return WarningKind.DEVICE_VIRTUAL, f"{self.device} is a virtual GPU: others may share the card"

    def _cap(self) -> Finding | None:
        limit = _value(pynvml.nvmlDeviceGetEnforcedPowerLimit, self._card)
        default = _value(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, self._card)
        if not limit or not default or limit >= default:
            return None
        detail = f"{self.device} is limited to {limit / 1000:g} W, its default is {default / 1000:g} W"
        return WarningKind.POWER_CAPPED, detail


def device_uuids() -> tuple[list[str], list[NvmlAbsentError]]:
    """The UUIDs of all devices in NVML's order, and of those that do not tell theirs why not.

    Raises:
        NvmlAbsentError: NVML cannot be used here.
    """
    try:
        pynvml.nvmlInit()
        told = [_uuid_or_problem(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise _absent(error) from None
    uuids = [one for one in told if isinstance(one, str)]
    return uuids, [one for one in told if isinstance(one, NvmlAbsentError)]


def _uuid_or_problem(index: int) -> str | NvmlAbsentError:
    try:
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except pynvml.NVMLError as error:
        absent = _absent(error)
        return NvmlAbsentError(f"{absent} (device {index})", absent.remedy)


def _instant_power_mw(card: Any) -> int:
    (told,) = pynvml.nvmlDeviceGetFieldValues(card, [pynvml.NVML_FI_DEV_POWER_INSTANT])
    if told.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(told.nvmlReturn)
    return int(told.value.uiVal)


def _value(query: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return query(*arguments)
    except _ERRORS:
        return None


def _in_namespace() -> bool:
    """Whether this process has another number outside, as in a container (proc(5): the host's first is kthreadd)."""
    try:
        with open("/proc/2/comm", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip() != "kthreadd"
    except OSError:
        return True


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
