"""Validation: examples set aside from training, scored as the test is, and the settings that are chosen by them."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import squad_document

from howlow import load_settings as load
from howlow.analysis.rows import rows
from howlow.errors import UserError
from howlow.records import Record, read_lines
from howlow.settings import merge
from howlow.sweeping.sweep import sweep


@pytest.fixture
def table(tiny_table: dict[str, Any]) -> dict[str, Any]:
    """Six of 24 training examples stand aside, and training takes twelve of the others."""
    changes = {
        "task": {"train_examples": 12, "validation_examples": 6},
        "grid": {"lora.rank": [2]},
        "training": {"shuffle": "groups"},
    }
    return merge(tiny_table, changes)


def trial(table: dict[str, Any], out: Path, **changes: Any) -> Record:
    (record,) = sweep(load(None, [merge(table, {"baselines": [], **changes})]), out).records
    assert record.status == "done", record.error
    return record


def without_validation(table: dict[str, Any]) -> dict[str, Any]:
    task = {key: value for key, value in table["task"].items() if key != "validation_examples"}
    return {**table, "task": task}


def raw(out: Path, name: str) -> list[dict[str, Any]]:
    return list(read_lines(out / "trials" / "r0002-s0" / name))


@pytest.mark.slow
def test_its_scores_are_those_of_a_test_on_the_same_examples(table: dict[str, Any], tmp_path: Path) -> None:
    found = trial(table, tmp_path / "one")
    assert found.data is not None
    assert found.data.validation_examples == 6
    assert found.validation is not None
    batches = raw(tmp_path / "one", "validation.jsonl")
    ids = [line["id"] for batch in batches if batch["phase"] == "generate" for line in batch["predictions"]]
    document = squad_document(8, name="a")
    for paragraph in document["data"][0]["paragraphs"]:
        paragraph["qas"] = [question for question in paragraph["qas"] if question["id"] in ids]
    (tmp_path / "aside.json").write_text(json.dumps(document), encoding="utf-8")
    as_test = without_validation(merge(table, {"task": {"test": str(tmp_path / "aside.json"), "overlap": "keep"}}))
    other = trial(as_test, tmp_path / "two")
    assert other.data is not None
    assert other.data.train_sha256 == found.data.train_sha256
    told, expected = (scores.model_dump(exclude_none=True) for scores in (found.validation, other.scores))
    assert told == pytest.approx(expected, rel=1e-6)
    (row,) = rows([tmp_path / "one"]).rows
    assert row["validation_f1"] == found.validation.f1
    assert row["validation_loss"] == found.validation.loss


@pytest.mark.slow
def test_it_changes_no_other_figure_and_merging_changes_nothing(table: dict[str, Any], tmp_path: Path) -> None:
    found, plain = trial(table, tmp_path / "with"), trial(without_validation(table), tmp_path / "without")
    assert plain.validation is None
    assert plain.scores == found.scores
    losses = [[line.get("loss") for line in raw(tmp_path / name, "steps.jsonl")] for name in ("with", "without")]
    assert losses[0] == losses[1]
    assert raw(tmp_path / "with", "predictions.jsonl") == raw(tmp_path / "without", "predictions.jsonl")
    merged = trial(table, tmp_path / "merged", inference={"adapter": "merged"})
    assert merged.validation == found.validation
    with pytest.raises(UserError, match=r"task\.validation_examples"):
        trial(without_validation(table), tmp_path / "with")


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["paragraph", "window"])
def test_texts_are_set_aside_as_well(table: dict[str, Any], tmp_path: Path, unit: str) -> None:
    for name, count in (("train", 12), ("test", 4)):
        lines = [f"{name} {number}: the wind from the north turns {number * 7} degrees.\n" for number in range(count)]
        (tmp_path / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    task = {"name": "language_modeling", "unit": unit, "validation_examples": 1}
    task |= {name: str(tmp_path / f"{name}.txt") for name in ("train", "test")}
    found = trial({**table, "task": task}, tmp_path / "out")
    assert found.validation is not None
    assert found.validation.perplexity is not None
    assert found.scores.perplexity != found.validation.perplexity


@pytest.mark.parametrize("number", [24, 22, 100])
def test_too_many_is_one_line(table: dict[str, Any], tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match=f"task.validation_examples = {number}: whole groups"):
        trial(merge(table, {"task": {"validation_examples": number}}), tmp_path / "out")
