"""What runs in child processes: preparing, choosing a layout, looking at the machine, reading idle power, one trial.

The fork server imports this module ahead of the jobs, and with it everything heavy; importing does nothing more.
"""

import gc
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import peft  # noqa: F401  (so that the fork server has it)
import torch
import transformers
from transformers.models.llama import modeling_llama  # noqa: F401  (transformers imports models when they are used)

from howlow.jobs import (
    CounterPaces,
    EnvironmentJob,
    ForetellJob,
    GpusJob,
    IdleAbsent,
    IdleJob,
    LayoutJob,
    Link,
    MeasureJob,
    ModelJob,
    PaceJob,
    PreparationReport,
    PrepareJob,
)
from howlow.locks import locked
from howlow.meters.energy import EnergyMeter
from howlow.meters.energy_bounds import Missing
from howlow.meters.idle import SLOWEST_HZ, measure_idle, rest
from howlow.meters.machine import choose_device, environment, gpu_uuids
from howlow.meters.sources import open_meters
from howlow.meters.timeouts import answered
from howlow.node import Visitor
from howlow.outcomes import StoppedError
from howlow.records import Environment, Idle, LayoutChoice, RecordWarning, Status
from howlow.trial import preparation
from howlow.trial.asked_of_model import refuse_what_cannot_be
from howlow.trial.company import visiting
from howlow.trial.followers import followers_of
from howlow.trial.following import follow_choice, follow_trial
from howlow.trial.foretold import before_the_first_step
from howlow.trial.layout_choice import choose
from howlow.trial.lease import own_lock
from howlow.trial.metering import asked_of
from howlow.trial.pacing import counter_paces
from howlow.trial.prepared import read_prepared
from howlow.trial.run import run
from howlow.trial.state import state_of


def prepare_entry(job: PrepareJob, link: Link) -> PreparationReport:
    """Prepare the data of a sweep and check its model (`howlow.trial.preparation`)."""
    settle(job.cores_shared_by)
    report = preparation.prepare(job.settings, job.adapters, job.folder, job.heads)
    refuse_what_cannot_be(job.settings, job.variants, job.quantizations)
    is_on_cuda = choose_device(job.settings.run.device).type == "cuda"
    gpus = gpu_uuids() if is_on_cuda else ()
    return PreparationReport(**report, devices=len(gpus) or 1, gpu_uuids=gpus)


def choose_entry(job: LayoutJob, link: Link) -> LayoutChoice:
    """Choose the layout of the trials with these settings (`howlow.trial.layout_choice`)."""
    settle(job.cores_shared_by)
    prepared = read_prepared(job.data_folder)
    with followers_of(job.settings.run.devices_per_trial, link, partial(follow_choice, job, settle)) as followers:
        return choose(job.settings, prepared.train, prepared.test, job.gemms, followers.group)


def foretell_entry(job: ForetellJob, link: Link) -> tuple[RecordWarning, ...]:
    """Say what will qualify the numbers of trials (`howlow.trial.foretold`); what several have alike, once."""
    settle()
    return tuple(dict.fromkeys(warning for trial in job.trials for warning in before_the_first_step(*trial)))


def environment_entry(job: EnvironmentJob, link: Link) -> Environment:
    """Say what a trial would run on here."""
    settle(job.cores_shared_by)
    return environment(choose_device(job.device, job.devices_per_trial))


def model_entry(job: ModelJob, link: Link) -> str | None:
    """Hash the model that this machine sees."""
    settle()
    return preparation.model_sha256(job.settings)


def gpus_entry(job: GpusJob, link: Link) -> tuple[str, ...]:
    """List the GPUs that trials may use here."""
    return gpu_uuids() if choose_device(job.device).type == "cuda" else ()


def trial_entry(job: MeasureJob, link: Link) -> Status | None:
    """Run one trial to its record; None where a fresh process goes on from the end of fine-tuning."""
    trial = job.trial
    settle(trial.cores_shared_by)
    device = job.device or trial.settings.run.device
    visitor = Visitor(trial.name, str(job.run_directory.resolve()), "trial", device, trial.alone)
    devices, follow = trial.settings.run.devices_per_trial, partial(follow_trial, job, settle)
    with (
        locked(job.run_directory / trial.folder / own_lock()),
        visiting(link, visitor) as presence,
        followers_of(devices, link, follow) as followers,
    ):
        state = state_of(job, link, followers)
        state.presence = presence
        return run(state)


def idle_entry(job: IdleJob, link: Link) -> Idle | IdleAbsent | None:
    """Let the device rest, then read its idle power; None where no source could read it."""
    if job.run_directory is None or not job.alone:
        return _idle(job, link)
    visitor = Visitor(job.trial, str(job.run_directory.resolve()), "idle reading", job.settings.run.device, True)
    with visiting(link, visitor):
        return _idle(job, link)


def _idle(job: IdleJob, link: Link) -> Idle | IdleAbsent | None:
    settings = job.settings
    rate_hz = max(SLOWEST_HZ, settings.meters.rate_hz)  # the window is short
    meters = open_meters(replace(asked_of(settings, choose_device(settings.run.device)), rate_hz=rate_hz))
    energy = meters.energy
    rest(lambda: answered(lambda: _temperature_c(energy), 1.0), job.rest_s, lambda: link.stop_requested)
    if link.stop_requested:
        raise StoppedError
    found, cpu = measure_idle(energy, rate_hz), measure_idle(meters.cpu_energy, rate_hz)
    if found is None:
        return None
    if isinstance(found, Missing):
        return IdleAbsent(reason=found.detail)
    return found.model_copy(update={"cpu_power_w": cpu.power_w if isinstance(cpu, Idle) else None})


def pace_entry(job: PaceJob, link: Link) -> CounterPaces:
    """Measure how the energy counters behave (`howlow.trial.pacing`)."""
    visitor = Visitor(job.trial, str(job.run_directory.resolve()), "idle reading", job.settings.run.device, True)
    with visiting(link, visitor) if job.alone else nullcontext():
        device = choose_device(job.settings.run.device)
        meters = open_meters(asked_of(job.settings, device))
        return CounterPaces(counters=counter_paces(meters, device, job.run_directory))


def _temperature_c(energy: EnergyMeter) -> float | None:
    looks = [instrument.look() for instrument in energy.instruments]
    return max((look.temperature_c for look in looks if look.temperature_c is not None), default=None)


def settle(cores_shared_by: int = 1) -> None:
    """What every child does first; torch takes its part of the cores where trials run side by side."""
    gc.freeze()  # what the imports made stays anyway; collections between the phases need not look at it again
    if cores_shared_by > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // cores_shared_by))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
