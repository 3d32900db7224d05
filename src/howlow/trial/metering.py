"""What a trial asks of the meters, and where its energy comes from."""

from collections.abc import Sequence

import torch

from howlow.meters.energy import EnergyMeter
from howlow.meters.sampler import Reader
from howlow.meters.session import Session
from howlow.meters.sources import Asked, Meters
from howlow.records import EnergySource
from howlow.settings import Settings


def asked_of(settings: Settings, device: torch.device) -> Asked:
    """What the settings ask of the meters."""
    meters = settings.meters
    return Asked(meters.energy, device, meters.assumed_power_w, meters.devices or (), meters.rate_hz)


def energy_source(meters: Meters, session: Session | None = None) -> EnergySource:
    """Where energy comes from, how often it has a new value, and how its counters behave."""
    energy, cpu = meters.energy, meters.cpu_energy
    readers = {id(meter): session.sensors.of(meter) if session else [] for meter in (energy, cpu)}
    with_counter = [reader for meter in (energy, cpu) if meter.kind == "counter" for reader in readers[id(meter)]]
    paces = [reader.known_pace for reader in with_counter]
    return EnergySource(
        name=energy.name,
        detail=energy.detail,
        update_period_s=_period_s(energy, readers[id(energy)]),
        devices=tuple(instrument.device for instrument in energy.instruments),
        power_sampled_share=energy.sampled_share,
        cpu=cpu.name or cpu.detail,
        cpu_update_period_s=_period_s(cpu, readers[id(cpu)]),
        counters=tuple(pace for pace in paces if pace is not None),
    )


def _period_s(meter: EnergyMeter, readers: Sequence[Reader]) -> float | None:
    """The update period of the slowest instrument."""
    return max((reader.usual_period_s for reader in readers), default=meter.update_period_s)
