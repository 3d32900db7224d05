"""The lines of predictions.jsonl: what is read of them, and one clear line for what no trial could have written."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Command, howlow, refused
from test_recommend import sweep

from howlow.errors import UserError
from howlow.records import read_lines, read_scored

__all__ = ["howlow"]
LINE = {"id": "q1", "cluster": "p1", "scores": {"f1": 0.5}}
values = st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans(), st.lists(st.integers()))


def written(folder: Path, *lines: Any) -> Path:
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@given(values)
def test_a_score_is_a_finite_number_or_its_line_is_named(tmp_path_factory: Any, value: Any) -> None:
    folder = written(tmp_path_factory.mktemp("trial"), LINE, LINE | {"scores": {"f1": value}})
    if isinstance(value, int | float) and -1e308 < value < 1e308:
        assert [line.scores["f1"] for line in read_scored(folder)] == [0.5, value]
    else:
        with pytest.raises(UserError, match=r"predictions\.jsonl, line 2: damaged: scores"):
            list(read_scored(folder))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": [0.5]},
        {"log_likelihood": float("inf")},
        {"log_likelihood": "-3"},
        {"tokens": -1},
        {"words": "7"},
        {"id": 3},
    ],
)
def test_everything_that_figures_rest_on_is_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"line 1: damaged"):
        list(read_scored(written(tmp_path, LINE | wrong)))


def test_an_older_line_names_no_cluster_and_a_text_has_no_scores(tmp_path: Path) -> None:
    text = {"id": "t1", "log_likelihood": -3.5, "tokens": 4, "words": 2, "bytes": 9}
    answer, told = read_scored(written(tmp_path, {"id": "q1", "scores": {"f1": 1}}, text))
    assert (answer.cluster, answer.scores, answer.log_likelihood, answer.counts) == (None, {"f1": 1}, None, {})
    assert (told.scores, told.log_likelihood, told.counts["bytes"]) == ({}, -3.5, 9)


@pytest.mark.parametrize("command", ["recommend", "report"])
def test_a_damaged_score_is_one_line_of_each_command(tmp_path: Path, howlow: Command, command: str) -> None:
    sweep(tmp_path, {1: 0.5, 8: 0.6}, seeds=1)
    path = tmp_path / "trials" / "r0008-s0" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": NaN', 1))
    refused(howlow(command, tmp_path), "predictions.jsonl, line 1: damaged", "finite numbers are expected")


@given(st.recursive(st.none() | st.floats(allow_nan=False) | st.text(), lambda one: st.lists(one), max_leaves=5))
def test_lines_are_read_as_json_reads_them(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    for form in ({"a": value}, {"a": value, "b": "\u2028"}):
        path.write_text(f" {json.dumps(form)} \n{json.dumps(form, ensure_ascii=True)}\n", encoding="utf-8")
        assert list(read_lines(path)) == [form, form]
