"""The test scores of trials, example by example, summed by cluster: what the decision about a rank rests on.

A line of `predictions.jsonl` holds an example's scores, or the log-likelihood of a text, and names its cluster. Where
all texts are windows of one document, each window is a cluster. The loss of answers is known for whole batches, so
there a batch is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from howlow.analysis.column import Column
from howlow.analysis.quality_columns import TEXT_WEIGHTS
from howlow.analysis.quality_statistics import ClusterScores
from howlow.analysis.rows import Trial
from howlow.errors import UserError
from howlow.records import ScoredLine, read_scored, read_steps
from howlow.tasks import task_named


@dataclass(frozen=True)
class ExampleScore:
    """What an example adds to a metric: to the sum of its scores, higher being better, and to their weights."""

    id: str
    cluster: str
    score: float
    weight: float


def example_scores(trial: Trial, metric: Column) -> list[ExampleScore]:
    """The scores of a trial's test examples.

    Raises:
        UserError: the trial's files do not hold them.
    """
    if "answers" in metric.subjects:
        found = _of_answers(trial.folder, metric.name)
    elif task_named(trial.record.settings.task.name).generates:
        found = _of_batches(trial.folder)
    else:
        found = _of_texts(trial.folder, metric.name)
    if not found:
        raise UserError(
            f"{trial.folder}: its predictions.jsonl and steps.jsonl hold no example's {metric.name}; remove the folder "
            "and run the sweep again to have them"
        )
    return found


def _of_answers(folder: Path, name: str) -> list[ExampleScore]:
    return [
        ExampleScore(line.id, _cluster(line), float(line.scores[name]), 1.0)
        for line in read_scored(folder)
        if name in line.scores
    ]


def _of_texts(folder: Path, name: str) -> list[ExampleScore]:
    field, factor = TEXT_WEIGHTS[name]
    found = [
        ExampleScore(line.id, _cluster(line), line.log_likelihood, factor * line.counts[field])
        for line in read_scored(folder)
        if line.log_likelihood is not None and field in line.counts
    ]
    is_one_document = len({score.cluster for score in found}) == 1
    return [replace(score, cluster=score.id) for score in found] if is_one_document else found


def _of_batches(folder: Path) -> list[ExampleScore]:
    return [
        ExampleScore(str(step.step), str(step.step), -step.loss * step.target_tokens, float(step.target_tokens))
        for step in read_steps(folder)
        if step.phase == "evaluate" and step.loss is not None
    ]


def _cluster(line: ScoredLine) -> str:
    """The cluster of a line; in records of older versions each example stands alone."""
    return line.id if line.cluster is None else line.cluster


def names_clusters(trial: Trial) -> bool:
    """Whether a trial's predictions say which examples go together."""
    return all(line.cluster is not None for line in read_scored(trial.folder))


def cluster_scores(candidates: Sequence[Sequence[Trial]], metric: Column) -> list[ClusterScores]:
    """The scores of each candidate by seed and cluster; its trials have one seed each, a lone untrained one none.

    Raises:
        UserError: the files of a trial do not hold its scores, or trials were scored on different examples.
    """
    read = [[example_scores(trial, metric) for trial in trials] for trials in candidates]
    first = {score.id: score for score in read[0][0]}
    place = {cluster: index for index, cluster in enumerate(dict.fromkeys(score.cluster for score in first.values()))}
    weights = _summed([score.cluster for score in first.values()], [score.weight for score in first.values()], place)
    found = []
    for trials, scores in zip(candidates, read, strict=True):
        sums = []
        for trial, own in zip(trials, scores, strict=True):
            _refuse_other_examples(candidates[0][0], trial, first, own, metric)
            sums.append(_summed([first[score.id].cluster for score in own], [score.score for score in own], place))
        seeds = () if trials[0].record.kind == "base" else tuple(trial.record.seed for trial in trials)
        found.append(ClusterScores(seeds, np.array(sums), weights, metric.unit == "fraction"))
    return found


def _summed(clusters: Sequence[str], values: Sequence[float], place: Mapping[str, int]) -> Any:
    sums = np.zeros(len(place))
    np.add.at(sums, [place[cluster] for cluster in clusters], values)
    return sums


def _refuse_other_examples(
    one: Trial, other: Trial, first: Mapping[str, ExampleScore], own: Sequence[ExampleScore], metric: Column
) -> None:
    weights = {score.id: score.weight for score in own}
    if weights == {score.id: score.weight for score in first.values()} and len(weights) == len(own):
        return
    raise UserError(
        f"{other.folder}: {other.record.trial} was scored on {len(own)} examples that are not those of "
        f"{one.record.trial} ({len(first)}) by {metric.name}; ranks are compared on the same test examples only"
    )
