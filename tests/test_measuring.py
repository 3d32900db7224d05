"""What a worker makes of the two processes of a trial: fine-tuning, then inference in a fresh one."""

from pathlib import Path
from typing import Any

import pytest
from test_resuming import measure_job

from howlow.claims import Claims
from howlow.jobs import Hear, JobFailedError, MeasureJob, TrialJob
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
