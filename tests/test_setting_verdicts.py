"""Whether the answer changes with settings that were swept: the same at each value as if it alone were asked for."""

from pathlib import Path
from typing import Any

import pytest
from test_recommend import sweep, tuned_sweep, verdict

from howlow.analysis import compare, rows
from howlow.analysis.recommendation import recommend_from
from howlow.analysis.setting_verdicts import setting_verdicts
from howlow.reporting.answer import answers, decision_document
from howlow.reporting.page import page
from howlow.reporting.recommendation import headlines
from howlow.reporting.setting_verdicts import change_sentences

RATE, ALPHA = "training.learning_rate", "lora.alpha"
Curve = dict[int, float]
LOW_IS_ENOUGH, HIGH_IS_NEEDED = {1: 0.7, 8: 0.5}, {1: 0.5, 8: 0.7}


def swept(folder: Path, curves: dict[tuple[Any, float], Curve]) -> Path:
    """The F1 of each rank by (alpha, learning rate); its validation scores are the same."""
    for (alpha, rate), curve in curves.items():
        tuned_sweep(folder, {(rank, rate): (f1, f1) for rank, f1 in curve.items()}, axes={ALPHA: alpha})
    return folder


@pytest.mark.parametrize(
    ("curves", "changing"),
    [
        ({("2r", 1e-3): LOW_IS_ENOUGH, (32.0, 1e-3): HIGH_IS_NEEDED}, {"scaling"}),
        ({("2r", 1e-3): LOW_IS_ENOUGH, ("2r", 1e-4): HIGH_IS_NEEDED}, {RATE}),
        ({("2r", 1e-3): LOW_IS_ENOUGH, (32.0, 1e-3): LOW_IS_ENOUGH}, set()),
        (
            {
                ("2r", 1e-3): LOW_IS_ENOUGH,
                ("2r", 1e-4): {1: 0.3, 8: 0.3},
                (32.0, 1e-3): HIGH_IS_NEEDED,
                (32.0, 1e-4): {1: 0.3, 8: 0.3},
            },
            {"scaling"},
        ),
    ],
)
def test_the_answer_at_each_value_is_that_of_the_value_alone(
    tmp_path: Path, curves: dict[tuple[Any, float], Curve], changing: set[str]
) -> None:
    results = rows([swept(tmp_path, curves)])
    found = setting_verdicts(results, "f1")
    assert {one.name for one in found if one.changes} == changing
    for one in found:
        for values, answer in one.found:
            assert answer is not None
            assert verdict(answer) == verdict(recommend_from(results, metric="f1", where=values))


def test_the_page_says_it_in_a_sentence_and_begins_with_each_rank_at_its_best(tmp_path: Path) -> None:
    results = rows([swept(tmp_path, {("2r", 1e-3): LOW_IS_ENOUGH, (32.0, 1e-3): HIGH_IS_NEEDED})])
    first, *others = (one for one in answers(compare(results)).found if one.found.terms.metric.name == "f1")
    assert first.setting == "each rank at its best settings"
    assert "--where" not in decision_document(first)["command"]
    assert [one.setting for one in others] == [
        f"{ALPHA} = 32, {RATE} = 0.001",
        f"{ALPHA} = 2r, {RATE} = 0.001",
    ]
    sentence = "The verdict changes with the scaling. lora.alpha = 32: rank 8; lora.alpha = 2r: rank 1."
    assert decision_document(first)["across"] == [sentence]


def test_what_validation_cannot_choose_stays_apart_and_it_chooses_the_rest(tmp_path: Path) -> None:
    """At each batch size each rank has its best learning rate; the page says of which batch its answer is."""
    batch = "training.batch_size"
    for size, curve in ((1, LOW_IS_ENOUGH), (8, HIGH_IS_NEEDED)):
        for rate, shift in ((1e-3, 0.0), (1e-4, -0.2)):
            values = {(rank, rate): (f1 + shift, f1 + shift) for rank, f1 in curve.items()}
            tuned_sweep(tmp_path, values, axes={batch: size})
    results = rows([tmp_path])
    found = [one for one in answers(compare(results)).found if one.found.terms.metric.name == "f1"]
    best = "each rank at its best settings"
    assert [(one.setting, one.found.rank) for one in found[:2]] == [
        (f"{batch} = 1, {best}", 1),
        (f"{batch} = 8, {best}", 8),
    ]
    assert found[0].across == (f"The verdict changes with {batch}. {batch} = 1: rank 1; {batch} = 8: rank 8.",)
    assert f"With {batch} = 1, {best}:" in page(compare(results))
    told = [line.split(". ")[0] for line in headlines(tmp_path)]
    assert told == [f"With {batch} = {size}, {best}: Recommended: rank {size}" for size in (1, 8)]


def test_without_validation_the_combinations_are_compared(tmp_path: Path) -> None:
    for alpha, rate in (("2r", 1e-3), (32.0, 1e-4)):
        sweep(tmp_path, LOW_IS_ENOUGH, axes={ALPHA: alpha, RATE: rate})
    (found,) = setting_verdicts(rows([tmp_path]), "f1")
    assert (found.name, found.changes, len(found.found)) == ("setting", False, 2)
    (sentence,) = change_sentences([found])
    assert sentence.startswith("The verdict is the same with every setting. lora.alpha = 32, ")


def test_a_value_with_nothing_to_compare_does_not_change_the_verdict(tmp_path: Path) -> None:
    for rate, curve in ((1e-3, LOW_IS_ENOUGH), (1e-4, {8: 0.7}), (1e-5, LOW_IS_ENOUGH)):
        sweep(tmp_path, curve, axes={RATE: rate})
    found = setting_verdicts(rows([tmp_path]), "f1")
    (sentence,) = change_sentences(found)
    assert sentence.startswith(f"The verdict is the same with every {RATE}. ")
    assert f"{RATE} = 0.0001: nothing to compare" in sentence


def test_one_setting_has_no_such_sentence(tmp_path: Path) -> None:
    results = rows([sweep(tmp_path, LOW_IS_ENOUGH)])
    assert setting_verdicts(results) == []
    assert all(not one.across for one in answers(compare(results)).found)
