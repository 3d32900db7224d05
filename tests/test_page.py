"""What the page computes from records: the Pareto front, a decision's inputs, timelines, and the table of records."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_recommend import sweep
from test_rows import write_trial

from howlow.analysis import compare, rows
from howlow.analysis.constraints import CostLimits
from howlow.analysis.decision_inputs import decision_inputs
from howlow.analysis.pareto import pareto_front
from howlow.analysis.recommendation import recommend_from
from howlow.analysis.timeline import timeline_of
from howlow.records import Reading
from howlow.reporting.answer import answers, decision_document
from howlow.reporting.record_table import records_document
from howlow.reporting.summary import summarize

# -- the Pareto front -----------------------------------------------------------------------------------------------

spots = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(spots, st.booleans())
def test_the_front_holds_those_and_only_those_that_no_other_one_beats(
    candidates: list[tuple[int, int]], higher_is_better: bool
) -> None:
    costs, qualities = zip(*candidates, strict=True)
    sign = 1 if higher_is_better else -1

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] <= other[0] and sign * one[1] >= sign * other[1]

    front = pareto_front(costs, qualities, higher_is_better)
    for place, candidate in enumerate(candidates):
        is_beaten = any(beats(other, candidate) for other in candidates)
        assert (place in front) == (not is_beaten)
    assert [costs[place] for place in front] == sorted(costs[place] for place in front)


# -- a decision's inputs --------------------------------------------------------------------------------------------


def test_a_decision_can_be_taken_again_from_its_inputs(tmp_path: Path) -> None:
    found = recommend_from(rows([sweep(tmp_path)]))
    inputs = decision_inputs(found)
    assert [one.rank for one in inputs.candidates] == [None, 1, 4, 16, 64]
    for (i, j), pair in inputs.pairs.items():
        assert pair.half_width is not None
        assert pair.strict_half_width is not None
        assert pair.value - pair.half_width == found.pairs.low(i, j, found.terms.confidence)
        assert -pair.value - pair.half_width == found.pairs.low(j, i, found.terms.confidence)
        assert pair.strict_half_width > pair.half_width
    base, *ranks = inputs.candidates
    assert set(base.costs) == {"max_memory"}, "the base model is not fine-tuned"
    assert all(set(one.costs) == {"max_memory", "max_energy", "max_time"} for one in ranks)
    assert not inputs.candidates[-1].bill, "the reference rank saves nothing against itself"


def test_the_inputs_are_those_of_a_decision_without_limits(tmp_path: Path) -> None:
    limited = recommend_from(rows([sweep(tmp_path)]), limits=CostLimits(max_time_s=1e9))
    with pytest.raises(AssertionError):
        decision_inputs(limited)


def test_there_is_an_answer_for_each_setting_and_metric(tmp_path: Path) -> None:
    for batch in (1, 8):
        sweep(tmp_path, {1: 0.5, 8: 0.6}, seeds=2, axes={"training.batch_size": batch})
    found = answers(compare(rows([tmp_path]))).found
    assert {(one.setting, one.found.terms.metric.name) for one in found} == {
        (f"training.batch_size = {batch}", metric) for batch in (1, 8) for metric in ("f1", "exact_match")
    } | {(f"training.batch_size = {batch}", "loss") for batch in (1, 8)} - _unanswered(found)
    document = decision_document(found[0])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["command"].endswith("--metric f1 --where training.batch_size=1")


def _unanswered(found: Any) -> set[tuple[str, str]]:
    """Metrics of which these records hold no example: their steps have no losses."""
    there = {(one.setting, one.found.terms.metric.name) for one in found}
    return {(f"training.batch_size = {batch}", "loss") for batch in (1, 8)} - there


def test_where_nothing_can_be_recommended_the_page_says_why(tmp_path: Path) -> None:
    for rank in (1, 8):
        write_trial(tmp_path, rank)
    assert "random weights" in (answers(compare(rows([tmp_path]))).problem or "")


# -- timelines ------------------------------------------------------------------------------------------------------


def test_a_timeline_is_thinned_and_keeps_the_peaks_of_memory(tmp_path: Path) -> None:
    peak = 123 * 10**9
    readings = [
        Reading(
            time_s=index / 4,
            device="cuda:0",
            power_w=200.0,
            memory_bytes=peak if index == 777 else 10**9,
            phase="train" if index < 900 else "generate",
        )
        for index in range(1000)
    ]
    write_trial(tmp_path, 8, readings=readings)
    found = timeline_of(rows([tmp_path]).trials[0])
    lines = {line.quantity: line for line in found.lines}
    assert set(lines) == {"power_w", "memory_bytes"}
    assert all(len(line.values) <= 160 for line in found.lines)
    assert max(lines["memory_bytes"].values) == peak
    assert set(lines["power_w"].values) == {200.0}
    assert [(span.phase, span.start_s, span.end_s) for span in found.phases] == [
        ("train", 0.0, 224.75),
        ("generate", 225.0, 249.75),
    ]


def test_a_trial_without_readings_has_no_timeline(tmp_path: Path) -> None:
    write_trial(tmp_path, 8)
    assert not timeline_of(rows([tmp_path]).trials[0]).lines


# -- records --------------------------------------------------------------------------------------------------------


def test_the_table_of_records_holds_every_number_that_any_record_has(tmp_path: Path) -> None:
    comparison = compare(rows([sweep(tmp_path, {None: 0.1, 1: 0.5, 8: 0.6}, seeds=2)]))
    document = records_document(comparison.results, summarize(comparison).warnings)
    names = [column["name"] for column in document["columns"]]
    for row, values in zip(comparison.results.rows, document["rows"], strict=True):
        shown = dict(zip(names, values, strict=True))
        for name, value in row.items():
            if isinstance(value, float):
                assert shown[name] == pytest.approx(value, rel=1e-5)
            elif value is not None:
                assert shown[name] == value
    assert all(group["columns"][0] == names.index("trial") for group in document["groups"])
    assert sorted(document["groups"][-1]["columns"]) == list(range(len(names)))
