"""What a figure draws: the points of a column over the rank; of many lines and ranks, which ones."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from howlow.analysis.column import Column
from howlow.analysis.columns import BATCH_SIZES, drawn
from howlow.analysis.comparison import Comparison, Group
from howlow.analysis.ratios import Ratio
from howlow.analysis.rows import Trial
from howlow.analysis.statistics import Interval, Statistic
from howlow.reporting import formatting
from howlow.reporting.evidence import runs_words
from howlow.reporting.summary import axes_words
from howlow.reporting.sweeps import conditions_name

MOST_TICKS = 14
MOST_POINTS = 200
_MOST_SERIES = 12

Item = TypeVar("Item")


@dataclass(frozen=True)
class ChartPoint:
    """A group's mean, or one of its trials (`is_dot`), with the texts that are shown on hovering over it.

    low, high: the ends of the mean's interval; None where no error is known, or there is none.
    is_significant: whether a mean relative to the reference's may stand as a number.
    """

    rank: int
    series: str
    y: float
    value: str
    what: str
    is_dot: bool = False
    low: float | None = None
    high: float | None = None
    is_significant: bool = True
    relative: str = ""

    @property
    def extent(self) -> list[float]:
        """The heights that the axis has to hold."""
        return [height for height in (self.y, self.low, self.high) if height is not None]

    @property
    def label(self) -> str:
        """What is shown on hovering over it."""
        parts = (f"rank {self.rank}", self.value, self.relative, self.what, self.series)
        return "; ".join(part for part in parts if part)

    def datum(self) -> dict[str, Any]:
        """The point as Vega reads it."""
        mean: dict[str, Any] = {"rank": self.rank, "series": self.series, "y": self.y, "label": self.label}
        return mean if self.low is None else mean | {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class BatchChange:
    """Where a line's batch size changes: between two ranks, in the middle of the log scale; its label's row."""

    place: float
    label: str
    row: int

    def datum(self) -> dict[str, Any]:
        """The change as Vega reads it."""
        return {"rank": self.place, "label": self.label, "row": self.row}


# -- lines and ranks ------------------------------------------------------------------------------------------------


def ranks_of(comparison: Comparison) -> list[int]:
    """The ranks of all adapters, ascending."""
    return sorted({group.rank for group in comparison.groups if group.rank is not None})


def series_of(group: Group) -> str:
    """The line that a group belongs to: its further axes, and whether its adapters were cut."""
    parts = [axes_words(group.axes), "shrunk" if group.kind == "shrunk" else ""]
    return ", ".join(part for part in parts if part)


def series_in(comparison: Comparison, group: Group, column: Column) -> str:
    """The line of a group in the panel of a column: costs that were measured under other conditions have their own."""
    number = group.counted(column)[0].conditions if column.is_cost else 0
    return ", ".join(part for part in (series_of(group), conditions_name(comparison.results, number)) if part)


def series_label(name: str) -> str:
    """How a line is called where there are several: only that of trained adapters may have no name."""
    return name or "trained"


def drawn_series(comparison: Comparison) -> tuple[list[str], int]:
    """The lines that are drawn, at most 12, and how many there are."""
    groups = [group for group in comparison.groups if group.rank is not None]
    own = [series_of(group) for group in groups]
    has_kinds = any(len(alike) > 1 for alike in comparison.results.conditions)
    costs = [column for stage in BATCH_SIZES for column in drawn(stage)] if has_kinds else []
    apart = [series_in(comparison, group, column) for column in costs for group in groups]
    names = list(dict.fromkeys((*own, *apart)))
    return evenly(names, _MOST_SERIES), len(names)


def drawn_ranks(comparison: Comparison) -> list[int]:
    """The ranks that are drawn; of many, those nearest to even steps on the log scale."""
    ranks, lines = ranks_of(comparison), len(drawn_series(comparison)[0])
    return evenly_in_log(ranks, max(MOST_TICKS, MOST_POINTS // max(1, lines) // 2))


def evenly_in_log(ranks: Sequence[int], most: int) -> list[int]:
    """At most that many of the ranks, even on the log scale, with the first and the last."""
    if len(ranks) <= most:
        return list(ranks)
    ratio = (ranks[-1] / ranks[0]) ** (1 / (most - 1))
    targets = [ranks[0] * ratio**index for index in range(most)]
    return sorted({min(ranks, key=lambda rank: abs(math.log(rank / target))) for target in targets})


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most that many of the items, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


# -- points ---------------------------------------------------------------------------------------------------------


def points_of(comparison: Comparison, column: Column, relative: bool) -> list[ChartPoint]:
    """A point for each group's mean, with its interval, and one for each of its trials where they can be told apart."""
    groups = list(_drawn_groups(comparison, column))
    has_dots = sum(mean.n for _, mean in groups) <= MOST_POINTS
    return [
        point
        for group, mean in groups
        for point in _group_points(comparison, group, mean, column, relative=relative, has_dots=has_dots)
    ]


def _drawn_groups(comparison: Comparison, column: Column) -> Iterator[tuple[Group, Statistic]]:
    series, ranks = set(drawn_series(comparison)[0]), set(drawn_ranks(comparison))
    for group in comparison.groups:
        is_drawn = group.rank in ranks and series_in(comparison, group, column) in series
        if is_drawn and (mean := group.statistic(column)) is not None:
            yield group, mean


def _group_points(
    comparison: Comparison, group: Group, mean: Statistic, column: Column, *, relative: bool, has_dots: bool
) -> Iterator[ChartPoint]:
    runs = runs_words(group)
    what = f"mean of {runs}" if runs else group.trials[0].record.trial
    value = formatting.quantity(mean.mean, column.unit)
    point = ChartPoint(group.rank or 0, series_in(comparison, group, column), _short(mean.mean), value, what)
    if relative:
        ratio = comparison.ratio(group, column)
        if ratio is None:
            return
        text = formatting.relative(ratio, with_ends=True)
        point = replace(point, y=_short(ratio.value), is_significant=ratio.is_shown, relative=text)
        yield _with_bar(point, ratio)
    else:
        yield _with_bar(point, group.interval(column))
    for trial in group.counted(column) if mean.n > 1 and has_dots else ():
        yield from _dot(comparison, trial, point, column, relative)


def _dot(
    comparison: Comparison, trial: Trial, mean: ChartPoint, column: Column, relative: bool
) -> Iterator[ChartPoint]:
    value = trial.row[column.name]
    y = comparison.relative(trial.row, column) if relative else value
    if y is not None:
        text, times = formatting.quantity(value, column.unit), formatting.times(y) if relative else ""
        bare = replace(mean, low=None, high=None, is_significant=True)
        yield replace(bare, y=_short(y), value=text, what=trial.record.trial, relative=times, is_dot=True)


def _with_bar(point: ChartPoint, ends: Interval | Ratio) -> ChartPoint:
    """The point with its interval; an exact figure has no bar."""
    if ends.low is None or ends.high is None or ends.low == ends.high:
        return point
    return replace(point, low=_short(ends.low), high=_short(ends.high))


def _short(value: float) -> float:
    return float(f"{value:.7g}")


# -- batch changes --------------------------------------------------------------------------------------------------


def batch_changes(comparison: Comparison, column: Column, ranks: Sequence[int], width: int) -> list[BatchChange]:
    """Where neighbouring ranks of a line have different batch sizes; `width`: the panel's, in pixels."""
    pixels_per_octave = width / max(1.0, math.log2(max(ranks) / min(ranks)) + 0.6)
    changes: list[BatchChange] = []
    for place, label in sorted(_changes(comparison, column, ranks)):
        last = changes[-1] if changes else None
        is_close = last is not None and math.log2(place / last.place) * pixels_per_octave < 6.5 * len(label)
        changes.append(BatchChange(place, label, 1 - last.row if last is not None and is_close else 0))
    return changes


def _changes(comparison: Comparison, column: Column, ranks: Sequence[int]) -> set[tuple[float, str]]:
    lines: dict[str, list[Group]] = defaultdict(list)
    for group in comparison.groups:
        if group.rank in ranks:
            lines[series_of(group)].append(group)
    found: set[tuple[float, str]] = set()
    for groups in lines.values():
        for left, right in pairwise(sorted(groups, key=lambda group: group.rank or 0)):
            before, after = left.mean(column), right.mean(column)
            if left.rank and right.rank and before is not None and after is not None and before != after:
                found.add((math.sqrt(left.rank * right.rank), f"{before:g} → {after:g}"))
    return found
