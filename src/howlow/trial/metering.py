"""A trial's meters: what it asks of them, the session in which everything is measured, and what they found.

A trial that fine-tunes has two processes, and so two sessions. Each one's findings are about what its process ran, and
the trial's figures about the meters themselves are those of both.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from howlow.engine.sharding import DeviceGroup
from howlow.meters import own_processes
from howlow.meters.energy import EnergyMeter
from howlow.meters.sampler import Reader
from howlow.meters.session import Session
from howlow.meters.sources import Asked, Meters
from howlow.records import EnergySource, Idle, MeterRecord, PhaseName, RecordWarning
from howlow.settings import Settings
from howlow.trial.state import ProcessMeters, TrialState


def asked_of(settings: Settings, device: torch.device) -> Asked:
    """What the settings ask of the meters."""
    meters = settings.meters
    devices = DeviceGroup(count=settings.run.devices_per_trial).devices(device)
    return Asked(meters.energy, device, meters.assumed_power_w, meters.devices or (), meters.rate_hz, devices)


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


@contextmanager
def measured(
    state: TrialState, device: torch.device, meters: Meters, begins_s: float, about: PhaseName | None
) -> Iterator[Session]:
    """The session in which everything is measured.

    begins_s: the trial's time at which this process begins.
    about: the phase that this process's findings are about; None where it is the whole trial.
    """
    with Session(
        state.folder,
        device,
        meters.energy,
        state.settings.meters.rate_hz,
        begins_s,
        memory=state.followers.memory(device),
        cpu_energy=meters.cpu_energy,
        views=meters.views,
        paces=state.paces,
        warn=partial(_keep_finding, state, about),
        further=state.followers.group.devices(device)[1:],
    ) as session:
        state.session = session
        yield session


def _keep_finding(state: TrialState, about: PhaseName | None, warning: RecordWarning) -> None:
    """Keep what the meters of this process found; what those of both processes found is about the whole trial."""
    warnings = state.found.warnings
    alike = next((one for one in warnings if (one.kind, one.detail) == (warning.kind, warning.detail)), None)
    if warning.phase is not None:
        state.keep(warning)
    elif alike is None:
        state.keep(warning.model_copy(update={"phase": about}))
    elif alike.phase not in (None, about):
        warnings[warnings.index(alike)] = warning


# -- how the meters did ---------------------------------------------------------------------------------------------


def meter_report(state: TrialState, session: Session) -> MeterRecord:
    """How the meters did, with the idle power before the trial."""
    return _joined(state.found.fine_tuning, _of_this_process(state, session))


def conclude_fine_tuning(state: TrialState, session: Session) -> None:
    """Keep what the meters have to say of fine-tuning, before its process ends."""
    state.found.fine_tuning = _of_this_process(state, session)


def _of_this_process(state: TrialState, session: Session) -> ProcessMeters:
    record = session.report(state.idle if isinstance(state.idle, Idle) else None)
    return ProcessMeters(record, own_processes.cpu_s(), session.sensors.steps_s)


def _joined(first: ProcessMeters | None, last: ProcessMeters) -> MeterRecord:
    """The meters of two processes: the worst rate and gap, and shares of the time of both."""
    if first is None:
        return last.record
    both = (first, last)
    records = [one.record for one in both]
    return last.record.model_copy(
        update={
            "rate_hz": min((one.rate_hz for one in records if one.rate_hz is not None), default=None),
            "largest_gap_s": max((one.largest_gap_s for one in records if one.largest_gap_s is not None), default=None),
            "readings": sum(one.readings for one in records),
            "late": sum(one.late for one in records),
            "cpu_share": _mean((one.record.cpu_share, one.cpu_s) for one in both),
            "step_share": _mean((one.record.step_share, one.steps_s) for one in both),
        }
    )


def _mean(weighted: Iterable[tuple[float | None, float]]) -> float | None:
    """The mean of the values that are known, by their weights."""
    known = [(value, weight) for value, weight in weighted if value is not None]
    whole = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / whole if whole else None
