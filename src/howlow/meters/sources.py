"""Which source of energy a trial has: the possible sources are tried in order, and each says why it is absent.

`auto` considers only sources of the trial's own device: on CUDA NVML's counter, then NVML's power, then nvidia-smi,
then the Jetson's rails; on an AMD GPU and on Apple silicon zeus; on a CPU RAPL. A source that the settings name is used
whatever the trial's device, with all of the source's devices or those of `meters.devices`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from howlow.errors import UserError
from howlow.meters import nvidia_smi, rapl
from howlow.meters.energy import EnergyMeter, assumed_power, no_energy
from howlow.meters.instruments import Instrument
from howlow.meters.nvidia_smi import NvidiaSmi, SmiAbsentError, smi_devices
from howlow.meters.nvml import AVERAGED_PERIOD_S, INSTANT_PERIOD_S, NvmlAbsentError, NvmlDevice, device_uuids
from howlow.meters.rapl import RaplAbsentError
from howlow.meters.timeouts import answered
from howlow.meters.zeus_devices import ZeusAbsentError, ZeusDevice, amd_devices, apple_devices, jetson_devices

OPEN_TIMEOUT_S = 10.0
AbsentErrors = (NvmlAbsentError, SmiAbsentError, RaplAbsentError, ZeusAbsentError)


@dataclass(frozen=True)
class Asked:
    """What the settings ask for, and the trial's device."""

    source: str
    device: torch.device
    assumed_power_w: float | None = None
    devices: tuple[str, ...] = ()
    rate_hz: float = 4.0
    all_devices: tuple[torch.device, ...] = ()
    """The devices of a trial that has several, its first one included."""

    @property
    def own(self) -> tuple[torch.device, ...]:
        """The trial's devices."""
        return self.all_devices or (self.device,)

    @property
    def own_labels(self) -> dict[str, str]:
        """The UUID of each of its CUDA devices, without a prefix -> its name in the timeline."""
        return {_bare(own_uuid(device)): str(device) for device in self.own if device.type == "cuda"}

    @property
    def is_by_name(self) -> bool:
        """Whether the settings name the source, rather than leave the choice to `auto`."""
        return self.source != "auto"


@dataclass(frozen=True)
class Meters:
    """The sources of a trial: for its energy, for the energy of an accelerator trial's CPU, and for the timeline."""

    energy: EnergyMeter
    cpu_energy: EnergyMeter
    views: tuple[Instrument, ...] = ()


def open_meters(asked: Asked) -> Meters:
    """Open everything that a trial is measured with.

    Raises:
        UserError: `meters.devices` names a device that the source does not have.
    """
    energy = open_energy(asked)
    wants_cpu = asked.source not in ("none", "assumed") and asked.device.type != "cpu"
    has_cpu = any(isinstance(instrument, rapl.RaplZone) for instrument in energy.instruments)
    cpu_energy = no_energy("not asked for")
    if wants_cpu and not has_cpu:
        try:
            cpu_energy = _rapl(asked)
        except RaplAbsentError as error:
            cpu_energy = no_energy(str(error))
    metered = {part.device for part in energy.instruments}
    views = [view for device in asked.own if str(device) not in metered for view in own_views(device)]
    return Meters(energy, cpu_energy, tuple(views))


def _through_nvml(uuid: str, label: str | None = None) -> NvmlDevice | None:
    """A device of NVML; None where NVML fails or does not answer."""
    try:
        return answered(lambda: NvmlDevice(uuid, label), OPEN_TIMEOUT_S, (NvmlAbsentError,))
    except NvmlAbsentError:
        return None


def own_views(device: torch.device) -> list[Instrument]:
    """The trial's own accelerator, read for its memory and utilisation."""
    if device.type != "cuda" or torch.version.hip:
        return []
    own = _through_nvml(own_uuid(device), str(device))
    return [] if own is None else [own]


def open_energy(asked: Asked) -> EnergyMeter:
    """Open the energy source that the settings ask for; without it, the meter says why.

    Raises:
        UserError: `meters.devices` names a device that the source does not have.
    """
    if asked.source == "none":
        return no_energy("meters.energy = none")
    if asked.source == "assumed":
        assert asked.assumed_power_w is not None, "the settings' rule: assumed energy comes with watts"
        return assumed_power(asked.assumed_power_w)
    reasons = []
    for opener in _openers(asked):
        try:
            meter = answered(partial(opener, asked), OPEN_TIMEOUT_S, (*AbsentErrors, UserError))
        except AbsentErrors as error:
            reasons.append(str(error))
            continue
        if meter is not None:
            return meter
        reasons.append(f"no answer within {OPEN_TIMEOUT_S:g} s")
    where = f"no energy sensor of the device {asked.device}" if asked.source == "auto" else f"no {asked.source}"
    return no_energy(f"{where}: {'; '.join(reasons)}" if reasons else where)


def _openers(asked: Asked) -> list[Callable[[Asked], EnergyMeter]]:
    named: dict[str, list[Callable[[Asked], EnergyMeter]]] = {
        "nvml": [_nvml],
        "nvidia-smi": [_nvidia_smi],
        "amd": [_amd],
        "rapl": [_rapl],
        "apple": [_apple],
    }
    if asked.is_by_name:
        return named[asked.source]
    if asked.device.type == "cuda":
        return [_amd] if torch.version.hip else [_nvml, _nvidia_smi, _jetson]
    return [_apple] if asked.device.type == "mps" else [_rapl]


def own_uuid(device: torch.device) -> str:
    """The UUID of the trial's CUDA device, as NVML writes it."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


# -- the sources ----------------------------------------------------------------------------------------------------


def _nvml(asked: Asked) -> EnergyMeter:
    uuids, unreadable = device_uuids()
    if unreadable and not asked.devices and asked.device.type != "cuda":
        raise NvmlAbsentError(f"{unreadable[0]}; meters.devices can name the others", unreadable[0].remedy)
    partitions = [name for name in asked.devices if name.startswith("MIG-") and _through_nvml(name) is not None]
    try:
        chosen = _chosen(asked, [*uuids, *partitions])
    except UserError as error:
        raise UserError("; ".join(map(str, [error, *unreadable]))) from None
    return _of_nvml([NvmlDevice(uuid, label) for uuid, label in chosen], _has_another(chosen, asked))


def _of_nvml(devices: Sequence[NvmlDevice], other: bool) -> EnergyMeter:
    """The counters of the devices, or their power where fewer of them have a counter."""
    names = _listed([device.uuid for device in devices])
    with_counter = [device for device in devices if device.counter_j() is not None]
    with_power = [device for device in devices if device.power_w() is not None]
    # Where one of several devices has no such sensor, their sum is absent; the others still have their own figures.
    if with_counter and len(with_counter) >= len(with_power):
        detail = f"total energy consumption of {names}"
        return EnergyMeter("nvml counter", detail, "counter", tuple(devices), None, None, other, _sampled(devices))
    reason, remedy = next(filter(None, (device.counter_problem() for device in devices)), (None, None))
    if not with_power:
        why = f": {reason}" if reason else ""
        raise NvmlAbsentError(f"NVML reads neither energy nor power on {names}{why}", remedy)
    instant = all(device.reads_instant_power for device in with_power)
    period_s = INSTANT_PERIOD_S if instant else AVERAGED_PERIOD_S
    why = f"energy counter: {reason}" if reason else "no energy counter"
    share = _sampled(with_power)
    kind = "instantaneous" if instant else "averaged"
    detail = f"{kind} power of {names}, integrated ({why}){sampling_note(share)}"
    return EnergyMeter("nvml power", detail, "power", tuple(devices), period_s, None, other, share)


def _sampled(devices: Sequence[NvmlDevice]) -> float | None:
    return _least(device.sampled_share for device in devices)


def _least(shares: Iterable[float | None]) -> float | None:
    return min((share for share in shares if share is not None), default=None)


def sampling_note(share: float | None) -> str:
    """What is said of a power sensor that measures for only a part of the time."""
    return "" if share is None else f"; its power sensor measures for {share:.0%} of the time"


def _nvidia_smi(asked: Asked) -> EnergyMeter:
    there = smi_devices()
    chosen = _chosen(asked, list(there))
    if not any(there.get(uuid) for uuid, _ in chosen):
        raise SmiAbsentError(f"nvidia-smi reads no power of {_listed([uuid for uuid, _ in chosen])}")
    cards = [_through_nvml(uuid) for uuid, _ in chosen]
    instruments = tuple(
        NvidiaSmi(uuid, asked.rate_hz, label, card) for (uuid, label), card in zip(chosen, cards, strict=True)
    )
    share = _least(card.averaged_share for card in cards if card is not None)
    detail = f"power.draw of {_listed([uuid for uuid, _ in chosen])}, integrated{sampling_note(share)}"
    other, period_s = _has_another(chosen, asked), nvidia_smi.POWER_PERIOD_S
    return EnergyMeter("nvidia-smi", detail, "power", instruments, period_s, None, other, share)


def _chosen(asked: Asked, uuids: Sequence[str]) -> list[tuple[str, str]]:
    """UUIDs with their names in the timeline: those of `meters.devices`, else the trial's own, else all."""
    own = asked.own_labels
    if asked.devices:
        wanted = list(dict.fromkeys(_named(name, uuids) for name in asked.devices))
    elif own:
        wanted = [own_uuid(device) for device in asked.own]
    else:
        wanted = list(uuids)
    if not wanted:
        raise NvmlAbsentError("NVML: no device")
    return [(uuid, own.get(_bare(uuid), uuid)) for uuid in wanted]


def _bare(uuid: str) -> str:
    """A UUID without its prefix: CUDA does not distinguish a partition's UUID from a card's."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-")


def _has_another(chosen: Sequence[tuple[str, str]], asked: Asked) -> bool:
    """Whether one of the devices is not the trial's own."""
    return any(label not in map(str, asked.own) for _, label in chosen)


def _named(name: str, there: Sequence[str]) -> str:
    same = [device for device in there if device == name]
    found = same or [device for device in there if device.startswith((name, f"GPU-{name}"))]
    if len(found) != 1:
        raise UserError(
            f"meters.devices {name!r} must match exactly one device of the source; it has: {', '.join(there)}"
        )
    return found[0]


def _rapl(asked: Asked) -> EnergyMeter:
    folders = rapl.folders()
    if asked.devices and (asked.source == "rapl" or asked.device.type == "cpu"):
        names = [_named(name, list(folders)) for name in asked.devices]
        folders = {device: folder for device, folder in folders.items() if device in names}
    zones = [rapl.zone(folder, device) for device, folder in folders.items()]
    detail = f"RAPL: {_listed([zone.device for zone in zones])}"
    other = asked.source == "rapl" and asked.device.type != "cpu"
    return EnergyMeter("rapl", detail, "counter", tuple(zones), rapl.COUNTER_PERIOD_S, of_another_device=other)


def _amd(asked: Asked) -> EnergyMeter:
    devices = amd_devices()
    own = devices[asked.device.index or 0 :][: len(asked.own)] if asked.device.type == "cuda" else []
    return _through_zeus("amd", devices, asked, own)


def _apple(asked: Asked) -> EnergyMeter:
    devices = apple_devices()
    return _through_zeus("apple", devices, asked, devices if asked.device.type == "mps" else [])


def _jetson(asked: Asked) -> EnergyMeter:
    devices = jetson_devices()
    return _through_zeus("jetson", devices, asked, devices if asked.device.type == "cuda" else [])


def _through_zeus(name: str, there: Sequence[ZeusDevice], asked: Asked, own: Sequence[ZeusDevice]) -> EnergyMeter:
    """The devices of `meters.devices`, else the trial's own, else all."""
    devices = own or there
    if asked.devices:
        names = [_named(device, [part.device for part in there]) for device in asked.devices]
        devices = [device for device in there if device.device in names]
    if not devices:
        raise ZeusAbsentError(f"zeus finds no {name} device", "see the visible devices")
    kind = "counter" if all(device.read_mj for device in devices) else "power"
    detail = f"zeus: {_listed([device.device for device in devices])} (untested by us)"
    other = any(device not in own for device in devices)
    return EnergyMeter(name, detail, kind, tuple(devices), of_another_device=other)  # type: ignore[arg-type]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"the sum of {', '.join(names)}"
