"""Jobs for other machines: their files, what a process of a cluster does with one, and how their course is watched."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import record

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.executors import remote
from howlow.executors.ray_tasks import run_task
from howlow.executors.remote import SignalLink, run_remote, threads_asked_for
from howlow.jobs import (
    ClusterBusy,
    JobFailedError,
    Preparing,
    StepProgress,
    SweepEvent,
    SweepPrepared,
    TrialProgress,
    TrialStarted,
)
from howlow.jobs.event_file import EventTail, append_event
from howlow.jobs.remote import (
    PrepareSweepJob,
    RemoteEnd,
    RemoteJob,
    RunTrialJob,
    Submitter,
    end_as_file,
    leave_mark,
    sees_mark,
)
from howlow.outcomes import Finished, Returned, Unfinished
from howlow.records import write_record
from howlow.sweeping.elsewhere import Elsewhere

SMALL: dict[str, Any] = {"model": "m", "task": {"name": "question_answering", "train": "a/b", "test": "c/d"}}


def submitter(folder: Path, **changes: Any) -> Submitter:
    values = {"run_directory": folder, "working_directory": folder, "host": "login-1", "mark": leave_mark(folder)}
    return Submitter(**(values | changes))


class Quick(RunTrialJob):
    """Returns what OMP_NUM_THREADS is."""

    entry = "test_remote_jobs.threads_entry"


def threads_entry(job: Quick, link: SignalLink) -> int:
    print("said in the job")
    return int(os.environ.get("OMP_NUM_THREADS", "0"))


class Interrupted(RunTrialJob):
    """Is told that its time is nearly up, twice."""

    entry = "test_remote_jobs.interrupted_entry"


def interrupted_entry(job: Interrupted, link: SignalLink) -> int:
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        threading.Event().wait(10)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)  # while it saves its work
        Path(job.trial).write_text("saved")
        raise
    raise AssertionError("the signal did not interrupt")


# -- in the process of a cluster ------------------------------------------------------------------------------------


def test_a_job_runs_with_the_threads_that_it_is_given_and_prints_into_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # Ray sets it to the task's cores
    assert run_remote(Quick(submitter=submitter(tmp_path), trial="t")) == Returned(7)
    assert run_task(Quick(submitter=submitter(tmp_path), trial="t")) == Returned(0)
    job = Quick(submitter=submitter(tmp_path, threads=3), trial="t")
    assert run_remote(job) == Returned(3)
    assert job.log.read_text() == "said in the job\n" * 3


@pytest.mark.parametrize("kind", ["other folder", "no folder", "no working directory"])
def test_a_machine_that_does_not_see_the_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "_LOOKS", 1)
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.0)
    changes: dict[str, dict[str, Any]] = {
        "other folder": {"mark": "of another folder"},
        "no folder": {"run_directory": tmp_path / "absent"},
        "no working directory": {"working_directory": tmp_path / "absent"},
    }
    finished = run_remote(Quick(submitter=submitter(tmp_path, **changes[kind]), trial="t"))
    assert isinstance(finished, Unfinished)
    assert finished.outcome == "user_error"
    if kind == "no working directory":
        assert "run howlow in a folder that all machines share" in finished.problem
    else:
        assert "does not see what login-1 wrote there" in finished.problem


def test_a_second_signal_does_not_disturb_a_job_that_saves_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        link = SignalLink(numbers)
        job = Interrupted(submitter=submitter(tmp_path), trial=str(tmp_path / "saved"))
        monkeypatch.setattr(type(job), "log", tmp_path / "log")
        assert run_remote(job, link) == Unfinished("stopped")
        assert link.number == signal.SIGUSR1
        assert (tmp_path / "saved").read_text() == "saved"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_mark_of_a_folder_stays(tmp_path: Path) -> None:
    """Jobs that were submitted by an earlier command still see it."""
    first = submitter(tmp_path)
    assert leave_mark(tmp_path) == first.mark
    assert sees_mark(first)


@given(st.sampled_from([None, "", "0", "x", "4"]), st.sampled_from([None, 2]))
def test_threads_are_those_of_this_process_else_the_cores_that_were_asked_for(
    here: str | None, asked: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        if here is not None:
            patch.setenv("OMP_NUM_THREADS", here)
        assert threads_asked_for(asked) == (4 if here == "4" else asked)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "finished",
    [
        Returned(0),
        Returned(SweepPrepared(total=3, done=1)),
        Unfinished("user_error", "no such model"),
        Unfinished("died", "lost", exit_signal=9),
    ],
)
def test_an_end_is_equal_to_what_its_file_gives_back(finished: Finished[Any]) -> None:
    assert RemoteEnd.model_validate_json(end_as_file(finished).model_dump_json()).finished() == finished


def test_events_come_whole_and_once_however_the_file_grows(tmp_path: Path) -> None:
    path, events = tmp_path / "events.jsonl", [TrialStarted(trial="t", host="n"), progress(1), progress(2)]
    tail = EventTail(path)
    assert tail.new() == []
    append_event(path, events[0])
    whole = path.read_bytes()
    assert tail.new() == [events[0]]
    with path.open("ab") as file:
        file.write(whole[:9])
    assert tail.new() == []
    with path.open("ab") as file:
        file.write(whole[9:])
    assert tail.new() == [events[0]]
    with path.open("ab") as file:
        file.write(b'{"event": "trial_st')  # its process was killed, and the next one appends
    append_event(path, events[1])
    append_event(path, events[2])
    assert tail.new() == [events[2]]


def progress(step: int) -> TrialProgress:
    return TrialProgress(trial="t", progress=StepProgress(phase="train", step=step, steps=2))


def test_another_sweep_has_another_preparation(tmp_path: Path) -> None:
    settings, other = load(None, [SMALL]), load(None, [SMALL, {"seed": 3}])
    names = {
        PrepareSweepJob(submitter=submitter(tmp_path), settings=one, retry=retry).name
        for one in (settings, other)
        for retry in ((), ("failed",))
    }
    assert len(names) == 4
    assert PrepareSweepJob(submitter=submitter(tmp_path), settings=settings).name in names


# -- the course of trials -------------------------------------------------------------------------------------------


class Script:
    """A cluster that does with each start of a trial what a test says."""

    threads = None

    def __init__(self, folder: Path, **starts: Sequence[Callable[[RemoteJob[Any]], Finished[Any] | None]]) -> None:
        self.folder, self.starts = folder, {name: list(acts) for name, acts in starts.items()}
        self.ends: list[tuple[RemoteJob[Any], Finished[Any]]] = []
        self.stopped = 0
        self.reasons: list[str | None] = []

    def why_waiting(self) -> str | None:
        return self.reasons.pop(0) if self.reasons else None

    def start(self, jobs: Sequence[RemoteJob[Any]]) -> None:
        for job in jobs:
            end = self.starts[job.name].pop(0)(job)
            if end is not None:
                self.ends.append((job, end))

    def ended(self) -> list[tuple[RemoteJob[Any], Finished[Any]]]:
        ends, self.ends = self.ends, []
        return ends

    def stop(self) -> None:
        self.stopped += 1


class Plan:
    def __init__(self, name: str) -> None:
        self.name = name


def leaves_record(job: RemoteJob[Any]) -> Finished[Any]:
    append_event(job.events, TrialStarted(trial=job.name, host="n1"))
    folder = job.submitter.run_directory / "trials" / job.name
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, record(job.name))
    return Returned(0)


def is_held(job: RemoteJob[Any]) -> Finished[Any]:
    return Returned(1)


def is_lost(job: RemoteJob[Any]) -> Finished[Any]:
    append_event(job.events, TrialStarted(trial=job.name, host="n1"))
    return Unfinished("died", "lost")


def course(folder: Path, cluster: Script, monkeypatch: pytest.MonkeyPatch) -> list[SweepEvent]:
    from howlow.sweeping import elsewhere

    monkeypatch.setattr(elsewhere, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(elsewhere, "_LOOKS_A_TRY", 2)
    told: list[SweepEvent] = []
    trials: Any = [Plan(name) for name in cluster.starts]
    Elsewhere(folder, cluster, (), told.append).run(trials)
    return told


def test_each_trial_is_shown_to_begin_and_to_end_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Script(tmp_path, a=[leaves_record], b=[is_held, leaves_record])
    told = course(tmp_path, cluster, monkeypatch)
    assert sorted((event.event, event.trial) for event in told if not isinstance(event, Preparing | SweepPrepared)) == [
        ("trial_ended", "a"),
        ("trial_ended", "b"),
        ("trial_started", "a"),
        ("trial_started", "b"),
    ]
    assert cluster.stopped == 0


def test_a_lost_job_ends_the_sweep_only_when_the_others_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Script(tmp_path, a=[is_lost], b=[is_held, leaves_record])
    with pytest.raises(JobFailedError, match="lost"):
        course(tmp_path, cluster, monkeypatch)
    assert (tmp_path / "trials" / "b" / "record.json").exists()
    assert cluster.stopped == 1


def test_why_a_cluster_begins_nothing_is_said_once_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(job: RemoteJob[Any]) -> None:
        cluster.reasons = ["Priority", "Priority", "Resources", None, "Resources"]

    cluster = Script(tmp_path, a=[waits])

    def ended() -> list[tuple[RemoteJob[Any], Finished[Any]]]:
        return [] if cluster.reasons else [(job, leaves_record(job)) for job in jobs]

    jobs = [RunTrialJob(submitter=submitter(tmp_path), trial="a")]
    monkeypatch.setattr(cluster, "ended", ended)
    told = course(tmp_path, cluster, monkeypatch)
    assert [event.reason for event in told if isinstance(event, ClusterBusy)] == ["Priority", "Resources"]


def test_a_stopped_job_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Script(tmp_path, a=[lambda job: Unfinished("stopped"), leaves_record])
    course(tmp_path, cluster, monkeypatch)
    assert cluster.starts == {"a": []}


def test_a_preparation_that_was_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    settings = load(None, [SMALL])
    name = PrepareSweepJob(submitter=submitter(tmp_path), settings=settings).name
    cluster = Script(tmp_path, **{name: [lambda job: Unfinished("stopped")]})
    with pytest.raises(JobFailedError, match=r"the preparation was stopped .*\.log; the same command starts it again"):
        Elsewhere(tmp_path, cluster, (), lambda event: None).prepare(settings, ())


def test_a_machine_that_cannot_open_a_jobs_log_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Quick(submitter=submitter(tmp_path), trial="t")
    job.log.mkdir()
    finished = run_remote(job)
    assert isinstance(finished, Unfinished)
    assert str(job.log) in finished.problem


def test_a_mistake_of_the_user_stops_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Script(tmp_path, a=[lambda job: Unfinished("user_error", "other code")], b=[lambda job: None])
    with pytest.raises(UserError, match="other code"):
        course(tmp_path, cluster, monkeypatch)
    assert cluster.stopped == 1
