"""Which library multiplies is decided once for all trials of a sweep, also when it is started again, and recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resuming import Stopper, run
from test_run_directory import DATA, ENVIRONMENT

from howlow import load_settings as load
from howlow.engine.cpu import gemm
from howlow.jobs import LayoutJob, PreparationReport
from howlow.outcomes import Returned
from howlow.records import GemmRecord, LayoutChoice, Provenance, Resolved, read_lines
from howlow.records.identity import identity
from howlow.settings import Settings, TrialPlan, expand, layout_key, merge, preparation_key
from howlow.sweeping.setup import Preparation, choose_layouts
from howlow.trial.layout_choice import choose
from howlow.trial.prepared import read_prepared

REPORT = PreparationReport(
    data=DATA,
    warnings=(),
    tokenizer="t",
    architecture="a",
    total_parameters=1,
    adapter_parameters=(),
    environment=ENVIRONMENT,
)


def one(of: Any, library: Any, gflops: float = 1.0) -> GemmRecord:
    return GemmRecord(
        of=of, in_features=4, out_features=3, rows=9, library=library, onednn_gflops=gflops, blas_gflops=gflops
    )


class Choosing:
    """Runs the jobs of a preparation: each finds other libraries, and keeps those that it is given."""

    def __init__(self, *found: GemmRecord) -> None:
        self.found, self.jobs = found, list[LayoutJob]()

    def run(self, job: Any, *_: Any) -> Returned[LayoutChoice]:
        self.jobs.append(job)
        kept = {gemm.product: gemm for gemm in self.found} | {gemm.product: gemm for gemm in job.gemms}
        return Returned(LayoutChoice(layout="padded", gemms=tuple(kept.values())))


@pytest.fixture
def plans(tiny_table: dict[str, Any]) -> list[TrialPlan]:
    table = merge(tiny_table, {"grid": {"training.layout": ["padded", "packed"]}})
    return expand(load(None, [table]))


def choices(runner: Any, plans: list[TrialPlan], pending: list[TrialPlan], folder: Path, *left: Any) -> Any:
    prepared = {preparation_key(plan.settings): Preparation(folder / "data", REPORT) for plan in plans}
    return choose_layouts(runner, plans, pending, prepared, folder, left)


def left_with(plan: TrialPlan, *gemms: GemmRecord) -> Provenance:
    resolved = Resolved(gemms=gemms or None)
    return Provenance(trial=plan.name, kind=plan.kind, axes=plan.axes, settings=plan.settings, resolved=resolved)


def test_trials_with_other_layouts_have_the_same_libraries(plans: list[TrialPlan], tmp_path: Path):
    runner = Choosing(one("forward", "blas"))
    found = choices(runner, plans, plans, tmp_path)
    assert len(found) == len(runner.jobs) == 2
    assert [job.gemms for job in runner.jobs] == [(), (one("forward", "blas"),)]
    assert len({choice.gemms for choice in found.values()}) == 1


def test_a_later_start_keeps_them(plans: list[TrialPlan], tmp_path: Path):
    first, key = plans[-1], layout_key(plans[-1].settings)
    earlier = choices(Choosing(one("forward", "blas")), plans, [first], tmp_path)
    runner = Choosing(one("forward", "onednn"), one("backward", "onednn"))
    later = choices(runner, plans, [plan for plan in plans if plan is not first] + [first], tmp_path)
    assert later[key] == earlier[key]
    assert {choice.gemms[0] for choice in later.values()} == {one("forward", "blas")}
    assert len(runner.jobs) == 1


def test_what_trials_ran_with_wins_where_the_choice_is_lost(plans: list[TrialPlan], tmp_path: Path):
    left = left_with(plans[0]), left_with(plans[1], one("forward", "blas"))
    found = choices(Choosing(one("forward", "onednn")), plans, plans, tmp_path, *left)
    assert {choice.gemms for choice in found.values()} == {(one("forward", "blas"),)}


def test_costs_with_other_libraries_are_not_compared_and_scores_are(plans: list[TrialPlan]):
    by_blas, faster = left_with(plans[0], one("forward", "blas")), left_with(plans[0], one("forward", "blas", 2.0))
    by_onednn = left_with(plans[0], one("forward", "onednn"))
    assert identity(by_blas).quality == identity(by_onednn).quality
    assert identity(by_blas).costs == identity(faster).costs
    differing = {key for key, value in identity(by_blas).costs.items() if identity(by_onednn).costs[key] != value}
    assert differing == {"resolved.gemms"}


# -- in a trial -----------------------------------------------------------------------------------------------------


def chosen(table: dict[str, Any], folder: Path, known: tuple[GemmRecord, ...] = ()) -> LayoutChoice:
    from howlow.trial import preparation

    settings: Settings = expand(load(None, [table]))[-1].settings
    if not (folder / "data").exists():
        preparation.prepare(settings, [], folder / "data")
    prepared = read_prepared(folder / "data")
    return choose(settings, prepared.train, prepared.test, known)


@pytest.mark.usefixtures("one_thread")
def test_libraries_are_chosen_on_the_loaded_model(
    tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert chosen(tiny_table, tmp_path).gemms == ()  # too small to be timed
    monkeypatch.setattr(gemm, "FEWEST_FLOPS", 0.0)
    found = chosen(tiny_table, tmp_path).gemms
    shapes = {(32, 32), (32, 16), (32, 48), (48, 32), (32, 264)}
    assert {(one.in_features, one.out_features) for one in found} == shapes
    assert len(found) == 2 * len(shapes)
    assert all(one.onednn_gflops and one.blas_gflops for one in found)
    other = tuple(one.model_copy(update={"library": "blas", "rows": 7}) for one in found)
    assert chosen(tiny_table, tmp_path, other).gemms == other
    for asked in ("onednn", "blas"):
        named = chosen(merge(tiny_table, {"run": {"gemm_library": asked}}), tmp_path, other).gemms
        assert {(one.library, one.onednn_gflops) for one in named} == {(asked, None)}
    assert chosen(merge(tiny_table, {"training": {"precision": "bf16"}}), tmp_path).gemms == ()


def losses(folder: Path, name: str) -> list[float]:
    return [line.get("loss") for line in read_lines(folder / "trials" / name / "steps.jsonl")]


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_trial_multiplies_as_before(tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: Any):
    """To the bit; and its record says by which library."""
    changes = {"training": {"checkpoint_every_s": 1e-9}, "grid": {"lora.rank": [1]}, "run": {"gemm_library": "blas"}}
    table, calls = merge(tiny_table, changes), 0
    choice, own = chosen(table, tmp_path), torch.nn.functional.linear

    def linear(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return own(*given)

    monkeypatch.setattr(gemm.functional, "linear", linear)
    monkeypatch.setattr("howlow.trial.state._SECONDS_BETWEEN_REPORTS", 0.0)
    unbroken = run(table, tmp_path / "unbroken", Stopper(), layout=choice)
    assert unbroken is not None
    assert calls
    assert run(table, tmp_path / "broken", Stopper("train", 2), layout=choice) is None
    resumed = run(table, tmp_path / "broken", Stopper(), layout=choice)
    assert resumed is not None
    assert resumed.resumed == 1
    assert losses(tmp_path / "broken", resumed.trial) == losses(tmp_path / "unbroken", unbroken.trial)
    assert resumed.resolved.gemms == unbroken.resolved.gemms == choice.gemms
    document = json.loads((tmp_path / "broken" / "trials" / resumed.trial / "record.json").read_text())
    assert {one["library"] for one in document["resolved"]["gemms"]} == {"blas"}
