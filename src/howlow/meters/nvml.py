"""NVIDIA devices through NVML (nvidia-ml-py): energy, power, memory, utilisation, temperature, clocks, throttling.

CUDA and NVML number devices differently (CUDA_VISIBLE_DEVICES, CUDA's fastest-first order), so a device is found by its
UUID. A value that the device does not support is absent, not 0.

Values that NVML calls fields are asked for together, in one call (`howlow.meters.nvml_fields`); a driver without them
is asked through the older functions. What takes long is asked at most once a second (`howlow.meters.questions`).
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pynvml
import torch

from howlow.meters import clock, processor
from howlow.meters.counters import StandstillWatch
from howlow.meters.instruments import Finding, Look, positive, thousandth
from howlow.meters.nvml_fields import ENERGY, ERRORS, MEMORY_HEAT, POWER, THROTTLED_TIMES, Fields
from howlow.meters.questions import Question
from howlow.records import WarningKind

INSTANT_PERIOD_S = 0.1  # as measured
AVERAGED_PERIOD_S = 1.0  # NVML's documentation of nvmlDeviceGetPowerUsage
_RANGE_J = 2**32 / 1000  # in case the driver counts in 32 bits
_THROTTLES = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}
_SAMPLED_SHARE = {"A100": 0.25, "H100": 0.25}
"""The share of the time in which a model's power sensor measures (Yang, Adamek and Armour, arXiv 2312.02741)."""
_AVERAGED_IN_PART = ("A100",)
"""Models whose `nvmlDeviceGetPowerUsage` is such a reading, too, and not the mean of a second."""
_VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
_PROCESSES = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
)
"""Each with its version for older drivers."""

_MENDABLE = {
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "permission denied",
        "let this user read it: as root, in a container with the device's rights, or ask who runs the machine",
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the GPU is lost",
        "reset it (nvidia-smi --gpu-reset) or restart the machine; the kernel's log (Xid) says why it fell off the bus",
    ),
}
"""Errors that a user can mend: what they mean, and what to do."""


class NvmlAbsentError(Exception):
    """NVML cannot be used here. The text says why; `remedy` says what to do, where the error is known."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


def _absent(error: pynvml.NVMLError) -> NvmlAbsentError:
    return NvmlAbsentError(f"NVML: {_said(error)}", _MENDABLE.get(error.value, (None, None))[1])


def _said(error: Exception) -> str:
    return _MENDABLE.get(getattr(error, "value", None), (str(error), None))[0]


class NvmlDevice:
    """One device, opened by its UUID, as an instrument. `label` is its name in the timeline, by default the UUID."""

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
        self._fields = Fields(self._card)
        self.reads_instant_power = positive(self._fields.values([POWER]).get(POWER)) is not None
        self._counter, self._watch = self._counter_question(), StandstillWatch()
        self._temperature = Question(self._temperature_c)
        self._sm_clock = Question(lambda: self._clock_hz(pynvml.NVML_CLOCK_SM))
        self._memory_clock = Question(lambda: self._clock_hz(pynvml.NVML_CLOCK_MEM))
        self._reasons = Question(self._throttle_reasons)
        self._limit = Question(self.power_limit_w, is_slow=True)
        self._throttled = Question(self._throttled_s, is_slow=True)
        self._own_memory = Question(self._own_memory_bytes, is_slow=True)

    def _opened(self) -> Any:
        # When one card has fallen off the bus, NVML finds no card by its UUID (nvml.h, nvmlDeviceGetHandleByUUID).
        for index in range(pynvml.nvmlDeviceGetCount()):
            card = _value(pynvml.nvmlDeviceGetHandleByIndex, index)
            if card is not None and _value(pynvml.nvmlDeviceGetUUID, card) == self.uuid:
                return card
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except pynvml.NVMLError_NotFound:
            if self.uuid.startswith("MIG-"):
                raise
        # CUDA reports a partition's UUID without the prefix, just as a card's (cuDeviceGetUuid_v2).
        self.uuid = f"MIG-{self.uuid.removeprefix('GPU-')}"
        return pynvml.nvmlDeviceGetHandleByUUID(self.uuid)

    def _whole_card(self) -> Any:
        """The card whose power and energy are read: a partition (MIG) has none of its own."""
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

    def numa_node(self) -> int | None:
        """The memory node that the card is attached to; None where the system has one node or does not say."""
        card = _value(pynvml.nvmlDeviceGetPciInfo, self._card)
        return None if card is None else processor.node_of_pci(str(card.busId))

    @property
    def sampled_share(self) -> float | None:
        """The share of the time in which the sensor of `power_w` measures, where it is known to be a part."""
        return self._share_of(_SAMPLED_SHARE) if self.reads_instant_power else self.averaged_share

    @property
    def averaged_share(self) -> float | None:
        """The same of `nvmlDeviceGetPowerUsage`, which is what nvidia-smi prints as power.draw."""
        return self._share_of(_AVERAGED_IN_PART)

    def _share_of(self, models: Iterable[str]) -> float | None:
        name = self.name() or ""
        return next((_SAMPLED_SHARE[model] for model in models if model in name), None)

    # -- readings -----------------------------------------------------------------------------------------------------

    def counter_j(self) -> float | None:
        """The energy counter: joules since the driver was loaded (Volta and later); None where NVML answers 0."""
        return self._watched(self._counter.now())

    def _watched(self, counter_j: float | None) -> float | None:
        if counter_j is not None:
            self._watch.counter(clock.now_s(), counter_j)
        return counter_j

    def _counter_question(self) -> Question[float]:
        """The counter, as a field where that is faster than the function by far."""
        function = Question(lambda: self._thousandth("counter", pynvml.nvmlDeviceGetTotalEnergyConsumption))
        if not function.is_slow or ENERGY not in self._fields.known:
            return function
        field = Question(lambda: self._thousandth("counter", lambda _: self._fields.value(ENERGY)))
        return function if field.is_slow else field

    def counter_problem(self) -> tuple[str, str] | None:
        """Why the counter cannot be read, and what to do; None where it can, or where the device has none."""
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._card)
        except pynvml.NVMLError as error:
            return _MENDABLE.get(error.value)
        except pynvml.NVMLLibraryMismatchError:
            return None
        return None

    def power_w(self) -> float | None:
        """Instantaneous power where the device reports it, else averaged power."""
        if self.reads_instant_power:
            return self._thousandth("power", lambda _: self._fields.value(POWER))
        return self._thousandth("power", pynvml.nvmlDeviceGetPowerUsage)

    def _thousandth(self, what: str, query: Callable[[Any], int]) -> float | None:
        return thousandth(lambda: query(self._card), self.problems, what, ERRORS, _said)

    def look(self) -> Look:
        """All values, for the timeline; the slow ones once a second."""
        memory = _value(pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        rates = _value(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        power_w, memory_c = self._power_and_memory_heat()
        self._watch.power(power_w)
        counter = self._counter.now if self._watch.seems_to_stand else self._counter.if_due
        return Look(
            power_w=power_w,
            counter_j=self._watched(counter()),
            memory_bytes=None if memory is None else int(memory.used),
            process_memory_bytes=self._own_memory.if_due(),
            utilization=None if rates is None else rates.gpu / 100,
            memory_utilization=None if rates is None else rates.memory / 100,
            temperature_c=self._temperature.if_due(),
            memory_temperature_c=memory_c,
            sm_clock_hz=self._sm_clock.if_due(),
            memory_clock_hz=self._memory_clock.if_due(),
            throttle_reasons=self._reasons.if_due(),
            throttled_s=self._throttled.if_due(),
            power_limit_w=self._limit.if_due(),
        )

    def _power_and_memory_heat(self) -> tuple[float | None, float | None]:
        """Both in one call, where both are fields."""
        found = self._fields.values([POWER, MEMORY_HEAT] if self.reads_instant_power else [MEMORY_HEAT])
        power_mw = positive(found.get(POWER))  # where there is none, the question for it alone says why
        if power_mw is None:
            return self.power_w(), positive(found.get(MEMORY_HEAT))
        self.problems.pop("power", None)
        return power_mw / 1000, positive(found.get(MEMORY_HEAT))

    def _throttle_reasons(self) -> tuple[str, ...] | None:
        reasons = _value(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self._card)
        return None if reasons is None else tuple(name for name, bit in _THROTTLES.items() if reasons & bit)

    def _throttled_s(self) -> Mapping[str, float] | None:
        """The driver's own times; None where it lacks one: older drivers do not say in what unit they count."""
        found = self._fields.values(THROTTLED_TIMES.values())
        if len(found) < len(THROTTLED_TIMES):
            return None
        return {name: found[field] / 1e9 for name, field in THROTTLED_TIMES.items()}

    def _temperature_c(self) -> float | None:
        """The temperature; NVML is replacing the first of these functions by the second."""
        for name in ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):
            query = getattr(pynvml, name, None)
            degrees = _value(query, self._card, pynvml.NVML_TEMPERATURE_GPU) if query else None
            if degrees is not None:
                return float(degrees)
        return None

    def _clock_hz(self, which: int) -> float | None:
        megahertz = _value(pynvml.nvmlDeviceGetClockInfo, self._card, which)
        return None if megahertz is None else megahertz * 1e6

    def _own_memory_bytes(self) -> int | None:
        """What this process has on the device, as the driver counts it: CUDA's context and all libraries included.

        In a container NVML lists this process under another number. A single process there is this one if it uses CUDA.
        """
        listed = self._processes()
        if os.getpid() in listed:
            return listed[os.getpid()]
        is_alone = len(listed) == 1 and _in_namespace() and _uses_cuda()
        return next(iter(listed.values())) if is_alone else None

    # -- reasons for distrust ---------------------------------------------------------------------------------------

    def findings(self) -> list[Finding]:
        """Other processes, MIG, vGPU and a power limit below the default."""
        found = [self._others(), self._partition(), self._virtual(), self._cap()]
        return [finding for finding in found if finding is not None]

    def _others(self) -> Finding | None:
        """Other processes on the device; in a container NVML may list this process under another number."""
        seen = self._processes()
        is_in_namespace = os.getpid() not in seen and _in_namespace()
        others = len(seen.keys() - {os.getpid()}) - (is_in_namespace and _uses_cuda())
        if others <= 0:
            return None
        return WarningKind.OTHER_PROCESS_ON_DEVICE, f"{others} other process(es) on {self.device}"

    def _processes(self) -> dict[int, int | None]:
        """The processes on the device, and the bytes that each has there; None where the driver does not say."""
        found: dict[int, int | None] = {}
        for forms in _PROCESSES:
            answers = (_value(query, self._handle) for query in forms)
            for process in next((one for one in answers if one is not None), ()):
                found[process.pid] = process.usedGpuMemory
        return found

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
    """The UUIDs of all devices in NVML's order, and the errors of the devices whose UUID cannot be read.

    Raises:
        NvmlAbsentError: NVML cannot be used here.
    """
    try:
        pynvml.nvmlInit()
        answers = [_uuid_or_problem(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise _absent(error) from None
    uuids = [one for one in answers if isinstance(one, str)]
    return uuids, [one for one in answers if isinstance(one, NvmlAbsentError)]


def _uuid_or_problem(index: int) -> str | NvmlAbsentError:
    try:
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except pynvml.NVMLError as error:
        absent = _absent(error)
        return NvmlAbsentError(f"{absent} (device {index})", absent.remedy)


def _value(query: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return query(*arguments)
    except ERRORS:
        return None


def _in_namespace() -> bool:
    """Whether this process is in a PID namespace, as in a container (proc(5): the host's process 2 is kthreadd)."""
    try:
        with open("/proc/2/comm", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip() != "kthreadd"
    except OSError:
        return True


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
