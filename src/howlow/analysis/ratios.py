"""The ratio of two groups of trials with its interval, and the interval of one group's mean.

Where a group has several processes (seeds, repeats), the spread between them is its error; with one process, what that
process itself shows (`howlow.analysis.uncertainty`). Where only one of the two groups has several, its spread stands
for one process of the other, too, unless that is too short to show its own. An energy whose bound is not known has an
interval only where several processes show how far it varies. Repeats of one seed give the same scores, so scores vary
between seeds; they also vary with the test examples, and the two variances are added.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

from howlow.analysis.column import Column
from howlow.analysis.rows import Trial
from howlow.analysis.statistics import (
    Interval,
    LogVariance,
    NoError,
    Sample,
    averaged,
    between,
    interval_around,
    mean,
    of_processes,
    summed,
)
from howlow.analysis.uncertainty import Evidence

Basis = Literal["itself", "exact", "processes", "one process", "test examples", "unknown"]
"""Where a ratio's error comes from; `itself`: the reference divided by itself."""


@dataclass(frozen=True)
class Ratio:
    """A figure relative to the reference's, with its interval; both ends are None where no error is known."""

    value: float
    low: float | None
    high: float | None
    basis: Basis
    lack: NoError | None = None
    """why no error is known; None where one is"""

    @property
    def is_significant(self) -> bool:
        """Whether the evidence carries a difference: the interval is known and does not hold 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    @property
    def is_shown(self) -> bool:
        """Whether the number may stand: it is significant, or has no error at all."""
        return self.is_significant or self.low == self.value == self.high

    @property
    def error(self) -> float:
        """How far the farther end of the interval is away; 0 for an exact ratio."""
        assert self.low is not None, "only a ratio that is shown has its error shown"
        assert self.high is not None, "only a ratio that is shown has its error shown"
        return max(self.high - self.value, self.value - self.low)


def relative_to(column: Column, value: float, ours: Sequence[Trial], theirs: Sequence[Trial]) -> Ratio:
    """The ratio `value` of the means of a column over two groups of trials, with its interval."""
    if {trial.record.trial for trial in ours} == {trial.record.trial for trial in theirs}:
        return Ratio(value, value, value, "itself")
    own, other = _Side.of(column, ours), _Side.of(column, theirs)
    spread, basis = _spread(column, own, other)
    bounds = [side.bound if side.bound is not None or basis != "processes" else 0.0 for side in (own, other)]
    if spread is None or None in bounds:
        return _unknown(value, "bound" if spread is not None else own.lack or other.lack or "process")
    if not spread.variance and not any(bounds):
        return Ratio(value, value, value, basis)
    if value <= 0:
        return _unknown(value, "zero")
    found = interval_around(value, spread, *(bound or 0.0 for bound in bounds))
    ratio = Ratio(value, found.low, found.high, basis)
    is_vague = _is_vague(column, spread, basis == "processes") and not ratio.is_significant
    return _unknown(value, "wide") if is_vague else ratio


def _unknown(value: float, lack: NoError) -> Ratio:
    return Ratio(value, None, None, "unknown", lack)


def mean_interval(column: Column, trials: Sequence[Trial]) -> Interval:
    """The interval of a column's mean over a group of trials; without ends where no error is known."""
    side = _Side.of(column, trials)
    spread = _of_mean(column, side)
    if spread is None or _is_vague(column, spread, side.processes is not None):
        return Interval(None, None)
    if side.bound is None or side.mean is None or side.mean <= 0:
        return Interval(None, None)
    found = interval_around(side.mean, spread, side.bound)
    is_above = column.unit == "fraction" and found.high is not None and found.high > 1
    return replace(found, high=1.0) if is_above else found


def _of_mean(column: Column, side: "_Side") -> LogVariance | None:
    parts = [side.processes.spread] if side.processes else []
    if column.follows_from_seed or not parts:
        parts += [summed([sample.spread for sample in side.samples])] if side.samples is not None else []
    return summed(parts) if parts else None


def _is_vague(column: Column, spread: LogVariance, has_processes: bool) -> bool:
    """Whether what single processes show, or the test examples, makes an interval too wide to say anything."""
    return spread.is_too_wide and (column.follows_from_seed or not has_processes)


@dataclass(frozen=True)
class _Side:
    """One group: its processes, where it has several, what its trials show of themselves, and energy's bound."""

    mean: float | None
    processes: Sample | None
    number: int
    samples: tuple[Sample, ...] | None
    bound: float | None
    lack: NoError | None
    """why its trials show no error themselves; None where they do"""

    @classmethod
    def of(cls, column: Column, trials: Sequence[Trial]) -> "_Side":
        there = [trial for trial in trials if trial.row[column.name] is not None]
        values = _processes(column, there)
        evidence = [trial.evidence.get(column.name, _nothing(column)) for trial in there]
        bounds = [one.bound for one in evidence if one.bound is not None]
        samples = _averaged(evidence)
        lacks = [one.lack for one in evidence if one.samples is None]
        return cls(
            mean([trial.row[column.name] for trial in there]) if there else None,
            of_processes(values),
            len(values),
            samples,
            mean(bounds) if bounds and len(bounds) == len(evidence) else None,
            None if samples is not None else next(iter(lacks), "process"),
        )


def _nothing(column: Column) -> Evidence:
    return Evidence() if column.is_exact else Evidence(None)


def _processes(column: Column, trials: Sequence[Trial]) -> Mapping[Hashable, float]:
    """The values that vary by chance, by what they are of: of each seed and repeat, or of each seed alone."""
    values: dict[Hashable, list[float]] = defaultdict(list)
    for trial in trials:
        record = trial.record
        key = record.seed if column.follows_from_seed else (record.seed, record.repeat)
        values[key].append(trial.row[column.name])
    return {key: mean(found) for key, found in values.items()}


def _averaged(evidence: Sequence[Evidence]) -> tuple[Sample, ...] | None:
    """What the trials show together; None where one shows nothing, or they do not rest on the same parts."""
    samples = [one.samples for one in evidence if one.samples is not None]
    if not samples or len(samples) < len(evidence):
        return None
    found = [averaged(alike) for alike in zip(*samples, strict=False)]
    return None if None in found else tuple(sample for sample in found if sample is not None)


def _spread(column: Column, own: _Side, other: _Side) -> tuple[LogVariance | None, Basis]:
    processes = _between_processes(own, other)
    within = _within(own, other)
    if column.follows_from_seed:
        parts = [spread for spread in (processes, within) if spread is not None]
        return (summed(parts) if parts else None), ("processes" if processes else "test examples")
    if processes is not None:
        return processes, "processes"
    return within, "exact" if column.is_exact else "one process"


_TOO_FEW: Sequence[NoError] = ("steps", "readings")


def _between_processes(own: _Side, other: _Side) -> LogVariance | None:
    """The spread between processes; None where neither group has several, or the only one of a group is too short."""
    if own.processes and other.processes:
        return between(own.processes, other.processes)
    several, one = (own, other) if own.processes else (other, own)
    if several.processes is None or one.lack in _TOO_FEW:
        return None
    of_mean = several.processes.spread
    of_one = max(of_mean.variance * several.number, _variance(one))
    return LogVariance(of_mean.variance + of_one, of_mean.degrees)


def _variance(side: _Side) -> float:
    return summed([sample.spread for sample in side.samples or ()]).variance


def _within(own: _Side, other: _Side) -> LogVariance | None:
    """The spread by what one process of each group shows; None where one of them shows nothing."""
    if own.samples is None or other.samples is None:
        return None
    pairs = zip_longest(own.samples, other.samples)
    return summed([between(a, b) if a and b else (a or b).spread for a, b in pairs])
