"""What a process of a cluster does with its job, and what every cluster can do, whatever its kind."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NoReturn, Protocol, TypeVar

from howlow.console import write_log_as_utf8
from howlow.errors import UserError, reason
from howlow.executors.fork_server import end_of
from howlow.jobs import JobEvent
from howlow.jobs.remote import RemoteJob, Submitter, sees_mark
from howlow.outcomes import Finished, Unfinished
from howlow.places import unfinished
from howlow.records import is_gpu_uuid

T = TypeVar("T")
_LOOKS, _LOOK_EVERY_S = 40, 0.5
"""A network file system may show an old folder for a while."""


class Cluster(Protocol):
    """Runs jobs on other machines, each in a fresh process."""

    threads: int | None
    """What OMP_NUM_THREADS is set to in its processes; None: it is not set."""

    def start(self, jobs: Sequence[RemoteJob[Any]]) -> None:
        """Hand jobs over; they begin when there is room for them."""

    def ended(self) -> list[tuple[RemoteJob[Any], Finished[Any]]]:
        """The jobs that have ended since the last call."""

    def why_waiting(self) -> str | None:
        """Why none of the jobs has begun, in the cluster's word; None where one has, or where it does not say."""

    def stop(self) -> None:
        """Ask every job to save its work and end, wait for that, and begin no other."""


class SignalLink:
    """The link of a remote job, which has no pipe: the first signal asks it to stop, and the next ones are ignored."""

    def __init__(self, signals: Sequence[signal.Signals] = ()) -> None:
        self.number: int | None = None
        self.is_over = False
        for one in signals:
            signal.signal(one, self._on_signal)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def report(self, event: JobEvent) -> None:
        """Nobody listens: a remote job writes its events into a file."""

    def end(self, finished: Unfinished) -> NoReturn:
        """End this process at once; the cluster sees that it ended without a result."""
        os._exit(1)

    def _on_signal(self, number: int, _: object) -> None:
        if self.number is None and not self.is_over:
            self.number = number
            raise KeyboardInterrupt


def run_remote(job: RemoteJob[T], link: SignalLink | None = None) -> Finished[T]:
    """Run a job in this process, which a cluster has started for it."""
    problem = _cannot_start(job.submitter)
    if problem is not None:
        return Unfinished("user_error", problem)
    if job.submitter.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(job.submitter.threads)
    try:
        log = job.log.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:  # a full disk
        return unfinished(error, job.log.parent)
    with log:
        write_log_as_utf8()
        with redirect_stdout(log), redirect_stderr(log):
            return end_of(job, link or SignalLink(), job.log.parent)


def _cannot_start(submitter: Submitter) -> str | None:
    """Why this machine cannot work for a sweep; None where it can."""
    for _ in range(_LOOKS):
        if sees_mark(submitter):
            break
        time.sleep(_LOOK_EVERY_S)
    else:
        return (
            f"--out {submitter.run_directory}: {socket.gethostname()} does not see what {submitter.host} wrote there, "
            "or may not write; give a folder that all machines share and may write to"
        )
    try:
        os.chdir(submitter.working_directory)  # paths in the settings may be relative to it
    except OSError as error:
        return (
            f"{submitter.working_directory}: {reason(error)} on {socket.gethostname()}; "
            "run howlow in a folder that all machines share"
        )
    return None


def refuse_named_card(device: str, whose: str) -> None:
    """Refuse a device that names one card, by its number or UUID: a cluster chooses the cards itself.

    Raises:
        UserError: says what to set.
    """
    if device.startswith("cuda:") or is_gpu_uuid(device):
        raise UserError(f'run.device = "{device}" names one card, and {whose}; set run.device = "cuda"')


def threads_asked_for(cpus_per_trial: int | None) -> int | None:
    """OMP_NUM_THREADS for trials elsewhere: as in this process, else as many as the cores that each is given."""
    here = os.environ.get("OMP_NUM_THREADS", "")
    return int(here) if here.isdecimal() and int(here) > 0 else cpus_per_trial
