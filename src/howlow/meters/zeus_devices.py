"""AMD GPUs, Apple silicon and Jetson, read through zeus. We have tested none of the three; `howlow env` says so.

zeus is imported only here, and only when such a source is wanted: it loads an HTTP client and looks for AMD's library
on import. Only its counters are read. Its measurement windows are not used, because they synchronise devices of their
own choice, and the trial synchronises its own device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from howlow.meters.instruments import Finding, Look, thousandth


class ZeusAbsentError(Exception):
    """zeus finds no such device here. The text says why, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class ZeusDevice:
    """A device whose counter or power zeus reads in millijoules or milliwatts, as an instrument."""

    device: str
    read_mj: Callable[[], float | None] | None = None
    read_mw: Callable[[], float | None] | None = None
    range_j: float | None = None
    may_hang: bool = True
    programs_cpu_s: float = 0.0
    problems: dict[str, str] = field(default_factory=dict, compare=False)

    def counter_j(self) -> float | None:
        """The counter."""
        return self._thousandth("counter", self.read_mj)

    def look(self) -> Look:
        """Counter and power."""
        return Look(counter_j=self.counter_j(), power_w=self._thousandth("power", self.read_mw))

    def findings(self) -> list[Finding]:
        """Nothing."""
        return []

    def _thousandth(self, what: str, read: Callable[[], float | None] | None) -> float | None:
        from zeus.exception import ZeusBaseError

        return None if read is None else thousandth(read, self.problems, what, (ZeusBaseError,))


def amd_devices() -> list[ZeusDevice]:
    """The visible AMD GPUs, in HIP's order.

    Raises:
        ZeusAbsentError: zeus finds none.
    """
    from zeus.device.exception import ZeusBaseGPUError
    from zeus.device.gpu.amd import AMDGPUs, amdsmi_is_available

    if not amdsmi_is_available():
        raise ZeusAbsentError("zeus finds no AMD SMI library", "install ROCm 6.2 or later and its amdsmi")
    try:
        gpus: Any = AMDGPUs()
    except (ZeusBaseGPUError, ValueError) as error:
        raise ZeusAbsentError(f"zeus: {error}", "see rocm-smi") from None
    return [_amd_device(gpu, index) for index, gpu in enumerate(gpus.gpus)]


def _amd_device(gpu: Any, index: int) -> ZeusDevice:
    if gpu.supports_get_total_energy_consumption():
        return ZeusDevice(f"amd:{index}", read_mj=gpu.get_total_energy_consumption)
    return ZeusDevice(f"amd:{index}", read_mw=gpu.get_average_power_usage)


def apple_devices() -> list[ZeusDevice]:
    """The Apple processor: CPU, GPU, memory and neural engine together, because a trial may use any of them.

    Raises:
        ZeusAbsentError: this is no Apple silicon, or the package that reads it is missing.
    """
    from zeus.device.soc.apple import AppleSilicon, ZeusAppleInitError, apple_silicon_is_available

    if not apple_silicon_is_available():
        raise ZeusAbsentError("no Apple silicon, or no zeus-apple-silicon", "on a Mac: pip install zeus[apple]")
    try:
        processor: Any = AppleSilicon()
    except ZeusAppleInitError as error:
        raise ZeusAbsentError(f"zeus: {error}", "see the system's log") from None
    parts = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")
    return [ZeusDevice("apple", read_mj=_summed(processor.get_total_energy_consumption, parts))]


def jetson_devices() -> list[ZeusDevice]:
    """The Jetson's module: the total of its rails where it reports one, else the sum of CPU and GPU.

    Raises:
        ZeusAbsentError: this is no Jetson.
    """
    from zeus.device.soc.jetson import Jetson, ZeusJetsonInitError, jetson_is_available

    if not jetson_is_available():
        raise ZeusAbsentError("no Jetson", "nothing to do: other machines have other sources")
    try:
        module: Any = Jetson()
    except ZeusJetsonInitError as error:
        raise ZeusAbsentError(f"zeus: {error}", "see /sys/bus/i2c/drivers/ina3221") from None
    whole = "total_energy_mj" in module.get_available_metrics()
    parts = ("total_energy_mj",) if whole else ("cpu_energy_mj", "gpu_energy_mj")
    return [ZeusDevice("jetson", read_mj=_summed(module.get_total_energy_consumption, parts))]


def _summed(read: Callable[[], Any], parts: tuple[str, ...]) -> Callable[[], float | None]:
    def total() -> float | None:
        measured = read()
        found = [value for part in parts if (value := getattr(measured, part)) is not None]
        return sum(found) if found else None

    return total
