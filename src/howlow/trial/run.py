"""One trial, from its settings to its record.

It reads like a method section (`_method`): the model is loaded, an adapter attached and fine-tuned on the training
examples; the adapter is saved; optimizer, gradients and cached memory are freed; then the same process scores the test
data: its loss, and for tasks with answers, greedy generation. Every step is timed, and its line is written as it ends.

A trial that was interrupted at any instant resumes from its last checkpoint: lines written after it are cut away,
burn-in starts again, and on a CPU in fp32 the losses equal those of an unbroken run bit for bit.
"""

import sys
import traceback
from dataclasses import replace

from howlow.engine import checkpoint
from howlow.engine import model as models
from howlow.engine.training import DivergedError
from howlow.errors import UserError
from howlow.memory.heap import release
from howlow.memory.limits import is_out_of_memory, unlimit_memory
from howlow.meters.clock import utc
from howlow.outcomes import ClaimLostError, StoppedError, is_disk_full
from howlow.records import Record, Scores, Status, WarningKind, write_record
from howlow.trial.fine_tuning import fine_tune
from howlow.trial.layout_choice import layout_record
from howlow.trial.loading import load_trial_model
from howlow.trial.merged_check import Attached
from howlow.trial.metering import energy_source
from howlow.trial.saving import save_trained_model, with_adapter_bytes
from howlow.trial.scoring import Scorer
from howlow.trial.setup import measured, meter_report, set_up, warn_about_neighbours
from howlow.trial.state import TrialState, warn_unsteady


def run(state: TrialState) -> Status:
    """Run to a record; out of memory, divergence and failure are results, a full disk and a stop are not."""
    scores = Scores()
    status: Status = "done"
    error: str | None = None
    try:
        scores = _method(state)
    except DivergedError as problem:
        status, error = "diverged", str(problem)
    except (StoppedError, ClaimLostError):
        raise
    except Exception as problem:  # the trial's boundary: whatever happened is its result, and the others still run
        if is_disk_full(problem):
            raise
        status, error = _failure(problem)
    unlimit_memory()
    _close(state)
    record = _record(state, status, error, scores)
    state.refuse_if_lost()
    write_record(state.folder, record)
    checkpoint.remove(state.folder / "checkpoint")
    return record.status


def _method(state: TrialState) -> Scores:
    settings, found = state.settings, state.found
    setup = set_up(state)
    device, execution, saved, prepared = setup.device, setup.execution, setup.saved, setup.prepared
    with measured(state, setup) as session:
        with session.phase("load") as meter:
            model, tokenizer, eos = load_trial_model(state, execution, prepared.tokenizer_name)
            found.phases = saved.phases if saved else [meter.end()]
        if session.peak_problem and device.type == "cpu":
            state.warn(WarningKind.PEAK_MEMORY_ABSENT, session.peak_problem)
        pad_id = min(eos, default=0)  # any id does: the mask tells padding from tokens

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
        if state.kind != "base" and scores.loss is None:
            raise DivergedError("after the training the loss of the test data is not finite")
        found.energy = energy_source(setup.meters, session)
        found.meters = meter_report(state, session)
    return Scores() if settings.random_weights else scores


def _failure(problem: Exception) -> tuple[Status, str]:
    """What the record says of an error; the traceback goes into the trial's log."""
    status: Status = "out_of_memory" if is_out_of_memory(problem) else "failed"
    unlimit_memory()
    traceback.print_exc()
    sys.stderr.flush()
    text = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
    return status, " ".join(text.split())[:500]


def _close(state: TrialState) -> None:
    """What is looked at once the work is over."""
    warn_about_neighbours(state)
    if state.session is not None:
        warn_unsteady(state)
        if state.found.meters is None:  # the method ended early
            state.found.meters = meter_report(state, state.session)


def _record(state: TrialState, status: Status, error: str | None, scores: Scores) -> Record:
    found = state.found
    return Record(
        trial=state.name,
        kind=state.kind,
        rank=state.settings.lora.rank if state.kind == "lora" else None,
        seed=state.settings.seed,
        axes=state.axes,
        repeat=state.repeat,
        status=status,
        error=error,
        resumed=found.resumed,
        settings=state.settings,
        resolved=found.resolved,
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
