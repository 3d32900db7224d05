"""What runs in the child processes of a sweep: preparing, choosing a layout, reading idle power, one trial.

The fork server imports this module ahead of the trials, and with it everything heavy; importing does nothing more.
"""

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft  # noqa: F401  (so that the fork server has it)
import transformers
from filelock import FileLock
from transformers.models.llama import modeling_llama  # noqa: F401  (likewise: transformers imports models lazily)

from howlow.meters.energy import EnergyMeter
from howlow.meters.energy_bounds import Missing
from howlow.meters.idle import SLOWEST_HZ, measure_idle, rest
from howlow.meters.machine import choose_device
from howlow.meters.sources import open_meters
from howlow.meters.timeouts import answered
from howlow.outcomes import StoppedError
from howlow.records import (
    BatchSearch,
    Idle,
    LayoutChoice,
    WarningKind,
)
from howlow.settings import Settings
from howlow.trial import preparation
from howlow.trial.layout_choice import choose
from howlow.trial.metering import asked_of
from howlow.trial.run import run
from howlow.trial.state import SweepLink, TrialState


def prepare_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any]:
    """Prepare the data of a sweep and check its model (`howlow.trial.preparation`)."""
    settle()
    settings = Settings.model_validate_json(payload["settings"])
    return preparation.prepare(settings, payload["adapters"], Path(payload["folder"]), payload["heads"])


def choose_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any]:
    """Choose the layout of the trials with these settings (`howlow.trial.layout_choice`)."""
    settle()
    settings = Settings.model_validate_json(payload["settings"])
    prepared = preparation.read_prepared(Path(payload["data"]))
    return choose(settings, prepared.train, prepared.test).model_dump()


def trial_entry(payload: Mapping[str, Any], link: SweepLink) -> str:
    """Run one trial and write its record; returns its status."""
    settle()
    settings = Settings.model_validate_json(payload["settings"])
    choice = LayoutChoice(**payload["layout"])
    idle = payload.get("idle")
    state = TrialState(
        name=payload["name"],
        kind=payload["kind"],
        axes=payload["axes"],
        settings=settings,
        folder=Path(payload["folder"]),
        data_folder=Path(payload["data"]),
        link=link,
        choice=choice,
        idle=Idle(**idle) if idle and "absent" not in idle else None,
        is_bounded=payload.get("is_bounded", False),
        batch_search=tuple(BatchSearch(**search) for search in payload.get("batch_search", ())),
    )
    if idle and "absent" in idle:
        state.warn(WarningKind.IDLE_ABSENT, idle["absent"])
    with FileLock(state.folder / ".lock"):  # a trial of a sweep that was killed a moment ago may still be ending
        return run(state)


def idle_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any] | None:
    """Let the device rest, then read its idle power, or why it is `absent`; None where no source could read it."""
    settings = Settings.model_validate_json(payload["settings"])
    rate_hz = max(SLOWEST_HZ, settings.meters.rate_hz)  # the window is short
    meters = open_meters(replace(asked_of(settings, choose_device(settings.run.device)), rate_hz=rate_hz))
    energy = meters.energy
    rest(lambda: answered(lambda: _temperature_c(energy), 1.0), payload["rest_s"], lambda: link.stop_requested)
    if link.stop_requested:
        raise StoppedError
    found, cpu = measure_idle(energy, rate_hz), measure_idle(meters.cpu_energy, rate_hz)
    if found is None:
        return None
    if isinstance(found, Missing):
        return {"absent": found.detail}
    return found.model_dump() | {"cpu_power_w": cpu.power_w if isinstance(cpu, Idle) else None}


def _temperature_c(energy: EnergyMeter) -> float | None:
    looks = [instrument.look() for instrument in energy.instruments]
    return max((look.temperature_c for look in looks if look.temperature_c is not None), default=None)


def settle() -> None:
    """What every child does first."""
    gc.freeze()  # what the imports made stays anyway; collections between the phases need not look at it again
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
