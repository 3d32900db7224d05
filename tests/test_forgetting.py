"""The loss on a general text before and after training: what each rank made the model forget."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded

from howlow import load_settings as load
from howlow import shrink_settings
from howlow.errors import UserError
from howlow.records import Record
from howlow.settings import merge
from howlow.sweeping.sweep import sweep
from howlow.trial import preparation
from howlow.trial.prepared import Prepared, read_prepared

TEXT = "".join(f"Line {number} of a text about ships, tea and wind from the north.\n" for number in range(12))


@pytest.fixture
def table(tiny_table: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "general.txt").write_text(TEXT)
    changes = {"task": {"general_text": str(tmp_path / "general.txt"), "train_examples": 4, "test_examples": 3}}
    return merge(tiny_table, changes)


def prepared(table: dict[str, Any], folder: Path) -> tuple[Prepared, dict[str, str]]:
    report = preparation.prepare(load(None, [table]), [], folder / "prepared")
    return read_prepared(folder / "prepared"), {one["kind"]: one["detail"] for one in report["warnings"]}


def test_the_text_is_cut_into_windows_that_hold_all_of_it(table: dict[str, Any], tmp_path: Path) -> None:
    found, warnings = prepared(table, tmp_path)
    assert sum(len(window.completion) for window in found.general) == len(TEXT.encode()) == found.data.general_tokens
    assert (found.data.general_windows, max(window.length for window in found.general)) == (len(found.general), 160)
    assert "general_text_in_training" not in warnings
    without = merge(table, {"task": {"general_text": None}})
    del without["task"]["general_text"]
    other, _ = prepared(without, tmp_path / "without")
    assert (other.general, other.data.general_sha256) == ([], None)
    assert (other.train, other.test) == (found.train, found.test)


def test_a_limit_takes_the_same_windows_each_time(table: dict[str, Any], tmp_path: Path) -> None:
    some = merge(table, {"task": {"general_windows": 2}})
    first, _ = prepared(some, tmp_path / "one")
    again, _ = prepared(some, tmp_path / "two")
    everything, _ = prepared(table, tmp_path / "all")
    assert first.general == again.general
    assert len(first.general) == 2
    assert set(first.general) < set(everything.general)


def test_another_general_text_is_other_data(table: dict[str, Any], tmp_path: Path) -> None:
    first, _ = prepared(table, tmp_path)
    Path(table["task"]["general_text"]).write_text(TEXT.upper())
    second, _ = prepared(table, tmp_path)
    assert first.data.general_sha256 != second.data.general_sha256
    assert first.data.train_sha256 == second.data.train_sha256


def test_a_general_text_that_is_trained_on_is_told(table: dict[str, Any], tmp_path: Path) -> None:
    sides = {"name": "language_modeling", "train": table["task"]["general_text"], "test": str(tmp_path / "test.txt")}
    (tmp_path / "test.txt").write_text("Something else that is long enough to be a line.\n")
    _, warnings = prepared({**table, "task": {**sides, "general_text": sides["train"]}}, tmp_path)
    assert warnings["general_text_in_training"].endswith("windows of the general text hold a text that is trained on")


@pytest.mark.parametrize(
    ("source", "message"),
    [("missing.txt", "missing.txt: no such file"), ("empty.txt", "empty.txt: is empty")],
)
def test_a_text_that_cannot_be_read_is_one_line(
    table: dict[str, Any], tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=message):
        prepared(merge(table, {"task": {"general_text": str(tmp_path / source)}}), tmp_path)


# -- trials ---------------------------------------------------------------------------------------------------------


def run(table: dict[str, Any], out: Path, **changes: Any) -> dict[str, Record]:
    result = sweep(
        load(None, [merge(table, {"grid": {"lora.rank": [2]}, "baselines": ["base", "full"], **changes})]), out
    )
    assert [(record.trial, record.error) for record in result.failed] == []
    return {record.kind: record for record in result.records}


def loss_of(model: Any, windows: list[Any]) -> float:
    total, count = 0.0, 0
    for window in windows:
        ids = torch.tensor([window.prompt + window.completion])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, count = total + float(losses.double().sum()), count + len(losses)
    return total / count


@pytest.mark.slow
def test_before_is_the_base_model_and_after_the_trained_one(
    table: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    found = run(table, tmp_path / "run")
    windows = read_prepared(next((tmp_path / "run" / ".howlow").glob("prepared-*"))).general
    expected = loss_of(loaded(tiny_model), windows)
    for record in found.values():
        assert record.scores.general_loss_before == pytest.approx(expected, rel=1e-6)
    assert found["base"].scores.general_loss_after is None
    adapter = tmp_path / "run" / "trials" / "r0002-s0" / "adapter"
    trained = PeftModel.from_pretrained(loaded(tiny_model), adapter).eval()
    assert found["lora"].scores.general_loss_after == pytest.approx(loss_of(trained, windows), rel=1e-6)
    assert found["full"].scores.general_loss_after not in (None, found["full"].scores.general_loss_before)


@pytest.mark.slow
def test_a_shrunk_adapter_is_looked_at_as_it_is_tested(table: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trained = run(table, tmp_path / "run", baselines=[])["lora"]
    adapter = tmp_path / "run" / "trials" / "r0002-s0" / "adapter"
    axis = {"grid": {"lora.continue_steps": [0, 2]}}
    result = sweep(shrink_settings(adapter, [1], [axis]), tmp_path / "shrunk")
    windows = read_prepared(next((tmp_path / "run" / ".howlow").glob("prepared-*"))).general
    for record in result.records:
        assert record.status == "done"
        assert record.scores.general_loss_before == trained.scores.general_loss_before
        own = PeftModel.from_pretrained(
            loaded(tiny_model), tmp_path / "shrunk/trials" / record.trial / "adapter"
        ).eval()
        assert record.scores.general_loss_after == pytest.approx(loss_of(own, windows), rel=1e-6)


@pytest.mark.slow
def test_a_general_text_changes_no_other_score_and_merging_changes_nothing(
    table: dict[str, Any], tmp_path: Path
) -> None:
    without = {**table, "task": {key: value for key, value in table["task"].items() if key != "general_text"}}
    found = run(table, tmp_path / "with", baselines=[])["lora"].scores
    plain = run(without, tmp_path / "without", baselines=[])["lora"].scores
    merged = run(table, tmp_path / "merged", baselines=[], inference={"adapter": "merged"})["lora"].scores
    assert found.model_copy(update={"general_loss_before": None, "general_loss_after": None}) == plain
    assert merged == found
    with pytest.raises(UserError, match=r"task\.general_text"):
        run(table, tmp_path / "without", baselines=[])
