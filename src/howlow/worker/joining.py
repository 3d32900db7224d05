"""A worker in a process of its own, which joins a sweep that another process has prepared: `howlow worker DIR`.

Its figures stand in one table with those of the sweep, so code, machine and libraries have to be the sweep's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from howlow.claims import Claims
from howlow.errors import UserError
from howlow.executors.fork_server import ForkServer
from howlow.executors.local import run_workers
from howlow.jobs import EnvironmentJob, GpusJob, Job, JobRunner, ModelJob, SweepPrepared, Tell, TrialJob, value_of
from howlow.node import place_of_tickets, refuse_no_node
from howlow.outcomes import StoppedError
from howlow.records import Environment, Record, groups_of, has_record, read_record
from howlow.records.comparability import refuse_other_code, refuse_other_machine
from howlow.records.own_sources import code_sha256, revision
from howlow.settings import RunSettings
from howlow.worker.board import Author, Board, may_be_preparing, read_author, read_board
from howlow.worker.door import (
    refuse_other_clock,
    refuse_other_model,
    refuse_other_precision,
    refuse_unseen,
    refuse_unseen_files,
    refuse_unwritable,
)
from howlow.worker.measuring import Worker
from howlow.worker.taking import take_trials

T = TypeVar("T")
_PREPARING_AT_MOST_S = 600.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class WorkerResult:
    """What a worker did: the records of its trials, and how many trials have none yet because others run them."""

    records: tuple[Record, ...]
    left: int


def work(
    run_directory: Path,
    *,
    trial: str | None = None,
    device: str | None = None,
    accept_different: Sequence[str] = (),
    on_event: Tell | None = None,
) -> WorkerResult:
    """Take and run trials of a started sweep until none is left to take; with `trial`, only that one.

    accept_different: keys in which this machine or code may differ from the sweep's; the report marks such trials.

    Raises:
        UserError: no sweep is prepared there, or this machine or code is not the sweep's.
        DiskFullError: no space is left; what was measured is kept.
        KeyboardInterrupt: after the running trial has written its checkpoint.
    """
    tell = on_event or (lambda event: None)
    if device is not None:
        _refuse_no_device(device)
    refuse_unseen(run_directory)
    runner = ForkServer()
    board = _wait_for_board(run_directory, runner, accept_different)
    jobs = _chosen(run_directory, board, trial)
    refuse_other_clock(refuse_unwritable(run_directory), board, run_directory, accept_different)
    left = [job for job in jobs if not has_record(run_directory, job.name)]
    tell(SweepPrepared(total=len(jobs), done=len(jobs) - len(left)))
    if not left:
        return WorkerResult((), 0)
    refuse_unseen_files(left, run_directory)
    if any(job.settings.run.exclusive for job in left):
        refuse_no_node()
    devices = [device] if device or trial else _devices(runner, run_directory, left[0])
    here = _environment(runner, run_directory, left[0], devices[0])
    refuse_other_machine(left[0].environment, here, accept_different, str(run_directory), is_one_sweep=True)
    refuse_other_precision(left, here, run_directory, accept_different)
    _refuse_other_models(left, run_directory, runner, accept_different)
    before = {job.name for job in jobs} - {job.name for job in left}
    taken = _take(run_directory, runner, trial, devices, here, accept_different, tell)
    ended = [job.name for job in jobs if job.name not in before and has_record(run_directory, job.name)]
    records = [read_record(run_directory / "trials" / name) for name in ended if name in taken]
    return WorkerResult(tuple(record for record in records if record), len(left) - len(ended))


def _take(
    run_directory: Path,
    runner: ForkServer,
    trial: str | None,
    devices: Sequence[str | None],
    here: Environment,
    accept_different: Sequence[str],
    tell: Tell,
) -> set[str]:
    """Run a worker a device in threads, so that this one can wait for Ctrl-C; the names of the trials that they ran."""
    claims, names = Claims(run_directory, node=place_of_tickets()), set[str]()

    def current() -> Sequence[TrialJob]:
        """The trials of the newest board, on this machine: a sweep that was started again may have added some."""
        jobs = _chosen(run_directory, _wait_for_board(run_directory, runner, accept_different), trial)
        return [job.model_copy(update={"environment": here}) for job in jobs]

    def body(device: str | None, tell: Tell) -> None:
        def note(event: Any) -> None:
            if event.event == "trial_ended":
                names.add(event.trial)
            tell(event)

        worker = Worker(runner, run_directory, claims, note, device, is_alone=len(devices) == 1)
        take_trials(worker, current, waits=False)

    with claims.renewed():
        run_workers(runner, [partial(body, device) for device in devices], tell, lambda: None)
    return names


def _wait_for_board(run_directory: Path, runner: JobRunner, accept_different: Sequence[str]) -> Board:
    waited_s = 0.0
    while (board := read_board(run_directory)) is None:
        author = read_author(run_directory)
        if author is not None and author.code != code_sha256():
            _refuse_other_code(author, run_directory, accept_different)
            raise _unreadable(run_directory, author)
        if runner.is_stopping:
            raise StoppedError
        if not may_be_preparing(run_directory) or waited_s >= _PREPARING_AT_MOST_S:
            raise UserError(
                f"{run_directory}: no prepared sweep is there; start one with howlow sweep ... --out {run_directory}"
            )
        runner.rest(_LOOK_EVERY_S)
        waited_s += _LOOK_EVERY_S
    _refuse_other_code(board, run_directory, accept_different)
    return board


def _chosen(run_directory: Path, board: Board, trial: str | None) -> tuple[TrialJob, ...]:
    found = tuple(job for job in board.trials if trial in (None, job.name))
    if not found and trial is not None:
        names = ", ".join(job.name for job in board.trials[:8])
        raise UserError(f"--trial {trial}: {run_directory} has no trial of this name; it has {names}")
    return found


# -- what has to be equal -------------------------------------------------------------------------------------------


def _refuse_other_code(author: Author | Board, run_directory: Path, accept_different: Sequence[str]) -> None:
    revisions = author.revision, revision()
    refuse_other_code(author.code, code_sha256(), accept_different, str(run_directory), revisions)


def _unreadable(run_directory: Path, author: Author) -> UserError:
    """The error where another version is accepted, and its board has another form."""
    there, here = (name or "not known" for name in (author.revision, revision()))
    return UserError(
        f"{run_directory}: this worker cannot read what the sweep's howlow wrote; run the same version of howlow "
        f"(commit {there} in the sweep, {here} here)"
    )


def _refuse_other_models(
    jobs: Sequence[TrialJob], run_directory: Path, runner: JobRunner, accept_different: Sequence[str]
) -> None:
    """Refuse a machine that has another model under the same name or path: its trials would have other losses."""
    alike = {(job.settings.model, job.data.model_sha256): job for job in jobs if job.data.model_sha256}
    for (model, there), job in alike.items():
        here = _answer(runner, run_directory, ModelJob(settings=job.settings))
        refuse_other_model(model, here, there, run_directory, accept_different)


def _devices(runner: JobRunner, run_directory: Path, job: TrialJob) -> list[str | None]:
    """The device of each worker of this machine: every GPU that trials may use; None: as the settings say."""
    if job.settings.run.device not in ("auto", "cuda") or not job.environment.device.startswith("cuda"):
        return [None]
    gpus = _answer(runner, run_directory, GpusJob(device=job.settings.run.device))
    groups = groups_of(gpus, job.settings.run.devices_per_trial)
    return [*groups] if len(groups) > 1 else [None]


def _environment(runner: JobRunner, run_directory: Path, job: TrialJob, device: str | None) -> Environment:
    asked = EnvironmentJob(
        device=device or job.settings.run.device,
        devices_per_trial=job.settings.run.devices_per_trial,
        cores_shared_by=job.cores_shared_by,
    )
    try:
        return _answer(runner, run_directory, asked)
    except UserError as error:
        raise UserError(str(error).replace("run.device = ", "--device ") if device else str(error)) from None


def _refuse_no_device(device: str) -> None:
    try:
        RunSettings(device=device)
    except ValidationError:
        raise UserError(f"--device {device}: auto, cpu, mps, cuda, cuda:N or a GPU's UUID is expected") from None


def _answer(runner: JobRunner, run_directory: Path, question: Job[T]) -> T:
    """What a process of this machine answers; its log is the worker's."""
    log = run_directory / ".howlow" / "worker.log"
    return value_of(runner.run(question, log), question, log)
