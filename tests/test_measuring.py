"""What a worker makes of the two processes of a trial: fine-tuning, then inference in a fresh one."""

from pathlib import Path
from typing import Any

import pytest
from test_resuming import measure_job

from howlow.claims import Claims
from howlow.jobs import (
    CounterPaces,
    Hear,
    IdleAbsent,
    IdleJob,
    JobFailedError,
    MeasureJob,
    NodeBusy,
    PaceJob,
    SweepEvent,
    TrialJob,
)
from howlow.outcomes import ClaimLostError, DiskFullError, Finished, Returned, StoppedError, Unfinished
from howlow.records import Record, Status, WarningKind, has_record, read_record, write_record
from howlow.settings import merge
from howlow.worker.measuring import Worker


class Runner:
    """Plays the processes: each ends in the next of the given ways, and writes a record if it returns a status."""

    is_stopping = False
    has_log = True

    def __init__(self, *ends: Finished[Status | None]) -> None:
        self.ends, self.continued = list(ends), list[bool]()

    def rest(self, seconds: float) -> None:
        assert seconds == 0.0

    def run(self, job: Any, log: Path, hear: Hear | None = None) -> Finished[Any]:
        assert isinstance(job, MeasureJob)
        if self.has_log:
            log.write_text("")
        self.continued.append(job.continues)
        end = self.ends.pop(0)
        if isinstance(end, Returned) and end.value is not None:
            write_record(job.run_directory / job.trial.folder, record_of(job.trial, end.value))
        return end


def record_of(trial: TrialJob, status: Status) -> Record:
    same = {name: getattr(trial, name) for name in ("kind", "rank", "seed", "axes", "settings", "environment", "data")}
    return Record(trial=trial.name, status=status, model=None, **same)


@pytest.fixture
def trial(tiny_table: dict[str, Any], tmp_path: Path) -> TrialJob:
    quiet = {"meters": {"energy": "none"}, "grid": {"lora.rank": [1]}}
    return measure_job(merge(tiny_table, quiet), tmp_path).trial


def measured(runner: Runner, folder: Path, trial: TrialJob) -> Record:
    claims = Claims(folder)
    claim = claims.take(trial.name)
    assert claim is not None
    return Worker(runner, folder, claims, lambda event: None).measure(trial, claim)


def test_inference_gets_a_fresh_process_that_knows_it_continues(trial: TrialJob, tmp_path: Path) -> None:
    runner = Runner(Returned(None), Returned("done"))
    assert measured(runner, tmp_path, trial).status == "done"
    assert runner.continued == [False, True]


@pytest.mark.parametrize("status", ["done", "diverged", "out_of_memory", "failed"])
def test_a_trial_that_ended_in_its_first_process_has_no_second_one(
    trial: TrialJob, tmp_path: Path, status: Status
) -> None:
    runner = Runner(Returned(status))
    assert measured(runner, tmp_path, trial).status == status
    assert runner.continued == [False]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (Unfinished("stopped"), StoppedError),
        (Unfinished("disk_full", "full"), DiskFullError),
        (Unfinished("claim_lost"), ClaimLostError),
    ],
)
@pytest.mark.parametrize("is_second", [False, True])
def test_either_process_may_be_stopped_without_a_record(
    trial: TrialJob, tmp_path: Path, end: Finished[Any], error: type[Exception], is_second: bool
) -> None:
    runner = Runner(*[Returned(None)] * is_second, end)
    with pytest.raises(error):
        measured(runner, tmp_path, trial)
    assert runner.ends == []
    assert not has_record(tmp_path, trial.name)


@pytest.mark.parametrize("is_second", [False, True])
def test_either_process_may_die_and_leaves_a_record(trial: TrialJob, tmp_path: Path, is_second: bool) -> None:
    runner = Runner(*[Returned(None)] * is_second, Unfinished("died", "exit code 1"))
    record = measured(runner, tmp_path, trial)
    assert record == read_record(tmp_path / trial.folder)
    assert record.status == "failed"
    assert WarningKind.RESUMED not in {warning.kind for warning in record.warnings}


def test_a_process_that_died_before_it_opened_its_log_leaves_a_record_too(trial: TrialJob, tmp_path: Path) -> None:
    runner = Runner(Unfinished("died", exit_signal=9))
    runner.has_log = False
    assert measured(runner, tmp_path, trial).status == "failed"


def test_a_second_process_that_asks_for_a_third_is_a_defect(trial: TrialJob, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, JobFailedError)):
        measured(Runner(Returned(None), Returned(None)), tmp_path, trial)


class Busy(Runner):
    """Processes that have to wait for another one of the machine, and say so."""

    def __init__(self, *ends: Finished[Status | None]) -> None:
        super().__init__(*ends)
        self.jobs = list[str]()

    def run(self, job: Any, log: Path, hear: Hear | None = None) -> Finished[Any]:
        self.jobs.append(type(job).__name__)
        if hear is not None:
            hear(NodeBusy(other="r0009-s0 of /runs/other"))
        if isinstance(job, IdleJob):
            return Returned(IdleAbsent(reason="no sensor"))
        if isinstance(job, PaceJob):
            return Returned(CounterPaces())
        return super().run(job, log, hear)


def test_with_exclusive_idle_power_is_read_for_trials_whose_costs_count_and_waiting_is_told(
    trial: TrialJob, tmp_path: Path
) -> None:
    run = trial.settings.run.model_copy(update={"exclusive": True})
    meters = trial.settings.meters.model_copy(update={"energy": "auto"})
    settings = trial.settings.model_copy(update={"run": run, "meters": meters})
    runner, claims, told = (
        Busy(Returned("done"), Returned("done"), Returned("done")),
        Claims(tmp_path),
        list[SweepEvent](),
    )
    worker = Worker(runner, tmp_path, claims, told.append, is_alone=False)
    for name, is_alone in (("quality", False), ("costs", True), ("again", True)):
        job = trial.model_copy(update={"name": name, "settings": settings, "alone": is_alone})
        claim = claims.take(name)
        assert claim is not None
        worker.measure(job, claim)
        claims.release(claim)
    assert runner.jobs == ["MeasureJob", "IdleJob", "PaceJob", "MeasureJob", "MeasureJob"]
    waits = [event.reason for event in told if event.event == "trial_waits"]
    assert waits == ["waits for r0009-s0 of /runs/other: run.exclusive"] * 5
