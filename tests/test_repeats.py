"""`run.repeats`: names, order, resuming with more of them, equal quality, and what the report says of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import howlow
from howlow import load_settings as load
from howlow.records import read_lines, read_records
from howlow.reporting import read_report
from howlow.reporting.words import sentences
from howlow.settings import expand, merge
from howlow.sweeping.sweep import ordered

SMALL: dict[str, Any] = {"model": "m", "task": {"name": "question_answering", "train": "a/b", "test": "c/d"}}


def plans_of(**changes: Any) -> Any:
    return expand(load(None, [merge(SMALL, changes)]))


# -- names and order ------------------------------------------------------------------------------------------------


def test_every_trial_is_planned_as_often_as_asked_and_the_first_keeps_its_name() -> None:
    grid = {"lora.rank": [1, 8], "training.batch_size": [2, 4]}
    once, thrice = plans_of(grid=grid), plans_of(grid=grid, run={"repeats": 3})
    names = [plan.name for plan in thrice]
    assert names[: len(once)] == [plan.name for plan in once]
    assert len(set(names)) == 3 * len(once)
    assert {"base-s0-repeat=3", "r0008-s0-training.batch_size=4-repeat=2"} <= set(names)
    assert set(Counter(plan.repeat for plan in thrice).values()) == {len(once)}
    assert {plan.settings.lora.rank for plan in thrice if plan.name.startswith("r0008")} == {8}


@settings(max_examples=20)
@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 3))
def test_repeats_are_passes_in_orders_of_their_own_and_more_of_them_leave_the_first_as_they_were(
    seed: int, repeats: int, more: int
) -> None:
    grid = {"lora.rank": [1, 2, 4, 8]}
    few = ordered(plans_of(grid=grid, run={"repeats": repeats}), seed)
    many = ordered(plans_of(grid=grid, run={"repeats": repeats + more}), seed)
    assert [plan.name for plan in many][: len(few)] == [plan.name for plan in few]
    assert [plan.repeat for plan in many] == sorted(plan.repeat for plan in many)
    assert len({plan.name for plan in many}) == len(many) == 5 * (repeats + more)


def test_base_is_shuffled_with_the_others_and_a_repeat_has_another_place() -> None:
    plans = plans_of(grid={"lora.rank": [1, 2, 4, 8]}, run={"repeats": 2})
    places = [[plan.name for plan in ordered(plans, seed)] for seed in range(20)]
    assert {names.index("base-s0") for names in places} == {0, 1, 2, 3, 4}
    assert any(names.index("base-s0") != names.index("base-s0-repeat=2") - 5 for names in places)
    assert places[3] == [plan.name for plan in ordered(plans, 3)]


# -- a sweep --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one rank that was begun with one measurement and went on with two."""
    out = tmp_path_factory.mktemp("repeated") / "out"
    changes = {"grid": {"lora.rank": [4]}, "meters": {"energy": "assumed", "assumed_power_w": 30.0}}
    for repeats in (1, 2):
        howlow.sweep(load(None, [merge(merge(tiny_table, changes), {"run": {"repeats": repeats}})]), out)
    return out


@pytest.mark.slow
def test_a_sweep_goes_on_with_more_repeats_and_does_not_forget_them(repeated: Path, tiny_table: dict[str, Any]) -> None:
    records = {record.trial: record for record in read_records(repeated)}
    assert set(records) == {"base-s0", "base-s0-repeat=2", "r0004-s0", "r0004-s0-repeat=2"}
    assert all(record.status == "done" for record in records.values())
    assert {record.repeat for name, record in records.items() if "repeat=" in name} == {2}
    assert "repeats = 2" in (repeated / "sweep.toml").read_text(encoding="utf-8")
    again = load(str(repeated / "sweep.toml"), [{"run": {"repeats": 1}}])
    assert not howlow.dry_run(again, repeated).to_run


@pytest.mark.slow
def test_repeats_of_one_seed_have_the_same_quality_bit_for_bit(repeated: Path) -> None:
    records = {record.trial: record for record in read_records(repeated)}
    for name in ("base-s0", "r0004-s0"):
        trials = [repeated / "trials" / trial for trial in (name, f"{name}-repeat=2")]
        assert records[name].scores == records[f"{name}-repeat=2"].scores
        assert len({(trial / "predictions.jsonl").read_bytes() for trial in trials}) == 1
        losses = [[line.get("loss") for line in read_lines(trial / "steps.jsonl")] for trial in trials]
        assert losses[0] == losses[1]
    weights = [
        (repeated / "trials" / trial / "adapter/adapter_model.safetensors").read_bytes()
        for trial in ("r0004-s0", "r0004-s0-repeat=2")
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_report_shows_how_far_repeats_differ(repeated: Path) -> None:
    report = read_report([repeated])
    text = " ".join(report.table_text().split())
    assert "repeats" in text
    assert "relative to rank 4 (1.00x), mean of 2 repeats" in text
    assert "means over repeats; ± of a value is their standard deviation" in text
    assert "seeds" not in text.partition("relative to")[0]
    rows = json.loads(report.json_text())["rows"]
    assert [(row["trial"], row["repeat"]) for row in rows] == [
        ("base-s0", 1),
        ("base-s0-repeat=2", 2),
        ("r0004-s0", 1),
        ("r0004-s0-repeat=2", 2),
    ]
    told = " ".join(sentences(report.comparison))
    spread = "Rank 4 was measured 2 times. Two settings measured as often are told apart if they differ by about"
    assert spread in told
    assert "one seed: no significance is claimed" in told
    assert spread in text
    assert "repeats_differ" not in {warning["kind"] for warning in report.comparison.results.warnings}
