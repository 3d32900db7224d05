"""What a comparison of ranks leaves open: scalings and learning rates that were not tried, large steps, attention."""

from pathlib import Path
from typing import Any

import pytest
import test_rows

from howlow import load_settings as load
from howlow.analysis.rows import load_results
from howlow.records import Scores
from howlow.settings import merge
from howlow.sweeping.sweep import sweep

RATES = "training.learning_rate"


def write_trial(folder: Path, rank: int | None, **fields: Any) -> None:
    test_rows.write_trial(folder, rank, **({"scores": Scores(f1=0.5, loss=1.0)} | fields))


def told(folder: Path) -> dict[tuple[str, str], str]:
    """(trial, kind) -> detail, of the warnings about what was not tried."""
    kinds = ("alpha_grows_with_rank", "other_settings_untried")
    found = load_results(folder, accept_different=["lora.alpha", RATES]).trial_warnings
    return {(one.trial, one.kind): one.detail for one in found if one.kind in kinds}


def test_one_scaling_and_one_rate_for_all_ranks_are_told(tmp_path: Path) -> None:
    for rank in (1, 8):
        write_trial(tmp_path, rank, settings={"lora.alpha": "2r"})
    write_trial(tmp_path, None, kind="base")
    write_trial(tmp_path, 64, status="out_of_memory", error="no memory", scores=Scores())
    found = told(tmp_path)
    kinds = {"alpha_grows_with_rank", "other_settings_untried"}
    assert set(found) == {(trial, kind) for trial in ("r0001-s0", "r0008-s0") for kind in kinds}
    assert found["r0001-s0", "alpha_grows_with_rank"] == (
        "lora.alpha = 2r grows with the rank, and all ranks have one learning rate (5e-05)"
    )
    assert found["r0008-s0", "other_settings_untried"] == (
        "all ranks were trained with one scaling (lora.alpha = 2r, lora.scaling = standard) and one learning rate "
        "(5e-05); whether others suit some ranks better was not tried"
    )


def test_one_rank_is_compared_with_nothing(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_trial(tmp_path, 8, seed=seed)
    assert not told(tmp_path)


def test_trials_without_quality_have_nothing_to_be_fair_about(tmp_path: Path) -> None:
    for rank in (1, 8):
        write_trial(tmp_path, rank, settings={"random_weights": True}, scores=Scores())
    assert not told(tmp_path)


@pytest.mark.parametrize(
    ("axes", "alpha", "kinds"),
    [
        ({RATES: [1e-4, 1e-3]}, "2r", {"other_settings_untried"}),
        ({"lora.alpha": [16.0, 32.0]}, "2r", {"other_settings_untried"}),
        ({"lora.alpha": [16.0, 32.0], RATES: [1e-4, 1e-3]}, "2r", set()),
        ({}, 32.0, {"other_settings_untried"}),
    ],
)
def test_an_axis_answers_its_question(tmp_path: Path, axes: dict[str, list[Any]], alpha: Any, kinds: set[str]) -> None:
    points: list[dict[str, Any]] = [{}]
    for axis, values in axes.items():
        points = [point | {axis: value} for point in points for value in values]
    for rank in (1, 8):
        for point in points:
            write_trial(tmp_path, rank, axes=point, settings={"lora.alpha": point.get("lora.alpha", alpha)})
    assert {kind for _, kind in told(tmp_path)} == kinds


@pytest.mark.slow
def test_large_steps_and_attention_alone_are_told(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    def kinds(out: str, changes: dict[str, Any]) -> dict[str, str]:
        table = merge(tiny_table, {"grid": {"lora.rank": [1]}, "baselines": [], "task": {"test_examples": 2}})
        (record,) = sweep(load(None, [merge(table, changes)]), tmp_path / out).records
        assert record.status == "done"
        assert record.resolved.target_modules is not None
        assert len(record.resolved.target_modules) == (7 if "lora" in changes else 4)
        return {warning.kind.value: warning.detail for warning in record.warnings}

    narrow = kinds("narrow", {})
    assert narrow["attention_alone_adapted"] == (
        "the adapter is in attention alone; linear layers without one end in: gate_proj up_proj down_proj"
    )
    assert "large_effective_batch" not in narrow
    wide = kinds("wide", {"lora": {"target_modules": "all-linear"}, "training": {"effective_batch_size": 40}})
    assert wide["large_effective_batch"] == "40 examples in an optimizer step"
    assert "attention_alone_adapted" not in wide
