"""Jobs for other machines: a cluster gives each a process of its own, somewhere that sees the run directory.

Their events and their ends are files in `DIR/.howlow/remote`, because a shared folder is all that every cluster has.
"""

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from howlow.jobs.events import SweepPrepared
from howlow.jobs.work import Job
from howlow.outcomes import Finished, Returned, Unfinished
from howlow.records import Status, write_atomically
from howlow.records.warnings import Frozen
from howlow.settings import Settings

T = TypeVar("T")


class Submitter(Frozen):
    """The process that has work done elsewhere: a machine that cannot see its mark cannot see the run directory."""

    run_directory: Path
    working_directory: Path
    host: str
    mark: str
    threads: int | None = Field(None, description="what OMP_NUM_THREADS is set to; absent: it is not set")
    accept_different: tuple[str, ...] = ()


class RemoteJob(Job[T]):
    """A job for another machine; T is what it returns."""

    submitter: Submitter

    @property
    def name(self) -> str:
        """The trial that it is for, or a preparation."""
        raise NotImplementedError

    @property
    def events(self) -> Path:
        """The file to which it appends its events."""
        return remote_folder(self.submitter.run_directory) / f"{self.name}.events.jsonl"

    @property
    def log(self) -> Path:
        """The file into which its process prints."""
        return remote_folder(self.submitter.run_directory) / f"{self.name}.log"

    @property
    def end(self) -> Path:
        """The file in which it leaves how it ended."""
        return remote_folder(self.submitter.run_directory) / f"{self.name}.end.json"


class RemoteEnd(Frozen):
    """How a remote job ended, as a file."""

    value: SweepPrepared | int | None = None
    unfinished: Unfinished | None = None

    def finished(self) -> Finished[Any]:
        """The same, as a runner of jobs gives it."""
        return Returned(self.value) if self.unfinished is None else self.unfinished


def end_as_file(finished: Finished[Any]) -> RemoteEnd:
    """What `RemoteEnd.finished` reads."""
    if isinstance(finished, Returned):
        return RemoteEnd(value=finished.value)
    return RemoteEnd(unfinished=finished)


class PrepareSweepJob(RemoteJob[SweepPrepared]):
    """Prepare a sweep where its trials will run, and write its board."""

    entry: ClassVar[str] = "howlow.sweeping.sweep.prepare_sweep_entry"

    settings: Settings
    retry: tuple[Status, ...] = ()

    @property
    def name(self) -> str:
        """A sweep that is asked for anew, with other settings, has another preparation; no trial has such a name."""
        asked = f"{self.settings.model_dump_json()} {self.retry}"
        return f"preparation-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


class RunTrialJob(RemoteJob[int]):
    """Run one trial of a prepared sweep, as `howlow worker DIR --trial NAME` does; how many others hold it."""

    entry: ClassVar[str] = "howlow.worker.remote.run_trial_entry"

    trial: str

    @property
    def name(self) -> str:
        """The trial's name."""
        return self.trial


def remote_folder(run_directory: Path) -> Path:
    """Where the files of remote jobs are."""
    return run_directory / ".howlow" / "remote"


def leave_mark(run_directory: Path) -> str:
    """The folder's mark, by which another machine shows that it sees this very folder; made once."""
    path = remote_folder(run_directory) / "mark"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def sees_mark(submitter: Submitter) -> bool:
    """Whether this machine sees the mark."""
    path = remote_folder(submitter.run_directory) / "mark"
    try:
        return path.read_text(encoding="utf-8") == submitter.mark and os.access(path.parent, os.W_OK)
    except OSError:
        return False
