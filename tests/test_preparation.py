"""What is found before the first trial: defects of data and model, refused or told as warnings that name the cause."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.settings import merge
from howlow.trial import preparation


def prepared(table: dict[str, Any], folder: Path) -> dict[str, str]:
    """The details of the warnings, by their kind."""
    report = preparation.prepare(load(None, [table]), [], folder / "prepared")
    return {warning["kind"]: warning["detail"] for warning in report["warnings"]}


def test_a_prompt_cut_for_the_answers_room_names_the_setting(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {"training": {"sequence_length": 100}, "inference": {"max_new_tokens": 40}}
    assert prepared(merge(tiny_table, changes), tmp_path)["text_cut"] == (
        "12 test prompts cut: training.sequence_length = 100 holds prompt and completion, or prompt and "
        "inference.max_new_tokens = 40"
    )


def test_a_text_that_is_cut_names_the_sequence_length_alone(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"A {name} of some twenty characters.\nShort {name}.\n")
    task = {"name": "language_modeling", "train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    table = merge({**tiny_table, "task": task}, {"training": {"sequence_length": 20}})
    assert prepared(table, tmp_path)["text_cut"] == "2 texts cut to training.sequence_length = 20 tokens"


def test_weights_that_do_not_fit_are_found_and_those_without_a_place_are_told(
    tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    config = json.loads((folder / "config.json").read_text())
    table = merge(tiny_table, {"model": str(folder)})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert prepared(table, tmp_path)["weights_left_out"].startswith(
        f"9 tensors of {folder} have no place in the model:"
    )
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="lack 9 of the model's tensors"):
        prepared(table, tmp_path)
    assert "weights_left_out" not in prepared({**table, "random_weights": True}, tmp_path)
