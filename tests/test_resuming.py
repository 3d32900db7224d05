"""Whatever moment a trial dies at, going on it leaves what an unbroken one leaves: no finished phase is lost."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from howlow import load_settings as load
from howlow.jobs import JobEvent, Link, MeasureJob, StepProgress, TrialJob
from howlow.memory.heap import Heap
from howlow.meters.machine import choose_device, environment
from howlow.meters.session import Session
from howlow.outcomes import StoppedError
from howlow.records import LayoutChoice, Record, WarningKind, read_lines, read_record
from howlow.settings import expand, merge
from howlow.trial import fine_tuning, preparation, scoring
from howlow.trial.entries import trial_entry
from howlow.trial.prepared import read_prepared

# A killed process leaves its files to the system.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class KilledError(BaseException):
    """Stands for a kill -9: nothing of ours catches it."""


class Stopper:
    """A sweep that kills or stops its trial behind a given step of a phase."""

    def __init__(self, phase: str = "", step: int = -1, stops: bool = False) -> None:
        self.phase, self.step, self.stops, self.stop_requested = phase, step, stops, False

    def report(self, event: JobEvent) -> None:
        assert isinstance(event, StepProgress)
        if (event.phase, event.step) == (self.phase, self.step):
            self.stop_requested = self.stops
            if not self.stops:
                raise KilledError


@pytest.fixture(autouse=True)
def told_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howlow.trial.state._SECONDS_BETWEEN_REPORTS", 0.0)


@pytest.fixture
def table(tiny_table: dict[str, Any]) -> dict[str, Any]:
    """Six steps of evaluation and of generation, a checkpoint behind each."""
    changes = {"training": {"checkpoint_every_s": 1e-9}, "inference": {"batch_size": 2}, "grid": {"lora.rank": [1]}}
    return merge(tiny_table, changes)


def measure_job(
    table: dict[str, Any],
    folder: Path,
    kind: str = "lora",
    is_bounded: bool = False,
    layout: LayoutChoice | None = None,
) -> MeasureJob:
    """The job of one trial, its data prepared."""
    plan = next(plan for plan in expand(load(None, [table])) if plan.kind == kind)
    data, trial = folder / "data", folder / "trials" / plan.name
    trial.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        preparation.prepare(plan.settings, [], data)
    job = TrialJob(
        name=plan.name,
        kind=plan.kind,
        rank=plan.rank,
        seed=plan.seed,
        axes={},
        settings=plan.settings,
        data_folder="data",
        data=read_prepared(data).data,
        environment=environment(choose_device("cpu")),
        layout=layout or LayoutChoice(layout="padded"),
        is_bounded=is_bounded,
    )
    return MeasureJob(trial=job, run_directory=folder)


def run(table: dict[str, Any], folder: Path, link: Link, *given: Any, **options: Any) -> Record | None:
    """Run a trial (`measure_job`) as a worker does, its two parts in one process here."""
    job = measure_job(table, folder, *given, **options)
    with suppress(KilledError, StoppedError):
        if trial_entry(job, link) is None and not link.stop_requested:
            trial_entry(job.model_copy(update={"continues": True}), link)
    return read_record(folder / job.trial.folder)


def what_counts(folder: Path, record: Record) -> dict[str, Any]:
    steps = [
        (s["phase"], s["step"], s["samples"]) for s in read_lines(folder / "trials" / record.trial / "steps.jsonl")
    ]
    predictions = list(read_lines(folder / "trials" / record.trial / "predictions.jsonl"))
    return {"steps": steps, "predictions": predictions, "scores": record.scores}


@pytest.mark.parametrize("kind", ["lora", "base"])
@pytest.mark.parametrize("stops", [True, False], ids=["stopped", "killed"])
@pytest.mark.parametrize(("phase", "step"), [("evaluate", 2), ("evaluate", 6), ("generate", 1), ("generate", 6)])
def test_the_phases_of_an_interrupted_inference_are_whole(
    table: dict[str, Any], tmp_path: Path, phase: str, step: int, stops: bool, kind: str
) -> None:
    unbroken = run(table, tmp_path / "unbroken", Stopper(), kind)
    interrupted = run(table, tmp_path / "ours", Stopper(phase, step, stops), kind)
    record = interrupted or run(table, tmp_path / "ours", Stopper(), kind)
    assert record is not None
    assert unbroken is not None
    assert what_counts(tmp_path / "ours", record) == what_counts(tmp_path / "unbroken", unbroken)
    assert [phase.phase for phase in record.phases] == [phase.phase for phase in unbroken.phases]
    assert record.resumed == (0 if interrupted else 1)
    for name in ("evaluate", "generate"):
        ours = record.phase(name)
        assert ours is not None
        steps = [
            line
            for line in read_lines(tmp_path / "ours" / "trials" / record.trial / "steps.jsonl")
            if line["phase"] == name
        ]
        timed = sum(line["duration_s"] for line in steps)
        assert ours.duration_s >= timed, "the time of both parts counts"
        measured = [line for line in steps if line["part"] == "measured"]
        assert ours.measured_samples == sum(line["samples"] for line in measured)


def test_what_was_seen_before_an_interruption_is_in_the_record(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "observed", lambda *_: [(WarningKind.THROTTLED, "too hot")])
    assert run(table, tmp_path, Stopper("train", 4)) is None
    monkeypatch.setattr(Session, "observed", lambda *_: [])
    record = run(table, tmp_path, Stopper())
    assert record is not None
    found = [warning.detail for warning in record.warnings if warning.kind == WarningKind.THROTTLED]
    assert found == ["too hot (before an interruption)"]


def test_behind_the_last_batch_nothing_is_run_again(table: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    def die(*_: Any) -> None:
        raise KilledError

    monkeypatch.setattr("howlow.trial.run.write_record", die)
    assert run(table, tmp_path, Stopper()) is None
    monkeypatch.undo()
    before = (tmp_path / "trials/r0001-s0/steps.jsonl").read_text()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("inference ran again")

    monkeypatch.setattr("howlow.trial.followers.evaluation.evaluate", fail)
    monkeypatch.setattr(scoring.generation, "generate", fail)
    record = run(table, tmp_path, Stopper())
    assert record is not None
    assert (record.status, record.error) == ("done", None)
    assert (tmp_path / "trials/r0001-s0/steps.jsonl").read_text() == before
    assert record.phase("evaluate") is not None
    assert record.phase("generate") is not None


def test_a_checkpoint_says_whose_it_is(table: dict[str, Any], tmp_path: Path) -> None:
    run(table, tmp_path, Stopper("train", 2))
    identity = json.loads((tmp_path / "trials/r0001-s0/checkpoint/state.json").read_text())["identity"]
    prepared = read_prepared(tmp_path / "data")
    assert identity["data"] == prepared.data.model_dump(mode="json")
    assert set(identity["environment"]["versions"]) >= {"howlow", "torch", "transformers", "peft"}
    assert identity["settings"]["training"]["learning_rate"] == 1e-3


def test_a_trial_whose_memory_has_become_bounded_begins_afresh(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("howlow.trial.setup.bound_heap", lambda: Heap("bounded", 32))  # it changes the process for good
    assert run(table, tmp_path, Stopper("train", 4)) is None
    record = run(table, tmp_path, Stopper(), is_bounded=True)
    assert record is not None
    assert record.resumed == 0


def test_stopped_in_the_last_step_the_training_is_kept(table: dict[str, Any], tmp_path: Path) -> None:
    patient = merge(table, {"training": {"checkpoint_every_s": 1000.0}})
    assert run(patient, tmp_path, Stopper("train", 6, stops=True)) is None
    assert json.loads((tmp_path / "trials/r0001-s0/checkpoint/state.json").read_text())["position"] == "inference"
    record = run(patient, tmp_path, Stopper())
    assert record is not None
    assert [phase.phase for phase in record.phases] == ["load", "train", "evaluate", "generate"]


def test_skipped_steps_from_before_a_resume_are_counted(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = fine_tuning.Trainer.outcome

    def skip_the_first(self: Any, moved: Any) -> Any:
        outcome = read(self, moved)
        is_first = self.steps_done == 1
        return type(outcome)(outcome.loss, outcome.gradient_norm, is_first)

    monkeypatch.setattr(fine_tuning.Trainer, "outcome", skip_the_first)
    assert run(table, tmp_path, Stopper("train", 3)) is None
    record = run(table, tmp_path, Stopper())
    assert record is not None
    skipped = [warning.detail for warning in record.warnings if warning.kind == WarningKind.STEPS_SKIPPED]
    assert skipped == ["1 of 6 steps skipped"]


def test_a_short_phase_is_named(table: dict[str, Any], tmp_path: Path) -> None:
    record = run(merge(table, {"inference": {"batch_size": 8}}), tmp_path, Stopper())
    assert record is not None
    details = {warning.detail for warning in record.warnings if "burn-in" in warning.detail}
    assert details == {
        "evaluate: 1 instead of 2 burn-in steps in a phase of 2",
        "generate: 1 instead of 2 burn-in steps in a phase of 2",
    }


# -- from fine-tuning to inference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("adapter", ["attached", "merged"])
def test_a_planned_change_of_the_process_is_no_resumption_and_its_cost_is_recorded(
    table: dict[str, Any], tmp_path: Path, kind: str, adapter: str
) -> None:
    changes = {"baselines": ["full"], "inference": {"adapter": adapter}}
    record = run(merge(table, changes), tmp_path, Stopper(), kind)
    assert record is not None
    assert (record.status, record.resumed) == ("done", 0)
    assert WarningKind.RESUMED not in {warning.kind for warning in record.warnings}
    assert record.second_load is not None
    assert record.handover_s is not None
    assert record.total_s is not None
    assert 0 < record.second_load.duration_s < record.handover_s < record.total_s
    trained, loaded, evaluated = record.phase("train"), record.second_load, record.phase("evaluate")
    assert trained is not None
    assert evaluated is not None
    assert trained.start_s + trained.duration_s <= loaded.start_s, "the trial's time goes on"
    assert loaded.start_s + loaded.duration_s <= evaluated.start_s
    times = [line["time_s"] for line in read_lines(tmp_path / "trials" / record.trial / "timeline.jsonl")]
    assert times == sorted(times)
    assert record.meters is not None
    assert record.meters.readings == len(times)


def test_base_has_one_process(table: dict[str, Any], tmp_path: Path) -> None:
    link = Stopper()
    job = measure_job(merge(table, {"baselines": ["base"]}), tmp_path, "base")
    assert trial_entry(job, link) == "done"
    record = read_record(tmp_path / job.trial.folder)
    assert record is not None
    assert (record.second_load, record.handover_s) == (None, None)


def test_killed_between_its_two_processes_a_trial_resumes_without_training(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(table, tmp_path / "unbroken", Stopper())
    assert trial_entry(measure_job(table, tmp_path / "ours"), Stopper()) is None

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("howlow.trial.method.fine_tune", fail)
    record = run(table, tmp_path / "ours", Stopper())
    assert record is not None
    assert unbroken is not None
    assert what_counts(tmp_path / "ours", record) == what_counts(tmp_path / "unbroken", unbroken)
    assert (record.resumed, record.handover_s) == (1, None)
    assert record.second_load is not None


def test_what_was_seen_in_one_process_is_about_its_phases_and_what_both_saw_about_the_trial(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter(["hot while training", "hot while writing"])
    both = (WarningKind.POWER_CAPPED, "limited to 9 W")
    monkeypatch.setattr(Session, "_findings", lambda *_: [(WarningKind.THROTTLED, next(seen)), both])
    monkeypatch.setattr(Session, "observed", lambda *_: [])
    record = run(table, tmp_path, Stopper())
    assert record is not None
    kinds = (WarningKind.THROTTLED, WarningKind.POWER_CAPPED)
    found = {(one.detail, one.phase) for one in record.warnings if one.kind in kinds}
    assert found == {("hot while training", "train"), ("hot while writing", "generate"), ("limited to 9 W", None)}


def test_the_checkpoints_tensors_are_let_go_before_inference(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list[int]()
    score = scoring.Scorer.score

    def look(self: scoring.Scorer) -> Any:
        left.append(len(self.saved.tensors) if self.saved else -1)
        return score(self)

    monkeypatch.setattr(scoring.Scorer, "score", look)
    assert run(table, tmp_path, Stopper()) is not None
    assert left == [0]
