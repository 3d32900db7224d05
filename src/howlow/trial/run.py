"""One trial, from its settings to its record: what it does is in `howlow.trial.method`, how it ends is here.

Every step is timed, and its line is written as it ends. A trial that was interrupted at any instant resumes from its
last checkpoint: lines written after it are cut away, burn-in starts again, and on a CPU in fp32 the losses equal those
of an unbroken run bit for bit.
"""

import sys
import traceback
from dataclasses import dataclass, field

from howlow.engine import checkpoint
from howlow.engine.training import DivergedError
from howlow.errors import UserError
from howlow.memory.limits import is_out_of_memory, unlimit_memory
from howlow.meters.clock import utc
from howlow.outcomes import ClaimLostError, StoppedError, is_disk_full
from howlow.records import MemoryShortage, Record, Scores, Status, write_record
from howlow.settings import adapts
from howlow.trial.company import conclude_company
from howlow.trial.layout_choice import layout_record
from howlow.trial.lease import lease_watched
from howlow.trial.metering import meter_report
from howlow.trial.method import run_method
from howlow.trial.shortage import shortage_of
from howlow.trial.state import TrialState, warn_unsteady


@dataclass(frozen=True)
class _End:
    """How a trial ended."""

    status: Status
    error: str | None = None
    scores: Scores = field(default_factory=Scores)
    shortage: MemoryShortage | None = None


def run(state: TrialState) -> Status | None:
    """Run to a record, or to the end of fine-tuning (None): a fresh process goes on from there.

    Out of memory, divergence and failure are results; a full disk and a stop are not.
    """
    with lease_watched(state):
        end = _run(state)
    if end is None:
        return None
    unlimit_memory()
    _close(state)
    record = _record(state, end)
    state.refuse_if_lost()
    write_record(state.folder, record)
    checkpoint.remove(state.folder / "checkpoint")
    return record.status


def _run(state: TrialState) -> _End | None:
    try:
        scores = run_method(state)
    except DivergedError as problem:
        return _End("diverged", str(problem))
    except (StoppedError, ClaimLostError):
        raise
    except Exception as problem:  # the trial's boundary: whatever happened is its result, and the others still run
        if is_disk_full(problem):
            raise
        state.followers.settle()
        return _failure(state, problem)
    return None if scores is None else _End("done", scores=scores)


def _failure(state: TrialState, problem: Exception) -> _End:
    """What the record says of an error; the traceback goes into the trial's log."""
    is_shortage = is_out_of_memory(problem)  # which depends on the limit
    unlimit_memory()
    shortage = shortage_of(state, problem) if is_shortage else None
    traceback.print_exc()
    sys.stderr.flush()
    text = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
    error = " ".join(text.split())[:500]
    return _End("out_of_memory" if is_shortage else "failed", error, shortage=shortage)


def _close(state: TrialState) -> None:
    """What is looked at once the work is over."""
    conclude_company(state)
    if state.session is not None:
        warn_unsteady(state)
        if state.found.meters is None:  # the method ended early
            state.found.meters = meter_report(state, state.session)


def _record(state: TrialState, end: _End) -> Record:
    found = state.found
    return Record(
        trial=state.name,
        kind=state.kind,
        rank=state.settings.lora.rank if adapts(state.kind) else None,
        seed=state.settings.seed,
        axes=state.axes,
        repeat=state.repeat,
        status=end.status,
        error=end.error,
        shortage=end.shortage,
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
        shrunk=found.shrunk,
        batch_search=state.batch_search,
        meters=found.meters,
        scores=end.scores,
        validation=found.validation if end.status == "done" else None,
        warnings=tuple(found.warnings),
        alone=state.alone,
        neighbours=found.neighbours,
        started_at=found.started_at,
        ended_at=utc(),
        preparation_s=found.preparation_s,
        second_load=found.second_load,
        handover_s=found.handover_s,
        total_s=state.session.trial_time() if state.session else None,
    )
