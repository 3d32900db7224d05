"""What a trial asks of the meters, and where its energy comes from."""

import torch

from howlow.meters.energy import EnergyMeter
from howlow.meters.session import Session
from howlow.meters.sources import Asked, Meters
from howlow.records import (
    EnergySource,
)
from howlow.settings import Settings


def asked_of(settings: Settings, device: torch.device) -> Asked:
    """What the settings ask of the meters."""
    meters = settings.meters
    return Asked(meters.energy, device, meters.assumed_power_w, meters.devices or (), meters.rate_hz)


def energy_source(meters: Meters, session: Session | None = None) -> EnergySource:
    """Where energy comes from, and how often it has a new value, as far as the session has seen it."""
    energy, cpu = meters.energy, meters.cpu_energy
    return EnergySource(
        name=energy.name,
        detail=energy.detail,
        update_period_s=_pace_s(energy, session),
        devices=tuple(instrument.device for instrument in energy.instruments),
        power_sampled_share=energy.sampled_share,
        cpu=cpu.name or cpu.detail,
        cpu_update_period_s=_pace_s(cpu, session),
    )


def _pace_s(meter: EnergyMeter, session: Session | None) -> float | None:
    """The pace of the slowest instrument."""
    periods = [reader.update_period_s for reader in session.sensors.of(meter)] if session else []
    return max(periods, default=meter.update_period_s)
