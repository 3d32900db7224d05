"""A run directory of record schema 1 is read and reported as it was, and not continued."""

import json
from pathlib import Path
from typing import Any

import pytest

import howlow
from howlow import load_settings as load
from howlow.analysis import rows
from howlow.errors import UserError
from howlow.records import read_records
from howlow.records.schema_1 import as_schema_2

RECORDED = Path(__file__).parent / "recorded" / "schema-1"


def test_the_rows_are_those_that_were_printed_then() -> None:
    expected = json.loads((RECORDED / "expected.json").read_text())["rows"]
    found = json.loads(json.dumps(rows([RECORDED]).rows))
    assert [{name: row[name] for name in then} for row, then in zip(found, expected, strict=True)] == expected


def test_what_was_decided_stands_apart_from_what_was_asked() -> None:
    for record in read_records(RECORDED):
        assert record.schema_version == 1
        assert record.resolved.inference_batch_size == 2
        assert record.resolved.train_batch_size == (None if record.kind == "base" else 2)
        assert record.resolved.heap is None, "schema 1 does not say it"


def test_a_batch_that_was_searched_for_was_asked_for_as_max() -> None:
    document = json.loads((RECORDED / "trials" / "base-s0" / "record.json").read_text())
    document["batch_search"] = [{"setting": "inference.batch_size"}]
    found = as_schema_2(document)
    assert found["settings"]["inference"]["batch_size"] == "max"
    assert (found["resolved"]["inference_batch_size"], found["resolved"]["heap"]) == (2, "bounded")


@pytest.mark.parametrize("missing", ["settings", "kind"])
def test_a_damaged_record_is_one_line(tmp_path: Path, missing: str) -> None:
    document: dict[str, Any] = json.loads((RECORDED / "trials" / "base-s0" / "record.json").read_text())
    del document[missing]
    (tmp_path / "trials" / "base-s0").mkdir(parents=True)
    (tmp_path / "trials" / "base-s0" / "record.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"record.json: damaged; remove the file to run it again"):
        read_records(tmp_path)


@pytest.mark.parametrize("run", [howlow.sweep, howlow.dry_run])
def test_a_sweep_into_such_a_folder_is_refused_before_anything_runs(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tmp_path / "trials" / "base-s0"
    trial.mkdir(parents=True)
    (trial / "record.json").write_text((RECORDED / "trials" / "base-s0" / "record.json").read_text())
    (tmp_path / "sweep.toml").write_text((RECORDED / "sweep.toml").read_text())
    with pytest.raises(UserError, match=r"base-s0 was written by an older howlow \(schema 1; this one writes 2\)"):
        run(load(str(tmp_path / "sweep.toml")), tmp_path)
