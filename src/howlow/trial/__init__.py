"""One trial, from its settings to its record.

It reads like a method section (`run`): the model is loaded, an adapter attached and fine-tuned on the training
examples; the adapter is saved; optimizer, gradients and cached memory are given back; then, in the same process, the
test data is scored: its loss, and for tasks with answers, greedy generation. Every step is timed and written down as
it ends.

Interrupted at any instant, a trial goes on from its last checkpoint: lines written after it are cut away, burn-in
starts again, and on a CPU in fp32 the losses equal those of an unbroken run bit for bit.

The fork server imports this module ahead of the trials, and with it everything heavy; importing does nothing more.
"""

import gc
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft  # noqa: F401  (so that the fork server has it)
import torch
import transformers
from filelock import FileLock
from torch import nn
from transformers.models.llama import modeling_llama  # noqa: F401  (likewise: transformers imports models lazily)

from howlow import preparation
from howlow.engine import checkpoint
from howlow.engine import model as models
from howlow.engine.model import Precision
from howlow.engine.references import locate
from howlow.engine.training import DivergedError
from howlow.errors import UserError
from howlow.executors import StoppedError, is_disk_full
from howlow.meters.clock import utc
from howlow.meters.energy import EnergyMeter
from howlow.meters.idle import SLOWEST_HZ, measure_idle, rest
from howlow.meters.machine import choose_device, environment
from howlow.meters.memory import bound_heap, keep_heap, release
from howlow.meters.patience import answered
from howlow.meters.session import Session
from howlow.meters.sources import Asked, Meters, open_meters
from howlow.meters.windows import Missing
from howlow.preparation import Prepared
from howlow.records import (
    BatchSearch,
    EnergySource,
    Idle,
    LayoutChoice,
    ModelRecord,
    Record,
    Scores,
    Status,
    WarningKind,
    write_record,
)
from howlow.settings import Settings
from howlow.tasks import task_named
from howlow.trial.attached import Attached
from howlow.trial.card import model_card
from howlow.trial.choices import choose_precision, is_out_of_memory, limit_memory, load_base, unlimit_memory
from howlow.trial.fine_tuning import fine_tune
from howlow.trial.layout import choose, layout_record
from howlow.trial.resuming import resume, save_trained
from howlow.trial.scoring import Scorer
from howlow.trial.state import SweepLink, TrialState, warn_unsteady

# -- entries of the child process -----------------------------------------------------------------------------------


def prepare_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any]:
    """Prepare the data of a sweep and check its model (`howlow.preparation`)."""
    settle()
    settings = Settings.model_validate_json(payload["settings"])
    return preparation.prepare(settings, payload["adapters"], Path(payload["folder"]), payload["heads"])


def choose_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any]:
    """Choose the layout of the trials with these settings (`howlow.trial.layout`)."""
    settle()
    settings = Settings.model_validate_json(payload["settings"])
    prepared = preparation.read_prepared(Path(payload["data"]))
    return choose(settings, prepared.train, prepared.test).model_dump()


def trial_entry(payload: Mapping[str, Any], link: SweepLink) -> str:
    """Run one trial and write its record; returns its status."""
    settle()
    settings = Settings.model_validate_json(payload["settings"])
    choice = LayoutChoice(**payload["layout"])
    taken, idle = settings.training.model_copy(update={"layout": choice.layout}), payload.get("idle")
    state = TrialState(
        name=payload["name"],
        kind=payload["kind"],
        axes=payload["axes"],
        settings=settings.model_copy(update={"training": taken}),
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


# -- the trial ------------------------------------------------------------------------------------------------------


def run(state: TrialState) -> Status:
    """Run to a record; out of memory, divergence and failure are results, a full disk and a stop are not."""
    error: str | None = None
    scores, status = Scores(), "done"
    try:
        scores = _method(state)
    except DivergedError as problem:
        status, error = "diverged", str(problem)
    except StoppedError:
        raise
    except Exception as problem:  # the trial's boundary: whatever happened is its result, and the others go on
        if is_disk_full(problem):
            raise
        status = "out_of_memory" if is_out_of_memory(problem) else "failed"
        unlimit_memory()
        traceback.print_exc()
        sys.stderr.flush()
        text = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
        error = " ".join(text.split())[:500]
    unlimit_memory()
    if state.session is not None:
        warn_unsteady(state)
        if state.found.meters is None:  # the method did not come to its end
            state.found.meters = state.session.report(state.idle)
    record = _record(state, status, error, scores)  # type: ignore[arg-type]
    write_record(state.folder, record)
    checkpoint.remove(state.folder / "checkpoint")
    return record.status


def _method(state: TrialState) -> Scores:
    settings, found = state.settings, state.found
    device = choose_device(settings.run.device)
    precision = choose_precision(settings, device)
    if state.is_bounded:
        bound_heap()
    else:
        keep_heap()
    limit_memory(settings.run.memory_limit_bytes, device)
    saved = resume(state)
    prepared = preparation.read_prepared(state.data_folder)
    meters = open_meters(asked_of(settings, device))
    found.environment, found.data = environment(device), prepared.data
    found.energy = _source(meters)
    _warn_about(state, prepared, meters.energy)

    with Session(
        state.folder,
        device,
        meters.energy,
        settings.meters.rate_hz,
        saved.time_s if saved else 0.0,
        cpu_energy=meters.cpu_energy,
        views=meters.views,
        warn=state.keep,
    ) as session:
        state.session = session
        with session.phase("load") as meter:
            model, tokenizer, eos = load(state, device, precision, prepared.tokenizer_name)
            found.phases = saved.phases if saved else [meter.end()]
        if session.peak_problem and device.type == "cpu":
            state.warn(WarningKind.PEAK_MEMORY_ABSENT, session.peak_problem)
        pad_id = min(eos, default=0)  # any id does: padding is told from tokens by its place

        if saved and saved.trained:
            found.model = _with_adapter_bytes(found.model, saved.document["adapter_bytes"])
            if state.kind != "base":
                saved.restore_weights(models.trainable(model))
        else:
            if state.kind != "base":
                fine_tune(state, session, model, prepared, precision=precision, pad_id=pad_id, saved=saved)
            _save(state, session, model)
        release(device)
        model.eval()
        scorer = Scorer(state, session, model, tokenizer, prepared, precision, pad_id, eos, saved)
        if settings.inference.adapter == "merged" and state.kind == "lora":
            attached = Attached(state.folder / "attached.jsonl")
            scorer.lay_by(attached)
            scorer = replace(scorer, model=models.merged(model), attached=attached)
        scores = scorer.score()
        found.energy = _source(meters, session)
        found.meters = session.report(state.idle)
    return Scores() if settings.random_weights else scores


def asked_of(settings: Settings, device: torch.device) -> Asked:
    """What the settings ask of the meters."""
    meters = settings.meters
    return Asked(meters.energy, device, meters.assumed_power_w, meters.devices or (), meters.rate_hz)


def _source(meters: Meters, session: Session | None = None) -> EnergySource:
    """Where energy comes from; its pace is known for sure when the session has found it out."""
    energy, cpu = meters.energy, meters.cpu_energy
    return EnergySource(
        name=energy.name,
        detail=energy.detail,
        update_period_s=_pace_s(energy, session),
        devices=tuple(instrument.device for instrument in energy.instruments),
        cpu=cpu.name or cpu.detail,
        cpu_update_period_s=_pace_s(cpu, session),
    )


def _pace_s(meter: EnergyMeter, session: Session | None) -> float | None:
    """Of several instruments the slowest one's."""
    periods = [reader.update_period_s for reader in session.of(meter)] if session else []
    return max(periods, default=meter.update_period_s)


def load(
    state: TrialState, device: torch.device, precision: Precision, tokenizer_name: str
) -> tuple[Any, Any, frozenset[int]]:
    """The model with what trains in it, its tokenizer, and the tokens that end a generation."""
    settings, lora = state.settings, state.settings.lora
    reference = locate(settings.model, settings.random_weights)
    named = settings.tokenizer, settings.revision, settings.trust_remote_code
    tokenizer, _, _ = models.load_tokenizer(reference, *named)
    model = load_base(settings, device, precision, trains=state.kind == "full")
    eos = models.stop_tokens(model, tokenizer)
    architecture, total = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    if state.kind == "lora":
        _warn_about_rank(state, model)
        model = models.attach_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha_value,
            scaling=lora.scaling,
            target_modules=lora.target_modules,
            dropout=lora.dropout,
            seed=settings.seed,
        )
    torch.manual_seed(settings.seed)
    is_lora = state.kind == "lora"
    state.found.model = ModelRecord(
        reference=settings.model,
        architecture=architecture,
        total_parameters=total,
        trainable_parameters=sum(parameter.numel() for parameter in models.trainable(model).values()),
        scaling_factor=lora.scaling_factor if is_lora else None,
        alpha=lora.alpha_value if is_lora else None,
        precision=precision,
        tokenizer=tokenizer_name,
        weights="random" if settings.random_weights else "pretrained",
    )
    return model, tokenizer, eos


def _save(state: TrialState, session: Session, model: Any) -> None:
    """Save the adapter, then the checkpoint that says so: a finished phase is never run again."""
    if state.kind == "lora":
        reference = locate(state.settings.model, state.settings.random_weights)
        size = models.save_adapter(model, state.folder / "adapter", reference.location, _card(state))
        state.found.model = _with_adapter_bytes(state.found.model, size)
    save_trained(state, session, models.trainable(model))


def _with_adapter_bytes(model: ModelRecord | None, size: int | None) -> ModelRecord:
    assert model is not None, "the model is loaded"
    return model.model_copy(update={"adapter_bytes": size})


def _card(state: TrialState) -> str:
    lora, training, found = state.settings.lora, state.settings.training, state.found
    assert found.data is not None, "the data is read before training"
    assert found.environment is not None, "the environment is looked at before training"
    facts = {
        "rank": lora.rank,
        "alpha": lora.alpha_value,
        "scaling": f"{lora.scaling}, factor {lora.scaling_factor:g}",
        "target modules": ", ".join(lora.target_modules),
        "task": state.settings.task.name,
        "training examples": f"{found.data.train_examples}, {training.epochs} epoch(s)",
        "learning rate": training.learning_rate,
        "batch size": training.effective_batch_size or state.training_batch_size,
        "sequence length": training.sequence_length,
        "seed": state.settings.seed,
        "howlow": found.environment.versions["howlow"],
    }
    settings = state.settings
    reference = locate(settings.model, settings.random_weights)
    return model_card(reference, facts, revision=settings.revision, random=settings.random_weights)


def _warn_about(state: TrialState, prepared: Prepared, energy: EnergyMeter) -> None:
    for warning in prepared.warnings:
        state.keep(warning)
    if energy.name is None and state.settings.meters.energy != "none":
        state.warn(WarningKind.ENERGY_ABSENT, energy.detail)
    if energy.of_another_device:
        detail = f"{energy.detail}: not the trial's own device"
        state.warn(WarningKind.ENERGY_OF_ANOTHER_DEVICE, detail)
    if energy.name == "assumed":
        state.warn(WarningKind.ENERGY_ASSUMED, energy.detail)
    if state.choice.problem:
        state.warn(WarningKind.LAYOUT_FELL_BACK, state.choice.problem)
    if state.choice.generation and task_named(state.settings.task.name).generates:
        detail = "generation runs padded: the model's rotary frequencies follow the longest row of a batch"
        state.warn(WarningKind.LAYOUT_FELL_BACK, detail)
    if state.settings.random_weights:
        state.warn(WarningKind.RANDOM_WEIGHTS, "random weights: quality is absent")


def _warn_about_rank(state: TrialState, model: nn.Module) -> None:
    shapes, rank = models.linear_shapes(model), state.settings.lora.rank
    small = [
        name for name in models.matched_layers(shapes, state.settings.lora.target_modules) if min(shapes[name]) < rank
    ]
    if small:
        ends = sorted({f"{name.rpartition('.')[2]} ({min(shapes[name])})" for name in small})
        detail = f"rank {rank} is above the smaller side of {len(small)} layers: {', '.join(ends)}"
        state.warn(WarningKind.RANK_ABOVE_MATRIX, detail)


def _record(state: TrialState, status: Status, error: str | None, scores: Scores) -> Record:
    found = state.found
    return Record(
        trial=state.name,
        kind=state.kind,
        rank=state.settings.lora.rank if state.kind == "lora" else None,
        seed=state.settings.seed,
        axes=state.axes,
        status=status,
        error=error,
        resumed=found.resumed,
        settings=state.settings,
        environment=found.environment,
        model=found.model,
        data=found.data,
        phases=tuple(found.phases),
        energy=found.energy,
        layout=layout_record(state),
        merged=found.merged,
        batch_search=state.batch_search,
        meters=found.meters,
        scores=scores,
        warnings=tuple(found.warnings),
        started_at=found.started_at,
        ended_at=utc(),
        preparation_s=found.preparation_s,
        total_s=state.session.trial_time() if state.session else None,
    )
