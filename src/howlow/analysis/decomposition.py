"""Batch or rank: how much of a step from one rank to a larger one is due to each of them.

A larger rank leaves less memory, so with the largest batch that fits it often trains with a smaller batch, too, and the
step mixes two causes. Two legs tell them apart: `"training.batch_size" = ["max", 1]`.

**The path.** A step goes from rank a at batch A to rank b at batch B, where A and B are the largest batches that each
rank ran with. y is the mean of a figure over seeds and repeats. The rank's part is its effect at a fixed batch f, and
the rest is the batch's part:

    y(b, B) / y(a, A)  =  y(b, f) / y(a, f)  x  [y(b, B) / y(b, f)] / [y(a, A) / y(a, f)].

Where A = B, f is that batch, and the batch's part is exactly 1. Otherwise f is B where a ran with B, too: then the
batch changes first, at rank a, and the rank changes at the batch that it ends with. Where a did not, f is A if b ran
with it (the other order), and otherwise the largest batch that both ran with. Where they have none in common, only the
whole step is known.

**The other orders.** The rank's effect may differ from batch to batch. At every further batch that both ranks ran with
it is given, too, divided by the part that was taken: the interaction of batch and rank. Where that is not 1, the split
depends on the order, and no order is the right one. The parts of several steps then do not multiply to those of the
whole way, which is split by itself.

**Errors.** Parts are ratios of means, with the intervals of `howlow.analysis.ratios`. A part that is made of two ratios
has the variances of both logarithms.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from howlow.analysis.column import Column, Stage
from howlow.analysis.columns import BATCH_AXES, BATCH_SIZES, column_named
from howlow.analysis.comparison import Comparison, Group, axes_key, metrics_of
from howlow.analysis.ratios import Ratio, is_itself, product_of
from howlow.analysis.rows import Results, Trial

_COSTS = ("samples_per_s", "energy_per_sample_j", "peak_memory_bytes")


@dataclass(frozen=True)
class RankEffect:
    """The rank's effect at one batch, and what it is relative to the part that was taken."""

    batch: int
    ratio: Ratio
    interaction: Ratio


@dataclass(frozen=True)
class Split:
    """A step in one figure; ratios are the larger rank's value over the smaller one's.

    at_batch: the batch at which the rank's part was taken; None: the ranks have no batch in common, and no parts.
    others: the rank's effect at the further batches that both ranks ran with.
    """

    column: Column
    smaller: float
    larger: float
    total: Ratio
    at_batch: int | None = None
    rank: Ratio | None = None
    batch: Ratio | None = None
    others: tuple[RankEffect, ...] = ()

    @property
    def batch_share(self) -> float | None:
        """The batch's share of the step's logarithm; None where the parts oppose each other or nothing is certain."""
        if self.rank is None or self.batch is None or not self.total.is_significant:
            return None
        if self.rank.value <= 0 or self.batch.value <= 0:
            return None
        of_batch, of_rank = math.log(self.batch.value), math.log(self.rank.value)
        return of_batch / (of_batch + of_rank) if of_batch * of_rank >= 0 and of_batch + of_rank else None


@dataclass(frozen=True)
class RankStep:
    """A step from one rank to a larger one, each at the largest batch that it ran with."""

    smaller_rank: int
    larger_rank: int
    smaller_batch: int
    larger_batch: int
    splits: tuple[Split, ...]

    @property
    def changes_batch(self) -> bool:
        """Whether the batch is another one, so that the step has two causes."""
        return self.smaller_batch != self.larger_batch


@dataclass(frozen=True)
class NoBatch:
    """A rank without a done trial at one value of the batch's axis (None: it is no axis), and how its trials ended."""

    rank: int
    asked: Any
    statuses: tuple[str, ...]


@dataclass(frozen=True)
class Decomposition:
    """All steps between neighbouring ranks at one value of the other axes, and the whole way from first to last.

    batches: what each rank ran with. whole: None where there is but one step.
    """

    stage: Stage
    axes: Mapping[str, Any]
    batches: Mapping[int, tuple[int, ...]]
    steps: tuple[RankStep, ...]
    whole: RankStep | None
    missing: tuple[NoBatch, ...]

    @property
    def axis(self) -> str:
        """The setting that the batch follows from."""
        return BATCH_AXES[self.stage]

    @property
    def told(self) -> tuple[RankStep, ...]:
        """The whole way, then its steps."""
        return self.steps if self.whole is None else (self.whole, *self.steps)


def decompositions(comparison: Comparison) -> tuple[Decomposition, ...]:
    """The decomposition of each stage at each value of the other axes; none where all ranks ran with one batch."""
    return tuple(found for stage in BATCH_AXES for found in _of_stage(comparison.results, stage))


def _of_stage(results: Results, stage: Stage) -> Iterator[Decomposition]:
    alike: dict[str, list[Trial]] = {}
    for trial in results.trials:
        if trial.record.kind == "lora":
            alike.setdefault(axes_key(_other_axes(results, stage, trial)), []).append(trial)
    for trials in alike.values():
        cells, axes = _cells(trials, stage), _other_axes(results, stage, trials[0])
        ranks = sorted({rank for rank, _ in cells})
        if len(ranks) > 1 and len({batch for _, batch in cells}) > 1:
            columns = _columns(results, stage)
            steps = tuple(_step(results, cells, pair, columns) for pair in pairwise(ranks))
            whole = _step(results, cells, (ranks[0], ranks[-1]), columns) if len(ranks) > 2 else None
            batches = {rank: tuple(sorted(batch for one, batch in cells if one == rank)) for rank in ranks}
            yield Decomposition(stage, axes, batches, steps, whole, tuple(_missing(trials, stage)))


_Cells = Mapping[tuple[int, int], Group]
"""The done trials by their rank and by the batch that they ran with."""


def _other_axes(results: Results, stage: Stage, trial: Trial) -> dict[str, Any]:
    return {axis: trial.row[axis] for axis in results.axes if axis != BATCH_AXES[stage]}


def _cells(trials: Sequence[Trial], stage: Stage) -> _Cells:
    found: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        rank, batch = trial.record.rank, trial.row[BATCH_SIZES[stage].name]
        if rank is not None and batch is not None and trial.record.status == "done":
            found.setdefault((rank, batch), []).append(trial)
    return {cell: Group("lora", cell[0], {}, tuple(alike)) for cell, alike in found.items()}


def _missing(trials: Sequence[Trial], stage: Stage) -> Iterator[NoBatch]:
    by_leg: dict[tuple[int, str], list[Trial]] = {}
    for trial in trials:
        if trial.record.rank is not None:
            by_leg.setdefault((trial.record.rank, repr(trial.row.get(BATCH_AXES[stage]))), []).append(trial)
    for (rank, _), alike in sorted(by_leg.items()):
        statuses = tuple(dict.fromkeys(str(trial.record.status) for trial in alike))
        if "done" not in statuses:
            yield NoBatch(rank, alike[0].row.get(BATCH_AXES[stage]), statuses)


def _columns(results: Results, stage: Stage) -> list[Column]:
    costs = [column_named(f"{stage}_{name}") for name in _COSTS]
    return costs if stage == "inference" else [*costs, *metrics_of(results.trials[0].record)]


# -- one step -------------------------------------------------------------------------------------------------------


def _step(results: Results, cells: _Cells, ranks: tuple[int, int], columns: Sequence[Column]) -> RankStep:
    first, last = (max(batch for rank, batch in cells if rank == one) for one in ranks)
    ends = (ranks[0], first), (ranks[1], last)
    splits = (_split(_Figures(results, cells, column), *ends) for column in columns)
    return RankStep(*ranks, first, last, tuple(split for split in splits if split is not None))


@dataclass(frozen=True)
class _Figures:
    """The means of one figure by rank and batch, and their ratios."""

    results: Results
    cells: _Cells
    column: Column

    def _trials(self, cell: tuple[int, int]) -> Sequence[Trial]:
        return self.cells[cell].counted(self.column)

    def mean(self, cell: tuple[int, int]) -> float | None:
        """The mean of a cell; None where it is absent or was measured differently."""
        if cell not in self.cells:
            return None
        names = [trial.record.trial for trial in self._trials(cell)]
        is_apart = any((name, self.column.name) in self.results.set_apart for name in names)
        return None if is_apart else self.cells[cell].mean(self.column)

    def common(self, smaller: int, larger: int) -> list[int]:
        """The batches at which both ranks have this figure, the largest first."""
        batches = sorted({batch for _, batch in self.cells}, reverse=True)
        return [batch for batch in batches if self.mean((smaller, batch)) and self.mean((larger, batch))]

    def ratio(self, *pairs: tuple[tuple[int, int], tuple[int, int]]) -> Ratio:
        """The product of the ratios of pairs of cells."""
        groups = [(self._trials(ours), self._trials(theirs)) for ours, theirs in pairs]
        differing = [pair for pair in groups if not is_itself(*pair)]
        if not differing:
            return Ratio(1.0, 1.0, 1.0, "itself")
        value = math.prod((self.mean(ours) or 0.0) / (self.mean(theirs) or math.inf) for ours, theirs in pairs)
        return product_of(self.column, value, differing)


def _split(figures: _Figures, smaller: tuple[int, int], larger: tuple[int, int]) -> Split | None:
    """A step in one figure; None where one of its ends does not have it, or has 0."""
    values = figures.mean(smaller), figures.mean(larger)
    if not values[0] or not values[1]:
        return None
    whole = Split(figures.column, values[0], values[1], figures.ratio((larger, smaller)))
    (a, first), (b, last) = smaller, larger
    common = figures.common(a, b)
    if not common:
        return whole
    at = next((batch for batch in (last, first) if batch in common), common[0])
    rank = (b, at), (a, at)
    others = (
        RankEffect(
            batch, figures.ratio(((b, batch), (a, batch))), figures.ratio(((b, batch), (a, batch)), ((a, at), (b, at)))
        )
        for batch in common
        if batch != at
    )
    parts = figures.ratio(rank), figures.ratio((larger, (b, at)), ((a, at), smaller))
    return Split(figures.column, values[0], values[1], whole.total, at, *parts, tuple(others))
