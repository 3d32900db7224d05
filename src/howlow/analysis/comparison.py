"""Trials in relation: means over seeds and repeats, the reference rank, relative figures and the paper's two distances.

As in the paper (section IV), relative figures are divided by the value at the reference rank: the largest rank that
is done among trials equal on every other axis. With several seeds or repeats both sides of the division are means over
them. `howlow.analysis.ratios` gives the ratio its interval.
The paper's section IV.D compares two distances in quality: from the bare model to the smallest adapter, and from the
smallest adapter to the best one.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from howlow.analysis.column import Column
from howlow.analysis.columns import KIND, SWEEP, TRIAL, column_named
from howlow.analysis.ratios import Ratio, mean_interval, relative_to
from howlow.analysis.rows import Results, Row, Trial
from howlow.analysis.statistics import Interval, Statistic, statistic
from howlow.records import Record
from howlow.settings import adapts
from howlow.tasks import task_named


@dataclass(frozen=True)
class Group:
    """Trials that differ only in their seed and repeat."""

    kind: str
    rank: int | None
    axes: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def seeds(self) -> int:
        """How many seeds it has."""
        return len({trial.record.seed for trial in self.trials})

    @property
    def repeats(self) -> int:
        """How often its trials were measured, at most."""
        return max(Counter(trial.record.seed for trial in self.trials).values())

    def statistic(self, column: Column) -> Statistic | None:
        """A column's mean and deviation over the trials that have it."""
        return statistic(trial.row[column.name] for trial in self.trials)

    def interval(self, column: Column) -> Interval:
        """The interval of a column's mean."""
        return mean_interval(column, self.trials)

    def mean(self, column: Column) -> float | None:
        """A column's mean over the trials that have it."""
        found = self.statistic(column)
        return None if found is None else found.mean

    @property
    def is_done(self) -> bool:
        """Whether any of its trials is done."""
        return any(trial.record.status == "done" for trial in self.trials)

    @property
    def status_counts(self) -> dict[str, int]:
        """How many of its trials ended in which way."""
        counts: dict[str, int] = {}
        for trial in self.trials:
            counts[trial.record.status] = counts.get(trial.record.status, 0) + 1
        return counts


@dataclass(frozen=True)
class Reference:
    """The reference rank of the trials that share `axes`, and the larger ranks that were asked for but are not done."""

    axes: Mapping[str, Any]
    rank: int
    group: Group
    requested_rank_missing: tuple[tuple[int, str], ...]

    def is_beside(self, group: Group) -> bool:
        """Whether a group differs from the reference in rank alone: shrunk adapters are not beside trained ones."""
        return group.kind == self.group.kind and axes_key(group.axes) == axes_key(self.axes)

    def suits(self, axes: Mapping[str, Any]) -> bool:
        """Whether adapters with these axes are divided by it: equal on all axes that concern its own."""
        return all(value is None or value == axes[axis] for axis, value in self.axes.items())


@dataclass(frozen=True)
class Comparison:
    """Groups of trials with the reference that each is divided by."""

    results: Results
    groups: tuple[Group, ...]
    references: tuple[Reference, ...]

    @property
    def reference_rank(self) -> int | None:
        """The reference rank; where further axes give several, the largest of them."""
        return max((reference.rank for reference in self.references), default=None)

    @cached_property
    def _by_axes(self) -> dict[str, Reference]:
        return {axes_key(reference.axes): reference for reference in self.references}

    def reference_for(self, row: Row) -> Reference | None:
        """The reference with a row's own axes; a baseline has one where only one reference fits its axes.

        Shrunk adapters have that of the trained ones, which know nothing of an axis that concerns cuts alone.
        """
        if adapts(row[KIND.name]):
            axes = {axis: row[axis] for axis in self.results.axes}
            return self._by_axes.get(axes_key(axes)) or next((one for one in self.references if one.suits(axes)), None)
        fitting = [
            reference
            for reference in self.references
            if all(row[axis] is None or row[axis] == value for axis, value in reference.axes.items())
        ]
        return fitting[0] if len(fitting) == 1 else None

    def relative(self, row: Row, column: Column) -> float | None:
        """A row's value divided by the mean over seeds and repeats at its reference rank.

        None where either is absent, or where one of them was measured differently and accepted anyway.
        """
        reference = self.reference_for(row)
        return None if reference is None else self._divided(row, reference, column)

    def _divided(self, row: Row, reference: Reference, column: Column) -> float | None:
        value = row[column.name]
        if value is None or not column.is_number or self._is_apart(row, reference, column):
            return None
        whole = self._reference_mean(reference, column)
        return value / whole if whole else None

    def _is_apart(self, row: Row, reference: Reference, column: Column) -> bool:
        if not self.results.set_apart:
            return False
        trials = {row[TRIAL.name], *(trial.record.trial for trial in reference.group.trials)}
        return len(trials) > 1 and any((trial, column.name) in self.results.set_apart for trial in trials)

    def relative_mean(self, group: Group, column: Column) -> float | None:
        """The same for the mean over a group's trials."""
        mean = group.mean(column)
        return self.relative({**group.trials[0].row, column.name: mean}, column)

    def ratio(self, group: Group, column: Column) -> Ratio | None:
        """The same with its interval."""
        key = id(group), column.name
        if key not in self._ratios:
            reference = self.reference_for(group.trials[0].row)
            self._ratios[key] = None if reference is None else self.ratio_to(reference, group, column)
        return self._ratios[key]

    @cached_property
    def _ratios(self) -> dict[tuple[int, str], Ratio | None]:
        return {}

    def ratio_to(self, reference: Reference, group: Group, column: Column) -> Ratio | None:
        """A group's mean divided by that of a reference, which may have other values on the further axes."""
        value = self._divided({**group.trials[0].row, column.name: group.mean(column)}, reference, column)
        return None if value is None else relative_to(column, value, group.trials, reference.group.trials)

    @cached_property
    def _means(self) -> dict[tuple[int, str], float | None]:
        return {}

    def _reference_mean(self, reference: Reference, column: Column) -> float | None:
        key = id(reference), column.name
        if key not in self._means:
            self._means[key] = reference.group.mean(column)
        return self._means[key]


def compare(results: Results) -> Comparison:
    """Group trials over their seeds and repeats and find each group's reference."""
    found: dict[tuple[str, int | None, str], list[Trial]] = {}
    for trial in results.trials:
        axes = {axis: trial.row[axis] for axis in results.axes}
        found.setdefault((trial.record.kind, trial.record.rank, axes_key(axes)), []).append(trial)
    groups = tuple(
        Group(kind, rank, {axis: trials[0].row[axis] for axis in results.axes}, tuple(trials))
        for (kind, rank, _), trials in found.items()
    )
    return Comparison(results, groups, tuple(_references(results, groups)))


def _references(results: Results, groups: Iterable[Group]) -> Iterable[Reference]:
    """Those of the trained adapters, and for cut ones that none of them suits, their own."""
    trained = list(_references_of(results, [group for group in groups if group.kind == "lora"]))
    shrunk = [group for group in groups if group.kind == "shrunk"]
    alone = [group for group in shrunk if not any(one.suits(group.axes) for one in trained)]
    return [*trained, *_references_of(results, alone)]


def _references_of(results: Results, groups: Iterable[Group]) -> Iterable[Reference]:
    for ranks in _by_rank(groups):
        done = [rank for rank, group in ranks.items() if group.is_done]
        if not done:
            continue
        largest = max(done)
        asked = results.asked[ranks[largest].axes.get(SWEEP.name)]
        missing = tuple(
            (rank, "/".join(ranks[rank].status_counts) if rank in ranks else "not run yet")
            for rank in asked
            if rank > largest
        )
        yield Reference(ranks[largest].axes, largest, ranks[largest], missing)


def _by_rank(groups: Iterable[Group]) -> list[dict[int, Group]]:
    """For each set of further axes the groups by rank."""
    found: dict[str, dict[int, Group]] = {}
    for group in groups:
        if group.rank is not None:
            found.setdefault(axes_key(group.axes), {})[group.rank] = group
    return list(found.values())


def axes_key(axes: Mapping[str, Any]) -> str:
    """Equal for equal values of the axes."""
    return json.dumps(axes, sort_keys=True, default=str)


# -- the two distances ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distances:
    """Quality from the bare model to the smallest rank, and from there to the best rank, among equal axes.

    `base_to_smallest` and `smallest_to_best` are gains: positive is better, whichever direction the metric has. The
    best rank is the one with the best mean over seeds. Its value is flattered: it is the best of several noisy ones.
    """

    axes: Mapping[str, Any]
    metric: Column
    base: float | None
    smallest_rank: int
    smallest: float
    best_rank: int
    best: float
    base_to_smallest: float | None
    smallest_to_best: float
    ratio: float | None
    seeds: int
    test_examples: int | None


def metrics_of(record: Record) -> list[Column]:
    """The columns that say how well the trial's task was learned, the main one first."""
    return [column_named(name) for name in task_named(record.settings.task.name).metrics]


def quality_metric(results: Results) -> Column | None:
    """The first of the task's metrics that any adapter has a value of."""
    adapters = [row for row in results.rows if adapts(row[KIND.name])]
    for metric in metrics_of(results.trials[0].record):
        if any(row[metric.name] is not None for row in adapters):
            return metric
    return None


def distances(comparison: Comparison) -> tuple[Distances, ...]:
    """The two distances for each set of further axes; empty where quality is absent."""
    metric = quality_metric(comparison.results)
    if metric is None:
        return ()
    return tuple(
        found for reference in comparison.references if (found := _distances(comparison, reference, metric)) is not None
    )


def _distances(comparison: Comparison, reference: Reference, metric: Column) -> Distances | None:
    sign = 1.0 if metric.better == "higher" else -1.0
    groups = _groups_by_rank(comparison, reference, metric)
    means = {rank: mean for rank, group in groups.items() if (mean := group.mean(metric)) is not None}
    if not means:
        return None
    smallest_rank = min(means)
    best_rank = max(sorted(means), key=lambda rank: sign * means[rank])
    base = _base(comparison, reference, metric)
    to_smallest = None if base is None else sign * (means[smallest_rank] - base)
    to_best = sign * (means[best_rank] - means[smallest_rank])
    data = reference.group.trials[0].record.data
    return Distances(
        axes=reference.axes,
        metric=metric,
        base=base,
        smallest_rank=smallest_rank,
        smallest=means[smallest_rank],
        best_rank=best_rank,
        best=means[best_rank],
        base_to_smallest=to_smallest,
        smallest_to_best=to_best,
        ratio=None if to_smallest is None or not to_best else to_smallest / to_best,
        seeds=min(_seeds(groups[rank], metric) for rank in (smallest_rank, best_rank)),
        test_examples=None if data is None else data.test_examples,
    )


def _groups_by_rank(comparison: Comparison, reference: Reference, metric: Column) -> dict[int, Group]:
    """The group of each rank that shares the reference's axes and has a value of the metric."""
    return {
        group.rank: group
        for group in comparison.groups
        if group.rank is not None and reference.is_beside(group) and group.mean(metric) is not None
    }


def _seeds(group: Group, metric: Column) -> int:
    return len({trial.record.seed for trial in group.trials if trial.row[metric.name] is not None})


def _base(comparison: Comparison, reference: Reference, metric: Column) -> float | None:
    """The base model's value with the same values on the axes that can change it."""
    for group in comparison.groups:
        fits = all(value is None or value == reference.axes[axis] for axis, value in group.axes.items())
        if group.kind == "base" and fits and (mean := group.mean(metric)) is not None:
            return mean
    return None
