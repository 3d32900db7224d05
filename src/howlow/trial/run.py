"""One trial, from its settings to its record.

It reads like a method section (`run`): the model is loaded, an adapter attached and fine-tuned on the training
examples; the adapter is saved; optimizer, gradients and cached memory are given back; then, in the same process, the
test data is scored: its loss, and for tasks with answers, greedy generation. Every step is timed and written down as
it ends.

Interrupted at any instant, a trial goes on from its last checkpoint: lines written after it are cut away, burn-in
starts again, and on a CPU in fp32 the losses equal those of an unbroken run bit for bit.
"""

import sys
import traceback
from dataclasses import replace

from howlow.engine import checkpoint
from howlow.engine import model as models
from howlow.engine.training import DivergedError
from howlow.errors import UserError
from howlow.memory.heap import bound_heap, keep_heap, release
from howlow.memory.limits import is_out_of_memory, limit_memory, unlimit_memory
from howlow.memory.phases import ProcessMemory
from howlow.meters.clock import utc
from howlow.meters.energy import EnergyMeter
from howlow.meters.machine import choose_device, environment
from howlow.meters.session import Session
from howlow.meters.sources import open_meters
from howlow.outcomes import StoppedError, is_disk_full
from howlow.records import (
    Record,
    Scores,
    Status,
    WarningKind,
    write_record,
)
from howlow.tasks import task_named
from howlow.trial import preparation
from howlow.trial.checkpointing import resume
from howlow.trial.fine_tuning import fine_tune
from howlow.trial.layout_choice import layout_record
from howlow.trial.loading import execution_of, load_trial_model
from howlow.trial.merged_check import Attached
from howlow.trial.metering import asked_of, energy_source
from howlow.trial.preparation import Prepared
from howlow.trial.saving import save_trained_model, with_adapter_bytes
from howlow.trial.scoring import Scorer
from howlow.trial.state import TrialState, warn_unsteady


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
    heap = bound_heap() if state.is_bounded else keep_heap()
    execution = execution_of(state, device, heap.kernels_kept)
    limit_memory(settings.run.memory_limit_bytes, device)
    saved = resume(state)
    prepared = preparation.read_prepared(state.data_folder)
    meters = open_meters(asked_of(settings, device))
    found.environment, found.data = environment(device), prepared.data
    found.energy = energy_source(meters)
    _warn_about(state, prepared, meters.energy)

    with Session(
        state.folder,
        device,
        meters.energy,
        settings.meters.rate_hz,
        saved.time_s if saved else 0.0,
        memory=ProcessMemory(device),
        cpu_energy=meters.cpu_energy,
        views=meters.views,
        warn=state.keep,
    ) as session:
        state.session = session
        with session.phase("load") as meter:
            model, tokenizer, eos = load_trial_model(state, execution, prepared.tokenizer_name)
            found.phases = saved.phases if saved else [meter.end()]
        if session.peak_problem and device.type == "cpu":
            state.warn(WarningKind.PEAK_MEMORY_ABSENT, session.peak_problem)
        pad_id = min(eos, default=0)  # any id does: padding is told from tokens by its place

        if saved and saved.trained:
            found.model = with_adapter_bytes(found.model, saved.document["adapter_bytes"])
            if state.kind != "base":
                saved.restore_weights(models.trainable(model))
        else:
            if state.kind != "base":
                fine_tune(state, session, model, prepared, execution=execution, pad_id=pad_id, saved=saved)
            save_trained_model(state, session, model)
        release(device)
        model.eval()
        scorer = Scorer(state, session, model, tokenizer, prepared, execution, pad_id, eos, saved)
        if settings.inference.adapter == "merged" and state.kind == "lora":
            attached = Attached(state.folder / "attached.jsonl")
            scorer.save_attached(attached)
            scorer = replace(scorer, model=models.merged(model), attached=attached)
        scores = scorer.score()
        found.energy = energy_source(meters, session)
        found.meters = session.report(state.idle)
    return Scores() if settings.random_weights else scores


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
