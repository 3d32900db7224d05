"""Which ranks are worth training, by one adapter that was cut to smaller ranks."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_recommend import CUT
from test_rows import write_trial

from howlow.analysis import load_results
from howlow.analysis.columns import column_named
from howlow.analysis.comparison import compare
from howlow.analysis.worth_training import WorthTraining, worth_training
from howlow.records import Scores
from howlow.reporting.words import sentences, worth_training_lines


def cuts(folder: Path, scores: dict[int, Scores], task: str = "question_answering", **fields: Any) -> Path:
    for rank, found in scores.items():
        write_trial(folder, rank, kind="shrunk", task=task, scores=found, shrunk=CUT, **fields)
    return folder


def guess(folder: Path) -> WorthTraining | None:
    comparison = compare(load_results(folder))
    return worth_training(comparison, comparison.references[0])


@pytest.mark.parametrize(
    ("f1", "ranks", "best"),
    [
        ({1: 0.3, 2: 0.4, 4: 0.595, 8: 0.58, 16: 0.6}, (1, 2, 4), 16),
        ({1: 0.595, 4: 0.6}, (1,), 4),
        ({1: 0.1, 16: 0.6}, (4, 8, 16), 16),
        ({3: 0.6, 16: 0.6}, (1, 3), 3),
    ],
)
def test_the_smallest_cut_within_the_margin_and_its_halvings(
    tmp_path: Path, f1: dict[int, float], ranks: tuple[int, ...], best: int
) -> None:
    found = guess(cuts(tmp_path, {rank: Scores(f1=value, exact_match=0.0, loss=1.0) for rank, value in f1.items()}))
    assert found is not None
    assert (found.ranks, found.best_rank, found.margin) == (ranks, best, 0.02)


def test_perplexity_has_a_relative_margin(tmp_path: Path) -> None:
    values = {1: 9.0, 2: 8.07, 4: 8.0}
    scores = {rank: Scores(perplexity=value, loss=2.0) for rank, value in values.items()}
    found = guess(cuts(tmp_path, scores, "language_modeling"))
    assert found is not None
    assert found.ranks == (1, 2)
    (line,) = worth_training_lines(tmp_path)
    assert line.startswith(
        "Worth training: ranks 1 and 2. By perplexity, cut to rank 2, the adapter is 0.87 % behind its best cut "
        "(rank 4); 1.0 % would do"
    )
    assert line in sentences(compare(load_results(tmp_path)))[0]


def test_trained_ranks_and_a_lone_cut_suggest_nothing(tmp_path: Path) -> None:
    scores = Scores(f1=0.5, exact_match=0.0, loss=1.0)
    assert guess(cuts(tmp_path / "lone", {4: scores})) is None
    for rank in (1, 4):
        write_trial(tmp_path / "trained", rank, scores=scores)
    assert guess(cuts(tmp_path / "trained", {1: scores, 2: scores})) is None


@given(st.integers(1, 4096))
def test_two_or_three_ranks_are_named(rank: int) -> None:
    ranks = WorthTraining(column_named("f1"), 0.02, rank, rank, 0.0).ranks
    assert ranks == tuple(sorted(set(ranks)))
    assert ranks[-1] == rank
    assert ranks[0] >= 1
    assert len(ranks) == (3 if rank > 3 else 2 if rank > 1 else 1)
