"""What this machine can measure, what not, why, and what to do about it: every source is tried.

Each source is asked in a thread of its own with a timeout, so that a driver that hangs costs one line of the answer.
Sources that we have not tested say so. Every energy counter is watched for a second or more (`howlow.meters.pace`), and
under a load, too, where the caller can load its device.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from howlow.meters import rapl
from howlow.meters.energy import EnergyMeter
from howlow.meters.idle import measure_idle
from howlow.meters.instruments import Instrument
from howlow.meters.interference import machine_counters
from howlow.meters.machine import environment
from howlow.meters.nvidia_smi import smi_devices
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice, device_uuids
from howlow.meters.pace import Load, measure_pace
from howlow.meters.sources import AbsentErrors, Asked, open_energy, sampling_note
from howlow.meters.timeouts import answered
from howlow.meters.zeus_devices import amd_devices, apple_devices, jetson_devices
from howlow.records import REMEDIES, CounterPace, Idle

_TIMEOUT_S = 5.0
_PACE_TIMEOUT_S = 20.0
_SMI_TIMEOUT_S = 4.0  # less, so that an nvidia-smi that hangs is killed before its answer is given up
_COUNTERS = ("nvml", "rapl", "amd", "apple")
_UNTESTED = ("amd", "apple", "jetson")
_REMEDIES = {
    "nvml": "with an NVIDIA GPU: install its driver; in a container: pass the GPU and its driver in",
    "nvidia-smi": "install NVIDIA's driver, which brings it, and put it on PATH",
}


@dataclass(frozen=True)
class Tried:
    """One source or figure that was tried; `remedy` says what to do where it is not available."""

    name: str
    is_available: bool
    detail: str
    remedy: str | None = None
    is_tested: bool = True


@dataclass(frozen=True)
class Survey:
    """The whole answer; `energy` is the source that `meters.energy = "auto"` takes for the device, None without one."""

    device: str
    device_name: str
    energy: str | None
    energy_detail: str
    idle_power_w: float | None
    counters: tuple[CounterPace, ...]
    silent_counters: tuple[str, ...]
    sources: tuple[Tried, ...]
    measures: tuple[Tried, ...]
    warnings: tuple[dict[str, str], ...]

    def document(self) -> dict[str, Any]:
        """What `howlow env --json` prints."""
        return asdict(self) | {"counters": [counter.model_dump() for counter in self.counters]}


def survey(
    device: torch.device, peak_problem: str | None, load_for: Callable[[Instrument], Load | None] = lambda _: None
) -> Survey:
    """Try everything.

    peak_problem: why the peak of resident memory cannot be reset here, None where it can. load_for: a load on the
    device that an instrument measures, None where this process cannot load it.
    """
    energy = open_energy(Asked("auto", device))
    idle = measure_idle(energy, 10.0, 1.0)
    sources = [*(_source(name, find) for name, find in _SOURCES.items()), _ASSUMED]
    available = [tried.name for tried in sources if tried.is_available]
    paces = {part.device: _pace(part, load_for) for part in _with_counter(energy, available)}
    return Survey(
        device=str(device),
        device_name=environment(device).device_name,
        energy=energy.name,
        energy_detail=energy.detail,
        idle_power_w=idle.power_w if isinstance(idle, Idle) else None,
        counters=tuple(pace for pace in paces.values() if pace is not None),
        silent_counters=tuple(device for device, pace in paces.items() if pace is None),
        sources=tuple(sources),
        measures=tuple(_measures(device, peak_problem)),
        warnings=tuple(_warnings(energy.instruments)),
    )


# -- counters -------------------------------------------------------------------------------------------------------


def _with_counter(chosen: EnergyMeter, available: Sequence[str]) -> list[Instrument]:
    """The instruments of every available source that is a counter; those of the device's own source first."""
    others = [open_energy(Asked(name, torch.device("cpu"))) for name in _COUNTERS if name in available]
    found: dict[str, Instrument] = {}
    for meter in (chosen, *others):
        for part in meter.instruments if meter.kind == "counter" else ():
            found.setdefault(str(getattr(part, "uuid", part.device)), part)
    return list(found.values())


def _pace(instrument: Instrument, load_for: Callable[[Instrument], Load | None]) -> CounterPace | None:
    return answered(lambda: measure_pace(instrument, load_for(instrument)), _PACE_TIMEOUT_S)


# -- sources --------------------------------------------------------------------------------------------------------


def _nvml() -> str:
    uuids, unreadable = device_uuids()
    devices = [NvmlDevice(uuid) for uuid in uuids]
    given = {device: _given(device) for device in devices}
    problems = {device: problem for device in devices if (problem := device.counter_problem())}
    if not any(given.values()):
        reasons = [f"{_named(device)}: {problems.get(device, ('neither energy nor power',))[0]}" for device in devices]
        remedies = [*(remedy for _, remedy in problems.values()), *(one.remedy for one in unreadable)]
        raise NvmlAbsentError("; ".join([*reasons, *map(str, unreadable)]) or "no device", next(iter(remedies), None))
    found = [_nvml_device(device, given[device], problems.get(device)) for device in devices]
    return "; ".join([*found, *(f"{one} ({one.remedy})" if one.remedy else str(one) for one in unreadable)])


def _named(device: NvmlDevice) -> str:
    return f"{device.name() or 'device'} {device.uuid}"


def _given(device: NvmlDevice) -> str | None:
    """What a device reports of its energy, in words; None where it reports nothing."""
    if device.counter_j() is not None:
        return "energy counter"
    if device.power_w() is not None:
        return f"{'instantaneous' if device.reads_instant_power else 'averaged'} power"
    return None


def _nvml_device(device: NvmlDevice, gives: str | None, problem: tuple[str, str] | None) -> str:
    said = f"{_named(device)}: {_told(gives, problem)}"
    return said + (sampling_note(device.sampled_share) if gives else "")


def _told(gives: str | None, problem: tuple[str, str] | None) -> str:
    if gives == "energy counter":
        return gives
    if problem is None:
        return f"{gives}, no energy counter" if gives else "neither energy nor power"
    reason, remedy = problem
    return f"{gives + ', energy counter: ' if gives else ''}{reason} ({remedy})"


def _nvidia_smi() -> str:
    devices = smi_devices(_SMI_TIMEOUT_S)
    return ", ".join(uuid if has_power else f"{uuid} (no power)" for uuid, has_power in devices.items())


def _listed(find: Callable[[], Sequence[Instrument]]) -> Callable[[], str]:
    return lambda: ", ".join(instrument.device for instrument in find())


_SOURCES: dict[str, Callable[[], str]] = {
    "nvml": _nvml,
    "nvidia-smi": _nvidia_smi,
    "rapl": _listed(rapl.zones),
    "amd": _listed(amd_devices),
    "apple": _listed(apple_devices),
    "jetson": _listed(jetson_devices),
}
_ASSUMED = Tried(
    "assumed", True, 'not measured: meters.energy = "assumed" multiplies meters.assumed_power_w by the time'
)


def _source(name: str, find: Callable[[], str]) -> Tried:
    tested = name not in _UNTESTED
    try:
        detail = answered(find, _TIMEOUT_S, AbsentErrors)
    except AbsentErrors as error:
        return Tried(name, False, str(error), error.remedy or _REMEDIES.get(name), tested)
    if detail is None:
        return Tried(name, False, f"no answer within {_TIMEOUT_S:g} s", "see the driver's log", tested)
    return Tried(name, bool(detail), detail or "no device", None if detail else _REMEDIES.get(name), tested)


# -- everything else ------------------------------------------------------------------------------------------------


def _measures(device: torch.device, peak_problem: str | None) -> list[Tried]:
    here = machine_counters()
    found = [_peaks(device, peak_problem)]
    known = {
        "other processes on these cores": here.busy_s is not None,
        "load average": here.load is not None,
        "swapping": here.swapped_pages is not None,
        "thermal throttling of the CPU": here.throttles is not None,
    }
    for name, is_known in known.items():
        detail = "read at a trial's start and end" if is_known else "this system does not report it"
        found.append(Tried(name, is_known, detail, None if is_known else "nothing to do here; other systems report it"))
    return found


def _peaks(device: torch.device, problem: str | None) -> Tried:
    if device.type == "cuda":
        return Tried("peak memory", True, "torch's allocator, and the device's memory in use")
    if problem is None:
        return Tried("peak memory", True, "resident memory's high-water mark")
    return Tried("peak memory", False, problem, "run where /proc/self/clear_refs can be written")


def _warnings(instruments: Sequence[Instrument]) -> list[dict[str, str]]:
    found = [finding for part in instruments for finding in answered(part.findings, _TIMEOUT_S) or ()]
    return [{"kind": kind.value, "detail": detail, "remedy": REMEDIES[kind]} for kind, detail in found]
