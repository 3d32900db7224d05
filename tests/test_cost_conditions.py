"""One sweep on several kinds of machine: its quality is one table, costs are divided only by those measured alike."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from test_rows import ENVIRONMENT, phase_of, steps_of, write_trial

from howlow.analysis import compare, load_results
from howlow.analysis.columns import column_named
from howlow.analysis.comparison import Comparison, Group
from howlow.records import Difference, Environment, RecordWarning, Scores, cost_conditions
from howlow.reporting import Report
from howlow.reporting.page import page
from howlow.reporting.results import document
from howlow.reporting.sweeps import conditions_lines

SPEED, F1 = column_named("train_samples_per_s"), column_named("f1")
MACHINES = {
    "a100": ENVIRONMENT,
    "other a100": ENVIRONMENT.model_copy(update={"device_uuid": "GPU-5", "host": "node2"}),
    "h100": ENVIRONMENT.model_copy(update={"device_name": "NVIDIA H100", "device_uuid": "GPU-9", "host": "node3"}),
}


def trial(folder: Path, rank: int, seed: int, machine: str, duration_s: float, f1: float = 0.5, **fields: Any) -> None:
    environment: Environment = MACHINES[machine]
    steps = [*steps_of("train", [duration_s] * 4), *steps_of("generate", [duration_s] * 3, loss=None)]
    phases = (phase_of("train", 24, 3 * duration_s), phase_of("generate", 16, 2 * duration_s))
    write_trial(
        folder, rank, seed=seed, environment=environment, steps=steps, phases=phases, scores=Scores(f1=f1), **fields
    )


def of(comparison: Comparison, rank: int) -> Group:
    return next(group for group in comparison.groups if group.rank == rank)


def test_quality_is_the_mean_of_all_seeds_and_costs_are_those_of_one_kind_of_machine(tmp_path: Path) -> None:
    for rank in (1, 4, 16):
        trial(tmp_path, rank, 0, "a100", 1.0 + rank / 16, f1=0.4)
        trial(tmp_path, rank, 1, "h100", 0.1, f1=0.6)
    comparison = compare(load_results(tmp_path))
    one, reference = of(comparison, 1), comparison.references[0]
    assert one.mean(F1) == pytest.approx(0.5)
    assert one.mean(SPEED) == pytest.approx(8 / (1 + 1 / 16))
    ratio = comparison.ratio(one, SPEED)
    assert ratio is not None
    assert ratio.value == pytest.approx(2 / (1 + 1 / 16))
    assert reference.rank == 16
    for row in comparison.results.rows:
        if row["ran_on_device"] == "NVIDIA H100":
            assert comparison.relative(row, SPEED) == pytest.approx(1.0), "its own kind has equal speeds at every rank"
    (line,) = conditions_lines(comparison)
    assert line == (
        "costs of r0001-s1, r0004-s1, r0016-s1 are divided only by those measured alike: environment.device_name is "
        "'NVIDIA H100', of most trials it is 'NVIDIA A100-SXM4-80GB'"
    )


def test_each_kind_of_machine_has_the_largest_of_its_own_ranks_as_a_reference(tmp_path: Path) -> None:
    for rank in (1, 4, 16):
        trial(tmp_path, rank, 0, "a100", 1.0 + rank / 16)
    for rank in (32, 64):
        trial(tmp_path, rank, 0, "h100", rank / 64)
    comparison = compare(load_results(tmp_path))
    ratios = {group.rank: comparison.ratio(group, SPEED) for group in comparison.groups}
    assert {rank: round(ratio.value, 6) for rank, ratio in ratios.items() if ratio is not None} == {
        1: round(2 / (1 + 1 / 16), 6),
        4: 1.6,
        16: 1.0,
        32: 2.0,
        64: 1.0,
    }
    assert {one.value for group in comparison.groups if (one := comparison.ratio(group, F1))} == {1.0}
    first, second = conditions_lines(comparison)
    assert "costs of r0032-s0, r0064-s0 are divided only by those measured alike" in first
    assert second == "costs of the other trials are divided by those measured alike (relative to rank 16)"
    text = " ".join(Report(comparison).table_text(200).split())
    assert first in text
    assert second in text


def test_cards_of_one_kind_are_one_kind_wherever_they_are_and_are_named(tmp_path: Path) -> None:
    trial(tmp_path, 1, 0, "a100", 1.0)
    trial(tmp_path, 4, 0, "a100", 2.0)
    trial(tmp_path, 16, 0, "other a100", 4.0)
    results = load_results(tmp_path)
    comparison = compare(results)
    assert conditions_lines(comparison) == []
    assert comparison.relative(results.rows[0], SPEED) == pytest.approx(4.0)
    marked = [one.trial for one in results.trial_warnings if one.kind == "another_card"]
    assert marked == ["r0016-s0"]
    assert [row["ran_on_uuid"] for row in results.rows] == ["GPU-1234", "GPU-1234", "GPU-5"]


def test_the_page_and_the_document_say_which_trial_ran_where(tmp_path: Path) -> None:
    trial(tmp_path, 1, 0, "a100", 1.0)
    trial(tmp_path, 4, 0, "other a100", 1.0)
    trial(tmp_path, 16, 0, "h100", 1.0)
    comparison = compare(load_results(tmp_path))
    table = page(comparison).split('id="where"')[1].split("</table>")[0]
    for words in ("node2", "node3", "NVIDIA H100", "GPU-9", "r0016-s0"):
        assert words in table
    conditions = document(comparison)["conditions"]
    assert [one["trials"] for one in conditions] == [["r0001-s0", "r0004-s0"], ["r0016-s0"]]


def test_a_trial_for_quality_that_had_company_has_no_figures_of_time_and_energy(tmp_path: Path) -> None:
    warning = RecordWarning(kind="costs_left_out", detail="train: r0004-s1 on cuda:0 ran beside it", phase="train")
    trial(tmp_path, 1, 0, "a100", 1.0)
    trial(tmp_path, 4, 0, "a100", 1.0, warnings=(warning,))
    row = load_results(tmp_path).rows[1]
    empty = {name for name, value in row.items() if value is None}
    assert {"train_samples_per_s", "train_time_per_sample_s", "train_step_time_p50_s", "train_host_share"} <= empty
    assert row["train_peak_memory_bytes"] is not None
    assert row["f1"] is not None
    assert row["inference_samples_per_s"] is not None


@options(max_examples=60)
@given(values=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8))
def test_equal_conditions_have_one_number_and_no_others_do(values: list[str]) -> None:
    names = [f"t{index}" for index in range(len(values))]
    usual = max(values, key=values.count)
    costs: Any = frozenset({"costs"})
    found = [
        Difference("environment.driver", name, value, names[values.index(usual)], usual, costs)
        for name, value in zip(names, values, strict=True)
        if value != usual
    ]
    numbers = {name: one.number for one in cost_conditions(names, found) for name in one.trials}
    for one, value in zip(names, values, strict=True):
        for other, theirs in zip(names, values, strict=True):
            assert (numbers[one] == numbers[other]) == (value == theirs)
        assert (numbers[one] == 0) == (value == usual)
