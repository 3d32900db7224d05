"""SLURM, through submitit: a job that prepares a sweep, then a job array with one element a trial.

An element a trial, not a worker: SLURM then grants, limits, preempts and requeues each trial by itself, and no node
waits for the longest one. What remains is the start of a process for each trial, some ten seconds.

A signal that a job's time is nearly up (SIGUSR1, SIGUSR2, SIGTERM) makes the trial write its checkpoint. Then the
element is requeued and resumes, unless SLURM has cancelled it or requeues it by itself. Where SLURM does not take it
back, it leaves word that it was stopped, and whoever watches the sweep submits it again. submitit's own result files
are pickles and are not read: how a job ended is in a JSON file (`howlow.jobs.remote`).
"""

import io
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from pydantic import ValidationError

from howlow.errors import UserError, reason
from howlow.executors.remote import SignalLink, refuse_named_card, run_remote, threads_asked_for
from howlow.executors.slurm_options import option_of_sbatch
from howlow.executors.slurm_queue import ProcessQueue, Queue, Queued, SlurmQueue, comes_back
from howlow.jobs.remote import RemoteEnd, RemoteJob, end_as_file, remote_folder
from howlow.meters.clock import now_s
from howlow.outcomes import Finished, Unfinished
from howlow.records import write_atomically
from howlow.settings import Settings

_TIME_IS_UP = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
_ASK_EVERY_S = 2.0
_GONE_FOR_S = 20.0
"""A network file system may show a job's files this long after SLURM has forgotten the job."""
_STOP_WITHIN_S = 70.0
_MOST_REQUEUES = 1000
_MOST_AT_ONCE = 10_000


def slurm_cluster(settings: Settings, folder: Path) -> "SlurmArray":
    """SLURM, as its commands on this machine reach it.

    Raises:
        UserError: submitit or SLURM's commands are missing, the controller does not answer, or a setting is wrong.
    """
    submitit, asked = _imported_submitit(), settings.slurm
    is_slurm = asked.through == "slurm"
    queue: Queue = SlurmQueue() if is_slurm else ProcessQueue()
    parameters = _parameters(settings)
    queue.refuse_silent(asked.partition)
    files = remote_folder(folder.resolve()) / "submitit"
    files.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(
        files, cluster="slurm" if is_slurm else "local", slurm_max_num_timeout=_MOST_REQUEUES
    )
    executor.update_parameters(**parameters)
    most = _MOST_AT_ONCE if is_slurm else settings.run.workers or 1
    threads, is_limited = threads_asked_for(asked.cpus_per_trial), settings.run.workers is not None
    return SlurmArray(executor, queue, remote_folder(folder), most, threads, queue.largest_array(), is_limited)


def _imported_submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        problem = reason(error)
        raise UserError(f'run.executor = "slurm": {problem}; install it with pip install "howlow[slurm]"') from None
    return submitit


def _parameters(settings: Settings) -> dict[str, Any]:
    """The settings in submitit's words."""
    asked, device = settings.slurm, settings.run.device
    refuse_named_card(device, "SLURM chooses the cards of its jobs")
    if asked.notice_s >= 60 * asked.time_limit_min:
        raise UserError(
            f"slurm.notice_s = {asked.notice_s}: slurm.time_limit_min = {asked.time_limit_min} is "
            f"{60 * asked.time_limit_min} s, and no time is left to train; raise it or lower the notice"
        )
    gpus = settings.run.devices_per_trial if device == "cuda" and asked.gres is None else None
    cores, further = asked.cpus_per_trial, dict(map(option_of_sbatch, asked.options or ()))
    return {
        "name": "howlow",
        "timeout_min": asked.time_limit_min,
        "cpus_per_task": cores,
        "gpus_per_node": gpus,
        "stderr_to_stdout": True,
        "local_setup" if asked.through == "processes" else "slurm_setup": list(asked.setup) if asked.setup else None,
        "slurm_partition": asked.partition,
        "slurm_account": asked.account,
        "slurm_qos": asked.qos,
        "slurm_gres": asked.gres,
        "slurm_mem": asked.mem,
        "slurm_signal_delay_s": asked.notice_s,
        "slurm_array_parallelism": settings.run.workers or _MOST_AT_ONCE,
        # since SLURM 22.05 a step does not take over what its job was given
        "slurm_srun_args": None if cores is None else [f"--cpus-per-task={cores}"],
        "slurm_additional_parameters": {"requeue": True, "kill_on_invalid_dep": "yes", **further},
    }


# -- in the job -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Element:
    """What runs in a job: one remote job, which leaves its end as a file or is requeued."""

    job: RemoteJob[Any]

    def __call__(self) -> None:
        """Run the job; a signal makes it save its work and come back."""
        requeue, link = _handler_of_submitit(), SignalLink(_TIME_IS_UP)
        try:
            finished: Finished[Any] = run_remote(self.job, link)
        except KeyboardInterrupt:  # the signal came before the job began, or after it had ended
            finished = Unfinished("stopped")
        link.is_over = True  # a signal must not interrupt the file that follows
        if link.number is not None and isinstance(finished, Unfinished) and finished.outcome == "stopped":
            back = comes_back(link.number)
            refusal = _refusal(requeue, link.number) if back else "SLURM cannot be asked from this node"
            if back is False or refusal is None:
                return
            finished = Unfinished("stopped", refusal)
        write_atomically(self.job.end, end_as_file(finished).model_dump_json())
        if isinstance(finished, Unfinished):
            sys.exit(1)  # what depends on this job does not start

    def checkpoint(self) -> Any:
        """What submitit runs when the job has been requeued: the same, since the run directory has the checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _refusal(requeue: Callable[[int, None], Any], number: int) -> str | None:
    """Requeue the job of this process, which ends it; why SLURM does not, where it refuses."""
    try:
        requeue(number, None)
    except (OSError, RuntimeError, SubprocessError) as error:  # no scontrol, a job that must not, or came too often
        return f"SLURM does not requeue it: {reason(error)}"
    return None


def _handler_of_submitit() -> Callable[[int, None], Any]:
    """The handler that requeues this job, of whichever signal submitit has it for."""
    for number in (signal.SIGUSR2, signal.SIGUSR1):
        handler = signal.getsignal(number)
        if callable(handler):
            return handler
    raise AssertionError("submitit handles a signal in each of its jobs")


# -- where the sweep is watched -------------------------------------------------------------------------------------


@dataclass
class SlurmArray:
    """Jobs that are submitted, those of an earlier start of the sweep included."""

    executor: Any
    queue: Queue
    files: Path
    most: int
    threads: int | None
    largest: int = _MOST_AT_ONCE
    """The most elements of one array."""
    is_limited: bool = False
    """Whether so many elements of an array run at one time; then one array follows the other."""
    _waiting: list[RemoteJob[Any]] = field(default_factory=list)
    _running: dict[str, RemoteJob[Any]] = field(default_factory=dict)
    """SLURM's id -> job"""
    _gone_at_s: dict[str, float] = field(default_factory=dict)
    _asked_at_s: float = float("-inf")
    _queued: dict[str, Queued] = field(default_factory=dict)
    """As SLURM showed it last."""

    def start(self, jobs: Sequence[RemoteJob[Any]], after: str | None = None) -> None:
        """Submit jobs, except those that were submitted before and have not ended; `after`: the id of a job."""
        there = self.submitted()
        self._running |= {there[job.name]: job for job in jobs if job.name in there}
        self._waiting += [job for job in jobs if job.name not in there]
        self._submit(after)

    def submitted(self) -> dict[str, str]:
        """The jobs of this sweep that have not ended: name -> SLURM's id."""
        queued = self.queue.jobs()
        known = _read_ids(self._ids)
        return {} if queued is None else {name: one for name, one in known.items() if one in queued}

    def states(self) -> dict[str, Queued]:
        """The same with their states."""
        queued = self.queue.jobs() or {}
        return {name: queued[one] for name, one in _read_ids(self._ids).items() if one in queued}

    @property
    def _ids(self) -> Path:
        return self.files / "submitted.json"

    def _submit(self, after: str | None = None) -> None:
        """Submit what waits, as one array, or as several where SLURM takes none of that length."""
        room = self.most - len(self._running)
        new, self._waiting = self._waiting[:room], self._waiting[room:]
        first = [] if after is None else [f"afterok:{after}"]
        conditions = first
        for start in range(0, len(new), self.largest):
            array = self._submit_array(new[start : start + self.largest], conditions)
            if self.is_limited:
                conditions = [*first, f"afterany:{array}"]
        if self.is_limited and len(new) > self.largest:
            self.executor.update_parameters(slurm_dependency="0")  # sbatch's word for none

    def _submit_array(self, jobs: Sequence[RemoteJob[Any]], conditions: Sequence[str]) -> str:
        """Submit jobs as one array; its id."""
        for job in jobs:
            job.end.unlink(missing_ok=True)
        if conditions:
            self.executor.update_parameters(slurm_dependency=",".join(conditions))
        started = _submitted(self.executor, jobs)
        self.queue.know(started)
        ids = {job.name: one.job_id for job, one in zip(jobs, started, strict=True)}
        write_atomically(self._ids, json.dumps(_read_ids(self._ids) | ids))
        self._running |= {ids[job.name]: job for job in jobs}
        return str(ids[jobs[0].name]).partition("_")[0]

    def ended(self) -> list[tuple[RemoteJob[Any], Finished[Any]]]:
        """The jobs that have ended since the last call."""
        found = [(one, end) for one, job in self._running.items() if (end := _read_end(job.end)) is not None]
        ended = [(self._running.pop(one), end) for one, end in found]
        if now_s() - self._asked_at_s >= _ASK_EVERY_S:
            self._asked_at_s = now_s()
            ended += [(self._running.pop(one), self._lost(one)) for one in self._gone()]
        if ended:
            self._submit()
        return ended

    def _gone(self) -> list[str]:
        """The jobs that have not been in the queue for a while, and left no end."""
        queued = self.queue.jobs()
        if queued is None:
            return []
        self._queued = queued
        for one in self._running:
            if one in queued:
                self._gone_at_s.pop(one, None)
            else:
                self._gone_at_s.setdefault(one, now_s())
        return [one for one, since in self._gone_at_s.items() if one in self._running and now_s() - since > _GONE_FOR_S]

    def why_waiting(self) -> str | None:
        """SLURM's reasons, as Resources or Priority."""
        there = [self._queued[one] for one in self._running if one in self._queued]
        is_waiting = bool(there) and all(one.state == "PENDING" for one in there)
        return ", ".join(dict.fromkeys(one.reason for one in there)) if is_waiting else None

    def _lost(self, one: str) -> Unfinished:
        return Unfinished("died", f"SLURM job {one} was cancelled or lost; {self.files / 'submitit'}/{one}_0_log.out")

    def stop(self) -> None:
        """Cancel every job: SLURM tells the trials first, and they write their checkpoints."""
        self._waiting.clear()
        self.queue.cancel(list(self._running))
        until = now_s() + _STOP_WITHIN_S
        while now_s() < until and self._running.keys() & (self.queue.jobs() or {}).keys():
            time.sleep(0.5)


def _submitted(executor: Any, jobs: Sequence[RemoteJob[Any]]) -> list[Any]:
    """Submit jobs as one array, or a single one."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what sbatch said, too
            found: list[Any] = executor.submit_array([Element(job) for job in jobs])
    except (FailedJobError, FailedSubmissionError) as error:
        problem = next((line for line in str(error).splitlines() if "error:" in line), reason(error))
        raise UserError(f"SLURM refuses the job: {problem.strip()}; change the settings in [slurm]") from None
    return found


def _read_ids(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _read_end(path: Path) -> Finished[Any] | None:
    with suppress(OSError, ValidationError):
        return RemoteEnd.model_validate_json(path.read_text(encoding="utf-8")).finished()
    return None
