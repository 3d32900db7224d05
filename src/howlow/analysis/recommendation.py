"""Which rank is enough: the smallest one that is shown to be non-inferior to the best, and keeps the limits.

`noninferiority` has the rule, `quality_statistics` the errors, `constraints` the limits, and `settling` says what more
data would decide. The base model without an adapter is the smallest candidate where it was scored. Ranks that miss a
limit are no candidates, so the best one is the best of those that may be used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from howlow.analysis.column import Column
from howlow.analysis.comparison import Group
from howlow.analysis.constraints import CostLimits, Kept, kept
from howlow.analysis.contest import Contest, contest_of, metrics_there, one_a_seed
from howlow.analysis.example_scores import cluster_scores, names_clusters
from howlow.analysis.group_sequential import LookPlan
from howlow.analysis.margins import DEFAULT_CONFIDENCE, QualityScale, checked_confidence
from howlow.analysis.noninferiority import Pairs, Standing, standing_of, worst_obstacle
from howlow.analysis.rows import Results, rows
from howlow.analysis.settling import Settlement, settlement
from howlow.errors import UserError
from howlow.records import LooksRecord, read_looks

Verdict = Literal["recommended", "no_adapter", "not_enough_evidence", "constraints_not_met"]


@dataclass(frozen=True)
class Terms:
    """What is asked: a metric, a margin (of the metric itself), how sure to be, and the limits."""

    metric: Column
    margin: float
    confidence: float
    limits: CostLimits

    @property
    def scale(self) -> QualityScale:
        """How differences of the metric are counted."""
        return QualityScale(self.metric)

    @property
    def gain(self) -> float:
        """The margin on the scale on which differences are compared."""
        return self.scale.as_gain(self.margin)


@dataclass(frozen=True)
class Candidate:
    """The base model (rank None) or a rank, and how it stands to the best one (None: it is the only candidate)."""

    rank: int | None
    group: Group
    judged: Standing | None

    @property
    def is_non_inferior(self) -> bool:
        """Whether it is shown to be non-inferior; a lone candidate is."""
        return self.judged is None or self.judged.is_non_inferior


@dataclass(frozen=True)
class Obstacle:
    """Why a candidate is not shown to be non-inferior: one rank may be worse than another by `low` (a gain)."""

    rank: int | None
    best: int | None
    low: float


@dataclass(frozen=True)
class Recommendation:
    """The verdict, and everything that it rests on.

    groups: the candidates' trials, the smallest candidate first. excluded: ranks that miss limits, with these limits.
    looks: how the data were looked at while they grew, where they were: every bound has the level of its look.
    """

    terms: Terms
    contest: Contest
    groups: tuple[Group, ...]
    excluded: Mapping[int, tuple[Kept, ...]]
    pairs: Pairs
    has_clusters: bool
    looks: LooksRecord | None = None

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates with their judgement, the smallest one first."""
        found, asked = self.groups, self.terms
        lone = len(found) < 2
        return tuple(
            Candidate(group.rank, group, None if lone else standing_of(self.pairs, index, asked.gain, asked.confidence))
            for index, group in enumerate(found)
        )

    @cached_property
    def chosen(self) -> Candidate | None:
        """The smallest candidate that is shown to be non-inferior."""
        return next((candidate for candidate in self.candidates if candidate.is_non_inferior), None)

    @property
    def verdict(self) -> Verdict:
        """What can be said."""
        if all(group.rank is None for group in self.groups):
            return "constraints_not_met"
        if self.chosen is None:
            return "not_enough_evidence"
        return "no_adapter" if self.chosen.rank is None else "recommended"

    @property
    def rank(self) -> int | None:
        """The recommended rank; None with any other verdict."""
        return self.chosen.rank if self.chosen is not None and self.verdict == "recommended" else None

    @property
    def seeds(self) -> int:
        """The fewest seeds that two candidates have in common; with one, the verdict holds for this seed alone."""
        own = (len(one_a_seed(group)) for group in self.groups if group.rank is not None)
        return self.pairs.seeds or min(own, default=0)

    @property
    def has_unequal_seeds(self) -> bool:
        """Whether ranks have different numbers of seeds, so that their means are over different ones."""
        return len({len(one_a_seed(group)) for group in self.groups if group.rank is not None}) > 1

    def obstacle(self, candidate: Candidate) -> Obstacle | None:
        """Why a candidate is not shown to be non-inferior; None where it is."""
        asked, index = self.terms, self.candidates.index(candidate)
        found = worst_obstacle(self.pairs, index, asked.gain, asked.confidence)
        if found is None:
            return None
        rank, best = (self.groups[one].rank for one in found)
        return Obstacle(rank, best, self.pairs.low(*found, asked.confidence))

    @cached_property
    def settlement(self) -> Settlement | None:
        """What more data would settle the decision; None where there is evidence enough, or nothing to decide."""
        if self.verdict != "not_enough_evidence":
            return None
        examples, asked = self.all_test_examples or 0, self.terms
        return settlement(self.pairs, asked.gain, asked.confidence, self.seeds, examples)

    @property
    def test_examples(self) -> int | None:
        """How many examples every candidate was scored on by this metric; None: an older record does not say."""
        if "answers" in self.terms.metric.subjects and self.pairs.scores:
            return round(float(self.pairs.scores[0].weights.sum()))
        return self.all_test_examples

    @property
    def all_test_examples(self) -> int | None:
        """How many examples the test has: a metric of a part of them is scored on fewer."""
        data = next(iter(self.contest.ranks.values())).trials[0].record.data
        return None if data is None else data.test_examples

    @property
    def nearest(self) -> int | None:
        """Of the ranks that miss a limit, the one that misses it by the least; of equal ones the smaller."""
        return min(self.excluded, key=self._excess, default=None)

    @property
    def is_nearest_known(self) -> bool:
        """Whether that follows from the ends of intervals, and not from costs whose error is unknown."""
        return self.nearest is not None and math.isfinite(self._excess(self.nearest)[0])

    def _excess(self, rank: int) -> tuple[float, float]:
        """By which factor a rank misses its limits at most: by the ends of its intervals, and as measured."""
        ends, costs = zip(*(one.excess for one in self.excluded[rank]), strict=True)
        return max(ends), max(costs)


def recommend_from(
    results: Results,
    *,
    metric: str | None = None,
    margin: float | None = None,
    confidence: float | None = None,
    limits: CostLimits | None = None,
    where: Mapping[str, Any] | None = None,
) -> Recommendation:
    """The recommendation that records support.

    metric: a column of quality; None: the task's main one. margin, confidence: None: the metric's default, and 0.95.
    where: values of further grid axes, where the sweep has several settings. Where the sweep looked at its data while
    they grew, the bounds have the levels of its plan, and what is None here is as it was planned.

    Raises:
        UserError: there is nothing to compare, or an argument is wrong.
    """
    name = next(iter(asked_metrics(results)), None) if metric is None else metric
    contest = contest_of(results, name, where or {})
    looks = _looks_of(contest.folders)
    if looks is not None and looks.metric == contest.metric.name:
        margin = looks.margin if margin is None else margin
        confidence = looks.confidence if confidence is None else confidence
    sure = DEFAULT_CONFIDENCE if confidence is None else confidence
    return _answered(contest, _terms_of(contest.metric, margin, sure, limits), looks)


def asked_metrics(results: Results) -> list[str]:
    """The names of the metrics that may decide: first the one for which the sweep was looked at, then the task's."""
    looks, names = _looks_of(results.folders), [metric.name for metric in metrics_there(results)]
    return sorted(names, key=lambda name: looks is None or name != looks.metric)


def _looks_of(folders: Sequence[Path]) -> LooksRecord | None:
    return next((found for folder in folders if (found := read_looks(folder)) is not None), None)


def recommend(
    folder: Path | str,
    *,
    metric: str | None = None,
    margin: float | None = None,
    confidence: float | None = None,
    limits: CostLimits | None = None,
    where: Mapping[str, Any] | None = None,
    accept_different: Sequence[str] = (),
) -> Recommendation:
    """The recommendation that a run directory's records support; arguments and errors as in `recommend_from`.

    accept_different: keys that may differ between records (`howlow.records.comparability`).
    """
    results = rows([Path(folder)], accept_different)
    return recommend_from(results, metric=metric, margin=margin, confidence=confidence, limits=limits, where=where)


def _terms_of(metric: Column, margin: float | None, confidence: float, limits: CostLimits | None) -> Terms:
    checked = QualityScale(metric).checked_margin(margin)
    return Terms(metric, checked, checked_confidence(confidence), limits or CostLimits())


def _answered(contest: Contest, terms: Terms, looks: LooksRecord | None) -> Recommendation:
    base = contest.base
    stopped = {one.rank for one in (looks.stopped if looks else None) or ()}
    going = [rank for rank in contest.ranks if rank not in stopped]
    costs = {rank: kept(group, terms.limits) for rank, group in contest.ranks.items()}
    _refuse_unmeasured(list(costs.values()), contest)
    excluded = {rank: missed for rank in going if (missed := _missed(costs[rank]))}
    fitting = [contest.ranks[rank] for rank in going if rank not in excluded]
    if not fitting and not excluded:
        folder = contest.folders[0]
        raise UserError(f"{folder}: its looks.json has stopped every rank, so none can be chosen; restore the file")
    if base is not None and not _missed(kept(base, terms.limits)):
        fitting.insert(0, base)
    scores = cluster_scores([one_a_seed(group) for group in fitting], contest.metric) if fitting else []
    plan = LookPlan(looks.information) if looks is not None and looks.information else None
    pairs = Pairs(scores, plan, len(going) + (base is not None))
    first = contest.ranks[min(contest.ranks)].trials[0]
    has_clusters = "answers" not in contest.metric.subjects or names_clusters(first)
    return Recommendation(terms, contest, tuple(fitting), excluded, pairs, has_clusters, looks)


def _missed(all_: Sequence[Kept]) -> tuple[Kept, ...]:
    return tuple(one for one in all_ if not one.is_kept)


def _refuse_unmeasured(costs: Sequence[Sequence[Kept]], contest: Contest) -> None:
    """Refuse a limit on a cost that no rank has."""
    for of_limit in zip(*costs, strict=True):
        if all(one.cost is None for one in of_limit):
            limit = of_limit[0].limit
            folder = contest.comparison.results.folders[0]
            raise UserError(
                f"{limit.option} {limit.value:g}: no trial of {folder} has {limit.columns[0].name}, so nothing can be "
                "held against it; howlow env says what this machine can measure"
            )
