"""A sweep whose trials run on a cluster: this process prepares nothing and runs nothing, it hands over and watches.

The machine on which a sweep is started may have no GPU, other cores or little memory, so the preparation is a job of
the cluster, too. What is watched are the files of the run directory.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from howlow.claims import Claims
from howlow.executors.ray_tasks import ray_cluster
from howlow.executors.remote import Cluster
from howlow.executors.slurm_array import slurm_cluster
from howlow.jobs import (
    ClusterBusy,
    JobFailedError,
    SweepEvent,
    SweepPrepared,
    Tell,
    TrialElsewhere,
    TrialEnded,
    TrialJob,
    TrialStarted,
    TrialWaits,
    value_of,
)
from howlow.jobs.event_file import EventTail
from howlow.jobs.remote import PrepareSweepJob, RemoteJob, RunTrialJob, Submitter, leave_mark
from howlow.outcomes import Finished, Returned, Unfinished
from howlow.records import Status, has_record
from howlow.settings import Settings
from howlow.sweeping.watching import Watch, record_that_ended

_LOOK_EVERY_S = 0.25
_TRY_AGAIN_EVERY_S = 5.0
_LOOKS_A_TRY = round(_TRY_AGAIN_EVERY_S / _LOOK_EVERY_S)


@contextmanager
def cluster_of(settings: Settings, folder: Path) -> Iterator[Cluster]:
    """The cluster that the settings name.

    Raises:
        UserError: it is not installed here, or cannot be reached.
    """
    if settings.run.executor == "ray":
        with ray_cluster(settings) as ray:
            yield ray
    else:
        yield slurm_cluster(settings, folder)


@dataclass
class Elsewhere:
    """A sweep on a cluster, as the process that watches it sees it."""

    folder: Path
    cluster: Cluster
    accept_different: Sequence[str]
    tell: Tell
    _submitter: Submitter = field(init=False)

    def __post_init__(self) -> None:
        self._submitter = submitter_of(self.folder, self.cluster, self.accept_different)

    def prepare(self, settings: Settings, retry: Sequence[Status]) -> SweepPrepared:
        """Have the cluster prepare the sweep; afterwards its board is there.

        Raises:
            UserError: as if the sweep were prepared here.
            JobFailedError: it was stopped, or its process died.
        """
        job = PrepareSweepJob(submitter=self._submitter, settings=settings, retry=tuple(retry))
        with self._stopped_by_interrupts():
            self.cluster.start([job])
            queue = _Queue(self.cluster, self.tell)
            while not (ended := self.cluster.ended()):
                queue.look()
                time.sleep(_LOOK_EVERY_S)
        ((_, finished),) = ended
        if isinstance(finished, Unfinished) and finished.outcome == "stopped":
            raise JobFailedError(
                "the preparation was stopped before it ended, by its time limit, a preemption or a person; its output "
                f"is in {job.log}; the same command starts it again"
            )
        prepared: SweepPrepared = value_of(finished, job, job.log)
        return prepared

    def run(self, trials: Sequence[TrialJob]) -> None:
        """Have the cluster run trials, until each has a record, whoever ran it.

        Raises:
            UserError, DiskFullError: what keeps trials from running on the cluster.
            JobFailedError: a trial's job was lost for good; all others have ended.
            KeyboardInterrupt: after the running trials have written their checkpoints.
        """
        jobs = {one.name: RunTrialJob(submitter=self._submitter, trial=one.name) for one in trials}
        course = _Course(self.folder, self.cluster, jobs, self.tell)
        with self._stopped_by_interrupts():
            self.cluster.start(list(jobs.values()))
            course.watch()

    @contextmanager
    def _stopped_by_interrupts(self) -> Iterator[None]:
        """Let no job go on when this process does not watch it any more."""
        try:
            yield
        except BaseException:
            self.cluster.stop()
            raise


def submitter_of(folder: Path, cluster: Cluster, accept_different: Sequence[str]) -> Submitter:
    """This process, as the jobs that it hands over know it."""
    return Submitter(
        run_directory=folder.resolve(),
        working_directory=Path.cwd(),
        host=socket.gethostname(),
        mark=leave_mark(folder),
        threads=cluster.threads,
        accept_different=tuple(accept_different),
    )


def raise_unfinished(finished: Unfinished, job: RemoteJob[Any]) -> None:
    """Raise the error with which a job ended."""
    value_of(cast("Finished[object]", finished), job, job.log)


@dataclass
class _Queue:
    """Says why a cluster has begun nothing yet, each reason once."""

    cluster: Cluster
    tell: Tell
    _told: str | None = None

    def look(self) -> None:
        """Tell a new reason."""
        reason = self.cluster.why_waiting()
        if reason is not None and reason != self._told:
            self._told = reason
            self.tell(ClusterBusy(reason=reason))


class _Course:
    """The course of some trials on a cluster."""

    def __init__(self, folder: Path, cluster: Cluster, jobs: dict[str, RunTrialJob], tell: Tell) -> None:
        self._folder, self._cluster, self._jobs, self._tell = folder, cluster, jobs, tell
        self._claims = Claims(folder)
        self._watch = Watch(folder, self._claims, tuple(jobs), tell)
        self._tails = {name: EventTail(job.events) for name, job in jobs.items()}
        for tail in self._tails.values():
            tail.new()  # of an earlier start of this sweep
        self._queue = _Queue(cluster, tell)
        self._not_taken: set[str] = set()
        self._lost: dict[str, JobFailedError] = {}

    def watch(self) -> None:
        """Show what happens until every trial has ended."""
        looks = 0
        while left := [name for name in self._jobs if name not in self._watch.ended and name not in self._lost]:
            for job, finished in self._cluster.ended():
                self._on_end(job, finished)
            for name in left:
                self._show(name)
            self._queue.look()
            if looks % _LOOKS_A_TRY == 0:
                self._try_again()
            looks += 1
            time.sleep(_LOOK_EVERY_S)
        if self._lost:
            raise next(iter(self._lost.values()))

    def _show(self, name: str) -> None:
        """Show what a trial's worker has told, and its record."""
        for event in self._tails[name].new():
            self._hear(name, event)
        if has_record(self._folder, name):
            self._lost.pop(name, None)
            self._watch.hear(TrialEnded(trial=name, record=record_that_ended(self._folder, name)))

    def _hear(self, name: str, event: SweepEvent) -> None:
        """Pass an event on; a trial that began before this process watched it begins now."""
        is_start, is_known = isinstance(event, TrialStarted), name in self._watch.started
        if not is_known:
            self._watch.hear(event if is_start else TrialStarted(trial=name))
        elif isinstance(event, TrialStarted):
            self._tell(TrialWaits(trial=name, reason=f"its process ended early; it resumes on {event.host}"))
        if not is_start:
            self._tell(event)

    def _on_end(self, job: RemoteJob[Any], finished: Finished[Any]) -> None:
        """A job has ended: with a record, or because another worker holds the trial, or it never will have one."""
        if has_record(self._folder, job.name):
            return
        if isinstance(finished, Returned) or finished.outcome in ("stopped", "claim_lost"):
            self._not_taken.add(job.name)
            self._show_holder(job.name)
            return
        try:
            raise_unfinished(finished, job)
        except JobFailedError as problem:
            self._lost[job.name] = problem

    def _show_holder(self, name: str) -> None:
        """Say which worker, of another command, runs a trial."""
        holder = self._claims.holder(name)
        if holder is not None and name not in self._watch.started | self._watch.elsewhere:
            self._watch.elsewhere.add(name)
            self._tell(TrialElsewhere(trial=name, holder=str(holder)))

    def _try_again(self) -> None:
        """Start the trials again that others held when their jobs began, and do not hold any more."""
        free = {name for name in self._not_taken if self._claims.holder(name) is None}
        self._not_taken -= free
        self._cluster.start([self._jobs[name] for name in free if not has_record(self._folder, name)])
