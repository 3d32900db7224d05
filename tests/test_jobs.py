"""What crosses a process border is frozen, typed, and equal to what its own JSON gives back."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from test_run_directory import DATA, ENVIRONMENT

from howlow import jobs
from howlow import load_settings as load
from howlow.batch_search.driver import _Search
from howlow.jobs import (
    BudgetSet,
    IdleAbsent,
    JobEvent,
    MeasureJob,
    MemoryBudget,
    MemoryLine,
    Probe,
    ProbeBegun,
    ProbeEnded,
    ProbeJob,
    ProbesJudged,
    RankMeasured,
    RankMemory,
    RankProbes,
    StepProgress,
    SweepEvent,
    TrialEnded,
    TrialJob,
    TrialProbed,
)
from howlow.records import LayoutChoice, Record
from howlow.settings import Settings, expand, merge

BUDGET = MemoryBudget(limit_bytes=10, budget_bytes=9, enforced_bytes=None, limit="here", memory="VmData")
PROBES = (Probe(1, 160, 8, True), Probe(2, 320, None, False))
MEMORY = RankMemory(4, MemoryLine(0.1, 1 / 3))
EVENTS = [
    StepProgress(phase="train", step=1, steps=3, loss=0.1 + 0.2),
    BudgetSet(budget=BUDGET),
    ProbesJudged(probes=PROBES),
    RankMeasured(known=MEMORY),
    ProbeBegun(batch=2, load=320),
    ProbeEnded(probe=PROBES[1]),
]


@pytest.fixture
def settings(tiny_table: dict[str, Any]) -> Settings:
    changes = {"grid": {"training.batch_size": ["max", 1], "lora.target_modules": [["q_proj"], ["k_proj", "v_proj"]]}}
    return load(None, [merge(tiny_table, changes)])


def trial_job(settings: Settings) -> TrialJob:
    plan = expand(settings)[-1]
    return TrialJob(
        name=plan.name,
        kind=plan.kind,
        rank=plan.rank,
        seed=plan.seed,
        axes=plan.axes,
        settings=plan.settings,
        data_folder=".howlow/prepared-1",
        data=DATA,
        environment=ENVIRONMENT,
        layout=LayoutChoice(layout="shared", kernel="sdpa"),
        is_bounded=True,
    )


def test_jobs_survive_json_and_pickle(settings: Settings) -> None:
    trial = trial_job(settings)
    found: list[BaseModel] = [
        trial,
        MeasureJob(trial=trial, run_directory=Path("out"), idle=IdleAbsent(reason="no sensor"), claim=3),
        jobs.PrepareJob(settings=settings, adapters=((4, ("q_proj",)),), heads=("all",), folder=Path("x")),
        jobs.LayoutJob(settings=settings, data_folder=Path("data")),
        jobs.IdleJob(settings=settings, rest_s=0.1),
        jobs.EnvironmentJob(device="cpu"),
        jobs.ModelJob(settings=settings),
        ProbeJob(
            setting="training.batch_size",
            kind="lora",
            settings=settings,
            folder=Path("probe"),
            data_folder=Path("data"),
            layout=LayoutChoice(layout="padded"),
            budget=BUDGET,
            probes=PROBES,
            others=(RankProbes(MEMORY, PROBES),),
        ),
    ]
    for job in found:
        assert type(job).model_validate_json(job.model_dump_json()) == job
        assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_events_of_a_job_survive_json_and_name_themselves(event: Any) -> None:
    assert TypeAdapter(JobEvent).validate_json(event.model_dump_json()) == event


def test_events_of_a_sweep_survive_json(settings: Settings) -> None:
    given: dict[str, Any] = {"environment": None, "model": None, "data": None, "rank": 4, "seed": 0, "axes": {}}
    record = Record(trial="t", kind="lora", status="failed", settings=expand(settings)[-1].settings, **given)
    events: list[Any] = [
        jobs.Preparing(),
        jobs.SweepPrepared(total=2, done=1),
        jobs.TrialStarted(trial="t"),
        jobs.TrialWaits(trial="t", reason="cooling"),
        jobs.ClusterBusy(reason="Resources"),
        TrialProbed(trial="t", setting="inference.batch_size", probe=PROBES[0]),
        jobs.TrialProgress(trial="t", progress=StepProgress(phase="train", step=1, steps=2)),
        jobs.TrialElsewhere(trial="t", holder="process 1"),
        TrialEnded(trial="t", record=record),
    ]
    for event in events:
        assert TypeAdapter(SweepEvent).validate_json(event.model_dump_json()) == event


def test_an_unknown_event_is_an_error(settings: Settings) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(JobEvent).validate_json('{"event": "limit", "limit": 3}')
    search = _Search(trial_job(settings), "training.batch_size", settings)
    for event in EVENTS[1:]:
        search.hear(event)
    assert (search.budget, search.known, search.begun) == (BUDGET, MEMORY, None)
    assert search.probes == (*PROBES, PROBES[1])
    with pytest.raises(AssertionError, match="does not report"):
        search.hear(EVENTS[0])


def test_jobs_and_events_are_frozen() -> None:
    with pytest.raises(ValidationError):
        EVENTS[0].step = 2  # type: ignore[union-attr, misc]
