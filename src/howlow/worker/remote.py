"""One trial in a process that a cluster started: the worker of `howlow worker DIR --trial NAME`.

Its events go into a file, which whoever watches the sweep reads: a shared folder is all that every cluster has.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from howlow.jobs import Link, StepProgress, SweepEvent, TrialProgress, TrialStarted
from howlow.jobs.event_file import append_event
from howlow.jobs.remote import RunTrialJob
from howlow.meters.clock import now_s
from howlow.outcomes import StoppedError
from howlow.worker.joining import work

_PROGRESS_EVERY_S = 1.0
_TOLD_BY_ITS_RECORD = ("prepared", "trial_ended", "trial_elsewhere")


def run_trial_entry(job: RunTrialJob, link: Link) -> int:
    """Run one trial; gives 1 where another worker holds it, else 0.

    Raises:
        StoppedError: a signal asked for it; the trial has written its checkpoint.
        Exception: as `work`.
    """
    submitter = job.submitter
    try:
        done = work(
            submitter.run_directory,
            trial=job.trial,
            accept_different=submitter.accept_different,
            on_event=_EventWriter(job.events).write,
        )
    except KeyboardInterrupt:
        raise StoppedError from None
    if done.left and link.stop_requested:  # the trial's own process met the signal first
        raise StoppedError
    return done.left


@dataclass
class _EventWriter:
    """Appends events, of a phase's progress at most one a second."""

    path: Path
    _phase: str | None = None
    _next_at_s: float = 0.0

    def write(self, event: SweepEvent) -> None:
        """Append an event, unless it is too early for it or the record says it."""
        if event.event in _TOLD_BY_ITS_RECORD:
            return
        if isinstance(event, TrialStarted):
            event = event.model_copy(update={"host": socket.gethostname()})
        if isinstance(event, TrialProgress) and not self._is_due(event.progress):
            return
        append_event(self.path, event)

    def _is_due(self, progress: StepProgress) -> bool:
        if progress.phase == self._phase and now_s() < self._next_at_s:
            return False
        self._phase, self._next_at_s = progress.phase, now_s() + _PROGRESS_EVERY_S
        return True
