"""Trials as elements of a SLURM job array: settings, signals, what is there after an interruption, and a real SLURM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slurm_cluster import Patient, slurm_running, why_not
from stand_ins import soon
from test_remote_jobs import SMALL, leaves_record, progress, submitter
from test_sweep import what_counts
from test_workers import end, settings_file, started

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.executors import slurm_array, slurm_queue
from howlow.executors.slurm_array import Element, SlurmArray, slurm_cluster
from howlow.executors.slurm_queue import Queued, SlurmQueue, comes_back
from howlow.jobs.event_file import append_event
from howlow.jobs.remote import RunTrialJob
from howlow.outcomes import Finished, Returned, StoppedError, Unfinished
from howlow.records import read_record
from howlow.settings import Settings, merge
from howlow.sweeping import detached
from howlow.sweeping.detached import submit_detached


def settings(**changes: Any) -> Settings:
    return load(None, [SMALL, {"run": {"executor": "slurm"}}, changes])


@pytest.fixture
def submitit() -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'howlow[slurm]')")


# -- what a user can mend -------------------------------------------------------------------------------------------


def test_without_submitit_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'run.executor = "slurm": .*; install it with pip install "howlow\[slurm\]"'):
        slurm_cluster(settings(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": {"device": "cuda:1"}}, 'SLURM chooses the cards of its jobs; set run.device = "cuda"'),
        ({"slurm": {"time_limit_min": 2}}, "slurm.notice_s = 120: slurm.time_limit_min = 2 is 120 s, and no time"),
        ({"slurm": {"options": ["reservation=x"]}}, "slurm.options: 'reservation=x' is no option; as sbatch takes it"),
        ({"slurm": {"options": ["--a b=x"]}}, "slurm.options: '--a b=x' is no option"),
        ({"run": {"device": "GPU-1a2b"}}, 'run.device = "GPU-1a2b" names one card, and SLURM chooses the cards'),
        ({"slurm": {"options": ["--time=5"]}}, "'--time=5': --time has a setting of its own; set slurm.time_limit_min"),
        ({"slurm": {"options": ["--cpus_per_task=2"]}}, "--cpus-per-task has a setting of its own"),
        ({"slurm": {"options": ["--array=0-3"]}}, "'--array=0-3': howlow needs --array as it sets it itself"),
        ({"slurm": {"options": ["--no-requeue"]}}, "howlow needs --no-requeue as it sets it itself"),
    ],
)
def test_a_setting_that_slurm_cannot_take_is_one_line(changes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        slurm_array._parameters(settings(**changes))


def test_settings_become_options_of_sbatch() -> None:
    asked = {
        "partition": "gpu",
        "gres": "gpu:h100:1",
        "cpus_per_trial": 8,
        "options": ["--reservation=x", "--oversubscribe"],
    }
    found = slurm_array._parameters(settings(slurm=asked, run={"workers": 3, "device": "cuda"}))
    assert found["slurm_partition"] == "gpu"
    assert (found["slurm_gres"], found["gpus_per_node"]) == ("gpu:h100:1", None)
    assert (found["cpus_per_task"], found["slurm_srun_args"]) == (8, ["--cpus-per-task=8"])
    assert found["slurm_array_parallelism"] == 3
    further = found["slurm_additional_parameters"]
    assert (further["requeue"], further["reservation"], further["oversubscribe"]) == (True, "x", True)
    for devices in (1, 4):
        asked_devices = settings(run={"device": "cuda", "devices_per_trial": devices})
        assert slurm_array._parameters(asked_devices)["gpus_per_node"] == devices


def answers(monkeypatch: pytest.MonkeyPatch, **commands: Any) -> list[tuple[str, ...]]:
    """Let SLURM's commands answer (exit code, stdout, stderr), or None: not at all."""
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> Any:
        asked.append(command)
        found = commands[command[0]]
        return found and SimpleNamespace(returncode=found[0], stdout=found[1], stderr=found[2])

    monkeypatch.setattr(slurm_queue, "_asked", answer)
    monkeypatch.setattr(slurm_queue.shutil, "which", lambda name: name)
    return asked


def test_a_slurm_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_queue.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r'run.executor = "slurm": there is no sbatch here; run howlow on a login node'):
        SlurmQueue().refuse_silent(None)
    for sinfo, words in (
        (None, "no answer; start slurmctld"),
        ((1, "", "x\nUnable to contact slurm controller\n"), "Unable to contact slurm controller; start slurmctld"),
        ((0, "low\nhigh\n", ""), 'slurm.partition = "gpu": SLURM has high, low'),
    ):
        answers(monkeypatch, sinfo=sinfo)
        with pytest.raises(UserError, match=words):
            SlurmQueue().refuse_silent("gpu")
    answers(monkeypatch, sinfo=(0, "low\ngpu\nhigh\n", ""))
    SlurmQueue().refuse_silent("gpu,low")


def test_the_queue_lists_elements_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, squeue=(0, "2_1|PENDING|Resources|\n2_0|RUNNING|None|n[1-2]\nwarning\n", ""))
    assert SlurmQueue().jobs() == {"2_1": Queued("PENDING", "Resources"), "2_0": Queued("RUNNING", "None", "n[1-2]")}
    answers(monkeypatch, squeue=None)
    assert SlurmQueue().jobs() is None


@pytest.mark.parametrize(
    ("scontrol", "most"),
    [
        ((0, "MaxArraySize            = 40\nMaxJobCount = 9\n", ""), 40),
        ((0, "MaxArraySize = 0\n", ""), 1),
        ((1, "", "no controller"), 1001),
        (None, 1001),
    ],
)
def test_an_array_is_no_longer_than_slurm_takes_it(monkeypatch: pytest.MonkeyPatch, scontrol: Any, most: int) -> None:
    answers(monkeypatch, scontrol=scontrol)
    assert SlurmQueue().largest_array() == most


# -- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "expected"), [("RUNNING", True), ("COMPLETING", False), ("", False)])
def test_a_cancelled_element_does_not_come_back(monkeypatch: pytest.MonkeyPatch, state: str, expected: bool) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    answers(monkeypatch, squeue=(0, f"{state}\n", ""))
    assert comes_back(signal.SIGTERM) is expected
    answers(monkeypatch, squeue=(1, "", "slurm_load_jobs error: Invalid job id specified"))
    assert comes_back(signal.SIGTERM) is False
    for squeue in (None, (1, "", "slurm_load_jobs error: Unable to contact slurm controller")):
        answers(monkeypatch, squeue=squeue)
        assert comes_back(signal.SIGUSR2) is None
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert not comes_back(signal.SIGTERM)
    assert comes_back(signal.SIGUSR2)


class Told(RunTrialJob):
    """Is told that its time is nearly up, or not, and saves its work."""

    entry = "test_slurm_array.told_entry"


def told_entry(job: Told, link: Any) -> int:
    if job.trial != "quiet":
        try:
            os.kill(os.getpid(), getattr(signal, job.trial))
        except KeyboardInterrupt:
            raise StoppedError from None
    return 0


class Requeued(list[int]):
    """The signals after which a job was requeued; `refusal`: what SLURM says instead."""

    refusal: Exception | None = None

    def requeue(self, number: int, _: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.append(number)


@pytest.fixture
def requeued() -> Iterator[Requeued]:
    """submitit's handlers, as they are in a job."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before, found = {one: signal.getsignal(one) for one in numbers}, Requeued()
    signal.signal(signal.SIGUSR2, found.requeue)
    yield found
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM", "quiet"])
def test_an_element_whose_time_is_up_is_requeued_and_leaves_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeued: Requeued, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm_array, "comes_back", lambda number: True)
    element = Element(Told(submitter=submitter(tmp_path), trial=name))
    element()
    assert requeued == ([] if name == "quiet" else [getattr(signal, name)])
    assert slurm_array._read_end(element.job.end) == (Returned(0) if name == "quiet" else None)


@pytest.mark.parametrize(
    ("back", "refusal"),
    [
        (True, subprocess.CalledProcessError(1, "scontrol")),
        (True, FileNotFoundError("scontrol")),
        (True, RuntimeError("Job not requeued because: timed-out too many times.")),
        (None, None),
    ],
)
def test_an_element_that_slurm_does_not_take_back_leaves_word_that_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeued: Requeued, back: bool | None, refusal: Exception | None
) -> None:
    """So whoever watches the sweep submits it again; without an end it would count as lost."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm_array, "comes_back", lambda number: back)
    requeued.refusal = refusal
    element = Element(Told(submitter=submitter(tmp_path), trial="SIGUSR2"))
    with pytest.raises(SystemExit, match="1"):
        element()
    assert requeued == []
    finished = slurm_array._read_end(element.job.end)
    assert isinstance(finished, Unfinished)
    assert finished.outcome == "stopped"
    assert (str(refusal) if refusal else "SLURM cannot be asked from this node") in finished.problem


def test_an_element_that_was_cancelled_leaves_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeued: Requeued
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm_array, "comes_back", lambda number: False)
    element = Element(Told(submitter=submitter(tmp_path), trial="SIGTERM"))
    element()
    assert (requeued, element.job.end.exists()) == ([], False)


def test_a_job_that_failed_keeps_what_depends_on_it_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeued: Requeued
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Told(submitter=submitter(tmp_path), trial="NO_SIGNAL")
    with pytest.raises(SystemExit, match="1"):
        Element(job)()
    finished = slurm_array._read_end(job.end)
    assert isinstance(finished, Unfinished)
    assert "NO_SIGNAL" in finished.problem
    assert requeued == []


# -- what was submitted ---------------------------------------------------------------------------------------------


class FakeQueue:
    """A queue whose jobs a test ends."""

    def __init__(self) -> None:
        self.there: dict[str, Queued] | None = {}
        self.cancelled: list[str] = []

    def refuse_silent(self, partition: str | None) -> None:
        pass

    def know(self, jobs: Any) -> None:
        assert self.there is not None
        self.there |= {job.job_id: Queued("PENDING") for job in jobs}

    def jobs(self) -> dict[str, Queued] | None:
        return self.there

    def cancel(self, ids: Sequence[str]) -> None:
        self.cancelled += ids
        self.there = {}


class FakeExecutor:
    """Gives ids."""

    def __init__(self) -> None:
        self.arrays: list[list[str]] = []
        self.parameters: dict[str, Any] = {}

    def update_parameters(self, **parameters: Any) -> None:
        self.parameters |= parameters

    def submit_array(self, elements: list[Element]) -> list[Any]:
        self.arrays.append([element.job.name for element in elements])
        return [SimpleNamespace(job_id=f"{len(self.arrays)}_{index}") for index in range(len(elements))]


def array(folder: Path, queue: FakeQueue, executor: FakeExecutor, most: int = 9) -> SlurmArray:
    return SlurmArray(executor, queue, submitter(folder).run_directory / ".howlow" / "remote", most, None)


def jobs(folder: Path, *names: str) -> list[RunTrialJob]:
    return [RunTrialJob(submitter=submitter(folder), trial=name) for name in names]


def test_jobs_of_an_earlier_command_are_not_submitted_again(tmp_path: Path) -> None:
    queue, executor = FakeQueue(), FakeExecutor()
    array(tmp_path, queue, executor).start(jobs(tmp_path, "a", "b", "c"))
    assert queue.there is not None
    del queue.there["1_1"]
    later = array(tmp_path, queue, executor)
    assert later.submitted() == {"a": "1_0", "c": "1_2"}
    later.start(jobs(tmp_path, "a", "b", "c"), after="5")
    assert executor.arrays == [["a", "b", "c"], ["b"]]
    assert executor.parameters == {"slurm_dependency": "afterok:5"}
    assert array(tmp_path, queue, executor).states().keys() == {"a", "b", "c"}
    later.stop()
    assert sorted(queue.cancelled) == ["1_0", "1_2", "2_0"]


@pytest.mark.parametrize("is_limited", [False, True])
def test_more_trials_than_an_array_takes_are_several_arrays(tmp_path: Path, is_limited: bool) -> None:
    """With `run.workers` one follows the other: each array would run so many trials at one time."""
    queue, executor, asked = FakeQueue(), FakeExecutor(), list[Any]()
    executor.update_parameters = lambda **parameters: asked.append(parameters["slurm_dependency"])  # type: ignore[method-assign]
    one = array(tmp_path, queue, executor)
    one.largest, one.is_limited = 2, is_limited
    one.start(jobs(tmp_path, "a", "b", "c", "d", "e"), after="7")
    assert executor.arrays == [["a", "b"], ["c", "d"], ["e"]]
    assert one.submitted().keys() == set("abcde")
    limits = ["afterok:7", "afterok:7,afterany:1", "afterok:7,afterany:2", "0"]
    assert asked == (limits if is_limited else ["afterok:7"] * 3)


def test_what_sbatch_refuses_is_one_line_and_nothing_else(
    submitit: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from submitit.core.utils import FailedJobError

    class Refusing(FakeExecutor):
        def submit_array(self, elements: list[Element]) -> list[Any]:
            said = "sbatch: unrecognized option '--nonsense=1'\nTry \"sbatch --help\" for more information"
            print(said, file=sys.stderr)  # as submitit does
            raise FailedJobError(said)

    with pytest.raises(UserError, match="SLURM refuses the job: sbatch: unrecognized option '--nonsense=1' Try"):
        array(tmp_path, FakeQueue(), Refusing()).start(jobs(tmp_path, "a"))
    assert capsys.readouterr().err == ""


def test_processes_start_when_there_is_room(tmp_path: Path) -> None:
    queue, executor = FakeQueue(), FakeExecutor()
    one = array(tmp_path, queue, executor, most=1)
    todo = jobs(tmp_path, "a", "b")
    one.start(todo)
    assert executor.arrays == [["a"]]
    leave(todo[0], Returned(0))
    assert one.ended() == [(todo[0], Returned(0))]
    assert executor.arrays == [["a"], ["b"]]


def leave(job: RunTrialJob, finished: Finished[Any]) -> None:
    job.end.write_text(slurm_array.end_as_file(finished).model_dump_json())


def test_a_job_that_slurm_has_forgotten_is_lost_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(slurm_array, "now_s", lambda: now_s)
    queue = FakeQueue()
    one, todo = array(tmp_path, queue, FakeExecutor()), jobs(tmp_path, "a", "b")
    one.start(todo)
    for there, at_s in (({"1_0": Queued("RUNNING")}, 10.0), (None, 25.0), ({"1_0": Queued("RUNNING")}, 29.0)):
        queue.there, now_s = there, at_s
        assert one.ended() == []
    now_s = 31.0
    ((job, finished),) = one.ended()
    assert job.name == "b"
    assert isinstance(finished, Unfinished)
    assert "SLURM job 1_1 was cancelled or lost" in finished.problem


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (["PENDING Resources", "PENDING Priority", "PENDING Priority"], "Resources, Priority"),
        (["RUNNING None", "PENDING Priority"], None),
        ([], None),
    ],
)
def test_a_queue_says_why_nothing_has_begun(tmp_path: Path, states: list[str], why: str | None) -> None:
    queue = FakeQueue()
    one = array(tmp_path, queue, FakeExecutor())
    one.start(jobs(tmp_path, *(f"t{index}" for index in range(len(states)))))
    queue.there = {f"1_{index}": Queued(*text.split()) for index, text in enumerate(states)}
    queue.there["9"] = Queued("PENDING", "of another sweep")
    one.ended()
    assert one.why_waiting() == why


def test_only_slurm_keeps_a_sweep_that_is_left(tmp_path: Path) -> None:
    for changes in ({"run": {"executor": "local"}}, {"slurm": {"through": "processes"}}):
        with pytest.raises(UserError, match=r"--detach: with run.executor = "):
            submit_detached(settings(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_detached_sweep_is_submitted_once_and_a_failure_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, executor, out = FakeQueue(), FakeExecutor(), tmp_path / "out"
    monkeypatch.setattr(detached, "slurm_cluster", lambda settings, folder: array(folder, queue, executor))
    asked = settings(grid={"lora.rank": [1, 2]})
    first = submit_detached(asked, out)
    (preparation,), trials = executor.arrays
    assert preparation.startswith("preparation-")
    assert sorted(trials) == ["base-s0", "r0001-s0", "r0002-s0"]
    assert executor.parameters == {"slurm_dependency": "afterok:1_0"}
    assert (first.submitted, first.is_over) == (3, False)
    assert submit_detached(asked, out).submitted == 0
    queue.there = {}
    (out / ".howlow" / "remote" / f"{preparation}.end.json").write_text(
        slurm_array.end_as_file(Unfinished("user_error", "no model m")).model_dump_json()
    )
    with pytest.raises(UserError, match="no model m"):
        submit_detached(asked, out)
    assert submit_detached(asked, out).submitted == 3
    for name in trials:
        leaves_record(RunTrialJob(submitter=submitter(out), trial=name))
    assert submit_detached(asked, out).is_over


def test_the_state_of_a_trial_says_where_it_runs_or_why_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, executor, out = FakeQueue(), FakeExecutor(), tmp_path / "out"
    monkeypatch.setattr(detached, "slurm_cluster", lambda settings, folder: array(folder, queue, executor))
    asked = settings(grid={"lora.rank": [1, 2]})
    submit_detached(asked, out)
    assert queue.there is not None
    ids = dict(zip(executor.arrays[1], [one for one in queue.there if one.startswith("2_")], strict=True))
    queue.there[ids["base-s0"]] = Queued("RUNNING", "None", "n7")
    queue.there[ids["r0001-s0"]] = Queued("PENDING", "Resources")
    queue.there[ids["r0002-s0"]] = Queued("PENDING", "Dependency")
    append_event(RunTrialJob(submitter=submitter(out), trial="base-s0").events, progress(1))
    states = {one.trial: (one.state, one.detail) for one in submit_detached(asked, out).states}
    assert states == {
        "base-s0": ("running", "on n7, train 1/2"),
        "r0001-s0": ("submitted", "Resources"),
        "r0002-s0": ("submitted", "waits for the preparation"),
    }


# -- a real SLURM ---------------------------------------------------------------------------------------------------

REAL = pytest.mark.skipif(why_not() is not None, reason=f"no SLURM can be started here: {why_not()}")


@REAL
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_signal_brings_an_element_back_and_cancelling_ends_it(
    submitit: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", here)
    with slurm_running(tmp_path / "slurm", cores=2) as environment:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, environment[name])
        asked = settings(slurm={"partition": "low", "cpus_per_trial": 1})
        elements = slurm_cluster(asked, out)
        back, cancelled = (Patient(submitter=submitter(out), trial=name) for name in ("back", "cancelled"))
        elements.start([back, cancelled])
        soon(lambda: (out / "begun-back").exists() and (out / "begun-cancelled").exists(), 400)
        ids = elements.submitted()
        subprocess.run(["scancel", "--signal=USR1", ids["back"]], check=True)
        soon(lambda: elements.states()["back"].state == "PENDING", 60)
        time.sleep(_CLEANED_UP_S)
        soon(lambda: starts_now(ids["back"]) and bool(found := elements.ended()) and is_back(found, back), 400)
        assert (out / "saved-back").exists()
        elements.stop()
        assert (out / "saved-cancelled").exists()
        assert not cancelled.end.exists()
        assert elements.submitted() == {}
        with pytest.raises(UserError, match=r"slurm.partition = .gpu.: SLURM has high, low"):
            slurm_cluster(settings(slurm={"partition": "gpu"}), out)
        options = settings(slurm={"options": ["--nodelist=nowhere"]})
        with pytest.raises(UserError, match=r"SLURM refuses the job: sbatch: error: .*; change"):
            slurm_cluster(options, out).start([Patient(submitter=submitter(out), trial="refused")])


_CLEANED_UP_S = 5.0  # a job that starts in the second of its requeuing is killed: "job credential revoked"


def starts_now(element: str) -> bool:
    """SLURM starts a requeued job after two minutes, unless it is told to start it at once."""
    subprocess.run(["scontrol", "update", f"JobId={element}", "StartTime=now"], check=False, capture_output=True)
    return True


def is_back(found: list[Any], job: Patient) -> bool:
    assert found == [(job, Returned(0))]
    return True


# -- sweeps ---------------------------------------------------------------------------------------------------------

ONE_TRIAL = {
    "grid": {"lora.rank": [1]},
    "baselines": [],
    "training": {"epochs": 10, "checkpoint_every_s": 1000.0},
    "run": {"executor": "slurm"},
}


@pytest.fixture
def one_trial(
    submitit: None, tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Makes the settings of a sweep of the trial, with those of [slurm]; it runs with one thread, as `alone` did."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda **slurm: settings_file(tmp_path, merge(tiny_table, ONE_TRIAL), slurm=slurm)


def has_come_back(out: Path, alone: Path) -> None:
    """The trial was interrupted once, and all that counts is as without SLURM."""
    assert what_counts(out) == what_counts(alone)
    record = read_record(out / "trials" / "r0001-s0")
    assert record is not None
    assert record.resumed == 1


@pytest.fixture(scope="module")
def alone(tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trial on this machine."""
    folder = tmp_path_factory.mktemp("alone")
    asked = settings_file(folder, merge(tiny_table, ONE_TRIAL), run={"executor": "local"})
    process = started("sweep", asked, "--out", folder / "out", OMP_NUM_THREADS="1")
    try:
        shown, err = process.communicate(timeout=400)
        assert process.returncode == 0, shown + err
    finally:
        end(process)
    return folder / "out"


def trains(out: Path) -> bool:
    return (out / "trials" / "r0001-s0" / "steps.jsonl").exists()


def told_to_save(out: Path) -> bool:
    return (out / "trials" / "r0001-s0" / "checkpoint" / "state.json").exists()


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_trial_whose_time_is_up_comes_back_in_processes_of_this_machine(
    one_trial: Callable[..., Path], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sweep = started("sweep", one_trial(through="processes"), "--out", out)
    try:
        soon(lambda: trains(out), 400)
        ids = SlurmArray(None, FakeQueue(), out / ".howlow" / "remote", 1, None)._ids.read_text()
        os.kill(task_of(int(ids.split('"r0001-s0": "')[1].split('"')[0])), signal.SIGUSR2)
        shown, err = sweep.communicate(timeout=400)
        assert sweep.returncode == 0, shown + err
    finally:
        end(sweep)
    has_come_back(out, alone)
    assert "its process ended early; it resumes on" in err


def task_of(controller: int) -> int:
    """The process that submitit's local controller runs a job in."""
    import psutil

    (task,) = psutil.Process(controller).children()
    return task.pid


@REAL
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_detached_sweep_on_a_real_slurm(one_trial: Callable[..., Path], alone: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", one_trial(partition="low", cpus_per_trial=1)
    with slurm_running(tmp_path / "slurm", cores=1) as environment:

        def howlow(*arguments: str | Path) -> str:
            process = started(*arguments, **environment)
            try:
                shown, err = process.communicate(timeout=400)
                assert process.returncode == 0, shown + err
            finally:
                end(process)
            return shown

        first = howlow("sweep", asked, "--out", out, "--detach")
        assert "1 trials submitted now, 0 of 1 ended" in first
        assert "r0001-s0  submitted" in first
        soon(lambda: trains(out), 400)
        again = howlow("sweep", asked, "--out", out, "--detach")
        assert "0 trials submitted now" in again or "written" in again
        preempt(environment, out)
        shown = howlow("sweep", asked, "--out", out)
        assert "recommend" in shown or "rank" in shown
    has_come_back(out, alone)


def preempt(environment: dict[str, str], out: Path) -> None:
    """Tell the trial's element that its time is up; once it is back in the queue, let it start at once."""
    queue = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    running = next(line.split()[0] for line in queue.stdout.splitlines() if line.endswith("RUNNING"))
    subprocess.run(["scancel", "--signal=USR1", running], env=environment, check=True)
    soon(lambda: told_to_save(out), 200)
