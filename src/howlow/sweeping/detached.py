"""A sweep that goes on without this process: `howlow sweep --detach` submits it to SLURM, and later shows its state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from howlow.errors import UserError
from howlow.executors.slurm_array import SlurmArray, slurm_cluster
from howlow.executors.slurm_queue import Queued
from howlow.jobs import TrialProgress
from howlow.jobs.event_file import EventTail
from howlow.jobs.remote import PrepareSweepJob, RemoteEnd, RunTrialJob, Submitter
from howlow.outcomes import Unfinished
from howlow.records import Record, Status, read_records
from howlow.records.run_directory import out_folder, refuse_foreign
from howlow.settings import Settings, TrialPlan, expand
from howlow.sweeping.elsewhere import raise_unfinished, submitter_of
from howlow.sweeping.sweep import opened, ordered


@dataclass(frozen=True)
class DetachedTrial:
    """How far a trial has come: a record's status, `running`, or `submitted`, and where or why."""

    trial: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class DetachedSweep:
    """A sweep in SLURM's hands; `submitted`: how many trials this call has submitted."""

    states: tuple[DetachedTrial, ...]
    records: tuple[Record, ...]
    submitted: int

    @property
    def is_over(self) -> bool:
        """Whether every trial has its record."""
        return len(self.records) == len(self.states)


def submit_detached(
    settings: Settings,
    out: Path | str,
    *,
    retry: Sequence[Status] = (),
    accept_different: Sequence[str] = (),
) -> DetachedSweep:
    """Submit the trials that have no record and are not submitted, and say how far all have come.

    Raises:
        UserError: the executor is not SLURM, as in `sweep`, or why a job that was submitted before has failed.
    """
    if settings.run.executor != "slurm" or settings.slurm.through != "slurm":
        raise UserError(
            f'--detach: with run.executor = "{settings.run.executor}" trials end with this command; '
            'set run.executor = "slurm", or leave --detach out'
        )
    folder = out_folder(out)
    refuse_foreign(folder)
    plans = ordered(expand(settings), settings.run.order_seed)
    array = slurm_cluster(settings, folder)
    submitter, there = submitter_of(folder, array, accept_different), array.submitted()
    left = [plan.name for plan in plans if plan.name not in _records(folder, plans, retry)]
    jobs = [RunTrialJob(submitter=submitter, trial=name) for name in left if name not in there]
    preparation = PrepareSweepJob(submitter=submitter, settings=settings, retry=tuple(retry))
    if not there:
        _raise_what_failed([preparation, *jobs])
    if jobs:
        with opened(folder, settings, accept_different):
            array.start([preparation])
            array.start(jobs, after=array.submitted()[preparation.name])
    records = _records(folder, plans, retry)
    return DetachedSweep(_states(array, plans, records, submitter), tuple(records.values()), len(jobs))


def _records(folder: Path, plans: Sequence[TrialPlan], retry: Sequence[Status]) -> dict[str, Record]:
    """The records of those trials that are not to be run again."""
    names = {plan.name for plan in plans}
    found = read_records(folder) if (folder / "trials").is_dir() else []
    return {record.trial: record for record in found if record.trial in names and record.status not in retry}


def _raise_what_failed(jobs: Sequence[PrepareSweepJob | RunTrialJob]) -> None:
    """Raise the error with which a job ended, once: then the same command submits it again."""
    for job in jobs:
        if not job.end.exists():
            continue
        finished = RemoteEnd.model_validate_json(job.end.read_text(encoding="utf-8")).finished()
        job.end.unlink()
        if isinstance(finished, Unfinished) and finished.outcome not in ("stopped", "claim_lost"):
            raise_unfinished(finished, job)


def _states(
    array: SlurmArray, plans: Sequence[TrialPlan], records: dict[str, Record], submitter: Submitter
) -> tuple[DetachedTrial, ...]:
    queued, found = array.states(), []
    for plan in plans:
        if plan.name in records:
            found.append(DetachedTrial(plan.name, records[plan.name].status))
        elif plan.name in queued:
            found.append(_state(RunTrialJob(submitter=submitter, trial=plan.name), queued[plan.name]))
        else:
            found.append(DetachedTrial(plan.name, "submitted", "SLURM does not show it yet"))
    return tuple(found)


def _state(job: RunTrialJob, queued: Queued) -> DetachedTrial:
    if queued.state not in ("RUNNING", "COMPLETING"):
        why = {"Dependency": "waits for the preparation", "None": queued.state.lower()}
        return DetachedTrial(job.trial, "submitted", why.get(queued.reason, queued.reason))
    progress = [event.progress for event in EventTail(job.events).new() if isinstance(event, TrialProgress)]
    last = f", {progress[-1].phase} {progress[-1].step}/{progress[-1].steps}" if progress else ""
    return DetachedTrial(job.trial, "running", f"on {queued.node}{last}")
