"""What was tokenised once is not tokenised again, unless data, tokenizer or what is asked has changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from howlow import load_settings as load
from howlow.settings import merge
from howlow.trial import preparation
from howlow.trial.prepared import read_prepared


@pytest.fixture
def table(tiny_table: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    train = tmp_path / "train.json"
    train.write_text(Path(tiny_table["task"]["train"]).read_text())
    return merge(tiny_table, {"task": {"train": str(train)}})


def prepare(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    return preparation.prepare(load(None, [table]), [], folder, ["targets"])


def test_a_second_start_reads_what_the_first_laid_by(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = prepare(table, tmp_path / "prepared")
    monkeypatch.setattr(preparation, "tokenized", lambda *_: pytest.fail("tokenised again"))
    assert prepare(table, tmp_path / "prepared") == first


@pytest.mark.parametrize("change", ["data", "length"])
def test_other_content_is_tokenised_anew(table: dict[str, Any], tmp_path: Path, change: str):
    first = prepare(table, tmp_path / "prepared")
    if change == "data":
        path = Path(table["task"]["train"])
        path.write_text(path.read_text().replace("red balls", "red bells"))
    else:
        table = merge(table, {"training": {"sequence_length": 150}})
    second = prepare(table, tmp_path / "prepared")
    assert (second["data"]["train_sha256"] == first["data"]["train_sha256"]) == (change == "length")
    assert read_prepared(tmp_path / "prepared").data.model_dump() == second["data"]


@pytest.mark.parametrize("damage", ["", "{", json.dumps({"train": 1})])
def test_what_a_killed_start_left_is_written_again(table: dict[str, Any], tmp_path: Path, damage: str):
    first = prepare(table, tmp_path / "prepared")
    (tmp_path / "prepared" / "prepared.json").write_text(damage)
    assert prepare(table, tmp_path / "prepared") == first
