"""What SLURM's own commands say of jobs: which are there, in which state, and why they wait.

`squeue` is asked, not `sacct`: many clusters keep no accounts.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from howlow.errors import UserError

_ANSWER_WITHIN_S = 60.0
_DEFAULT_ARRAY = 1001  # MaxArraySize, as SLURM has it


@dataclass(frozen=True)
class Queued:
    """A job that has not ended: its state in SLURM's words, why it waits, and its node."""

    state: str
    reason: str = ""
    node: str = ""


class Queue(Protocol):
    """Where submitted jobs are."""

    def refuse_silent(self, partition: str | None) -> None:
        """Refuse a queue that cannot be used."""

    def largest_array(self) -> int:
        """The most elements of one array."""

    def know(self, jobs: Iterable[Any]) -> None:
        """Remember jobs that submitit has just submitted."""

    def jobs(self) -> dict[str, Queued] | None:
        """The jobs that have not ended, by id; None where that cannot be said now."""

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask jobs to save their work and end."""


class SlurmQueue:
    """SLURM's own queue."""

    def refuse_silent(self, partition: str | None) -> None:
        """Refuse a machine without SLURM's commands, a controller that does not answer, and an unknown partition.

        Raises:
            UserError: says what to start or to change.
        """
        if shutil.which("sbatch") is None:
            raise UserError(
                'run.executor = "slurm": there is no sbatch here; run howlow on a login node of the cluster, or '
                "install SLURM's client (Debian: slurm-client)"
            )
        done = _asked("sinfo", "--noheader", "--format=%R")
        if done is None or done.returncode:
            problem = "no answer" if done is None else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f'run.executor = "slurm": {problem}; start slurmctld, or look at it with scontrol ping')
        known = sorted(set(done.stdout.split()))
        if partition is not None and not set(partition.split(",")) <= set(known):
            raise UserError(f'slurm.partition = "{partition}": SLURM has {", ".join(known)}')

    def largest_array(self) -> int:
        """MaxArraySize; its default where SLURM does not say, and single jobs where it has no arrays."""
        done = _asked("scontrol", "show", "config")
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE) if done is not None else None
        return max(1, int(found[1])) if found else _DEFAULT_ARRAY

    def know(self, jobs: Iterable[Any]) -> None:
        """SLURM itself remembers them."""

    def jobs(self) -> dict[str, Queued] | None:
        """The user's jobs that have not ended, elements of arrays one by one."""
        done = _asked("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N")
        if done is None or done.returncode:
            return None
        lines = (line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 3)
        return {one: Queued(state, reason, node) for one, state, reason, node in lines}

    def cancel(self, ids: Sequence[str]) -> None:
        """SLURM sends SIGTERM, and kills what is still there after its KillWait."""
        if ids:
            _asked("scancel", *ids)


@dataclass
class ProcessQueue:
    """Jobs of submitit's local executor: processes of this machine."""

    _processes: dict[str, Any] = field(default_factory=dict)

    def refuse_silent(self, partition: str | None) -> None:
        """There is always this machine."""

    def largest_array(self) -> int:
        """Processes make no array."""
        return _DEFAULT_ARRAY

    def know(self, jobs: Iterable[Any]) -> None:
        """Remember what was started."""
        self._processes |= {job.job_id: job for job in jobs}

    def jobs(self) -> dict[str, Queued] | None:
        """Those that run."""
        return {one: Queued("RUNNING") for one, job in self._processes.items() if not job.done()}

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM, which submitit's process hands on."""
        for one in self.jobs() or ():
            if one in ids:
                os.kill(int(one), signal.SIGTERM)


def comes_back(number: int) -> bool | None:
    """Whether the job of this process is to be requeued after a signal, asked from within the job.

    Not where SLURM has cancelled it, or is about to requeue it by itself: its state then is no longer RUNNING.
    None where SLURM cannot be asked from here.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return number != signal.SIGTERM
    done = _asked("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    if done is None or (done.returncode and "Invalid job id" not in done.stderr):
        return None
    return done.stdout.split() == ["RUNNING"]


def _asked(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """What a command says; None where it cannot be asked or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
