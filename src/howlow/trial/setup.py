"""What a trial sets up before it loads the model: device, precision, memory, checkpoint, examples and meters."""

from dataclasses import dataclass, replace

import torch

from howlow.engine.execution import Execution
from howlow.jobs import IdleAbsent
from howlow.memory.heap import bound_heap, keep_heap
from howlow.memory.limits import limit_memory, map_pages
from howlow.meters.energy import EnergyMeter
from howlow.meters.machine import choose_device, environment
from howlow.meters.sources import Meters, open_meters
from howlow.records import PhaseName, WarningKind
from howlow.tasks import task_named
from howlow.trial import foretold
from howlow.trial.checkpointing import Saved, resume
from howlow.trial.company import describe_device
from howlow.trial.loading import execution_of, with_execution
from howlow.trial.metering import asked_of, energy_source
from howlow.trial.prepared import Prepared, read_prepared
from howlow.trial.state import TrialState


@dataclass(frozen=True)
class Setup:
    """What the trial works with; `saved` where it resumes from a checkpoint."""

    device: torch.device
    execution: Execution
    saved: Saved | None
    prepared: Prepared
    meters: Meters

    @property
    def is_trained(self) -> bool:
        """Whether only inference is left."""
        return self.saved is not None and self.saved.trained

    def has_weights(self, state: TrialState) -> bool:
        """Whether the checkpoint holds trained weights for inference."""
        return self.is_trained and state.trains

    @property
    def begins_s(self) -> float:
        """The trial's time at which this process begins."""
        return self.saved.time_s if self.saved else 0.0

    def phase_of_findings(self, state: TrialState) -> PhaseName | None:
        """The phase that this process is about, as far as its findings go; None where it is the whole trial."""
        if not state.trains:
            return None
        if not self.is_trained:
            return "train"
        return "generate" if task_named(state.settings.task.name).generates else "evaluate"


def set_up(state: TrialState) -> Setup:
    """Set up this process for the trial, and note in the record what it runs on and what is to be distrusted."""
    settings, found = state.settings, state.found
    device = choose_device(state.device or settings.run.device, settings.run.devices_per_trial)
    heap = bound_heap() if state.is_bounded else keep_heap()
    if state.is_bounded:
        map_pages(device)
    execution = execution_of(state, device, heap.kernels_kept)
    own = execution if state.trains else execution.for_evaluation()
    found.resolved = with_execution(found.resolved, own, state.followers.group.devices(device))
    limit_memory(settings.run.memory_limit_bytes, device)
    state.refuse_if_lost()  # resuming cuts files back
    saved = resume(state)
    if saved is not None and saved.trained:
        execution = _as_trained(state, execution)
    prepared = read_prepared(state.data_folder)
    meters = open_meters(asked_of(settings, device))
    found.environment, found.data = environment(device), prepared.data
    describe_device(state)
    found.energy = energy_source(meters)
    for warning in prepared.warnings:
        state.keep(warning)
    _warn_about_energy(state, meters.energy)
    state.keep_all(foretold.of_settings(settings, state.choice))
    return Setup(device, execution, saved, prepared, meters)


def _as_trained(state: TrialState, execution: Execution) -> Execution:
    """How a trained model runs: joined adapters that the training has left out are left out in inference, too."""
    was_joined = state.found.resolved.joined_adapters is not False
    return replace(execution, joined_adapters=execution.joined_adapters and was_joined)


def _warn_about_energy(state: TrialState, energy: EnergyMeter) -> None:
    if isinstance(state.idle, IdleAbsent) and energy.kind in ("counter", "power"):
        state.warn(WarningKind.IDLE_ABSENT, state.idle.reason)
    if energy.name is None and state.settings.meters.energy != "none":
        state.warn(WarningKind.ENERGY_ABSENT, energy.detail)
    if energy.of_another_device:
        detail = f"{energy.detail}: not the trial's own device"
        state.warn(WarningKind.ENERGY_OF_ANOTHER_DEVICE, detail)
    if energy.name == "assumed":
        state.warn(WarningKind.ENERGY_ASSUMED, energy.detail)
