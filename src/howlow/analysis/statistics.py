"""Means, spreads, and the error of a figure and of a ratio of two figures.

**One process.** A figure such as time/sample is a ratio of two sums over steps, R = A / C. The steps are cut into at
most 16 blocks of successive steps. Block b, with the sums a and c, moves ln R by u = a / A - c / C, so (the ratio
estimator of Cochran, Sampling Techniques, 3rd edition, chapter 6)

    var(ln R) = B / (B - 1) * sum(u^2).

A ratio of sums weights steps by their samples, as the figure itself does; a mean of step speeds would not.

Successive steps are alike: heat, clocks and background load change more slowly than steps. Blocks of many steps are
nearly independent (batch means; Schmeiser, Operations Research 30, 1982). Blocks of few steps are not, so their
correlation r from one block to the next counts. Its estimate is too small by about (1 + 4 r) / B (Kendall, Biometrika
41, 1954) and noisy, so it is raised by that and by 2 / B more, and lies between 0 and 0.9. Then

    var(ln R) is f = (1 + r) / (1 - r) times as large, and Student's t has B / f - 3 degrees of freedom, at least 1:

B correlated blocks tell as much as B / f independent ones, and r itself costs two. Up to 4 blocks cannot show r, so
fewer than 5 steps have no error.

**Too wide.** Few steps that are alike, or very unsteady ones, lead to an interval that says nothing. Where what one
process shows reaches from below half to above twice the figure, no error is stated, and the report says why. A ratio
so uncertain keeps its interval where that leaves out 1, because it still shows a difference.

**Several processes.** The n values x of a figure move the logarithm of their mean m by u = (x - m) / (n m). The same
formula then gives the usual s^2 / (n m^2) with n - 1 degrees of freedom.

**A ratio of two figures.** Where both rest on the same parts (blocks of steps that did the same work, or processes of
the same seed and repeat), they are paired: u = u1 - u2, so what both have in common cancels. Otherwise the variances
are added, with the degrees of freedom of Welch and Satterthwaite. Intervals are symmetric in the logarithm, so a ratio
and its inverse (throughput and time/sample) are significant together.

An energy's bound is no random error: the energy may be off by all of it. It makes the interval longer at both ends.
"""

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

LEVEL = 0.95
"""How often an interval holds the truth, where its premises hold."""
FEWEST_BLOCKS, MOST_BLOCKS = 5, 16


@dataclass(frozen=True)
class Statistic:
    """A mean over seeds and repeats; one value has no standard deviation (sample standard deviation, n - 1)."""

    mean: float
    deviation: float | None
    n: int


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """The statistic of the values that are present; None where none is."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    deviation = None if len(present) == 1 else float(statistics.stdev(present))
    return Statistic(mean(present), deviation, len(present))


def mean(values: Sequence[float]) -> float:
    """The mean; that of equal values is exactly their value, because rounding never takes it outside of them."""
    return min(max(math.fsum(values) / len(values), min(values)), max(values))


# -- what an error rests on -----------------------------------------------------------------------------------------


NoError = Literal["steps", "readings", "examples", "wide", "sensor", "bound", "process", "zero"]
"""Why a figure has no error: too few steps, readings or test examples; an interval too wide to say anything; a power
sensor that measures for only a part of the time; an energy without a bound; one process, which does not show it; a
figure that is not above 0, so that it has no logarithm."""


@dataclass(frozen=True)
class LogVariance:
    """The variance of a figure's logarithm, and its degrees of freedom."""

    variance: float
    degrees: float

    @property
    def half_width(self) -> float:
        """How far the logarithm's interval reaches to each side."""
        return quantile(self.degrees) * math.sqrt(self.variance) if self.variance else 0.0

    @property
    def is_too_wide(self) -> bool:
        """Whether the interval reaches from below half to above twice the figure, which says nothing about it."""
        return self.half_width > _WIDEST


@dataclass(frozen=True)
class Sample:
    """The parts that a figure rests on: what each of them is of, and how much it moves the figure's logarithm.

    The moves sum to 0. There are at least two.

    in_order: whether the parts follow each other in time, so that neighbours may be alike.
    """

    keys: tuple[Hashable, ...]
    moves: tuple[float, ...]
    in_order: bool

    @property
    def spread(self) -> LogVariance:
        """How far the figure is to be trusted."""
        parts, squares = len(self.moves), math.fsum(move * move for move in self.moves)
        variance = parts / (parts - 1) * squares
        if not self.in_order or not squares:
            return LogVariance(variance, parts - 1)
        products = math.fsum(move * after for move, after in pairwise(self.moves))
        factor = _inflation(products / squares, parts)
        return LogVariance(variance * factor, max(1.0, parts / factor - 3))

    def less(self, other: "Sample") -> "Sample":
        """The sample of this figure divided by another one with the same parts."""
        return Sample(self.keys, tuple(a - b for a, b in zip(self.moves, other.moves, strict=True)), self.in_order)

    def scaled(self, factor: float) -> "Sample":
        """The sample of a figure whose logarithm moves by so much for one of this figure's."""
        return Sample(self.keys, tuple(move * factor for move in self.moves), self.in_order)


_ROUNDING = 1e-15
"""A smaller move of a logarithm is no more than the rounding of floating-point numbers."""
_STRONGEST = 0.9
_WIDEST = math.log(2)


def _inflation(correlation: float, parts: int) -> float:
    """How much larger the variance is because successive parts are alike."""
    raised = (correlation + 3 / parts) / (1 - 4 / parts)
    kept = min(max(raised, 0.0), _STRONGEST)
    return (1 + kept) / (1 - kept)


def of_steps(numerators: Sequence[float], denominators: Sequence[float], work: Hashable) -> Sample | None:
    """The blocks of a ratio of two sums over steps, in their order; None where there are too few or nothing to divide.

    work: equal where the same steps did the same work.
    """
    number = min(MOST_BLOCKS, len(numerators))
    if number < FEWEST_BLOCKS:
        return None
    edges = [round(index * len(numerators) / number) for index in range(number + 1)]
    above, below = (
        [math.fsum(values[first:last]) for first, last in pairwise(edges)] for values in (numerators, denominators)
    )
    total_above, total_below = math.fsum(above), math.fsum(below)
    if total_above <= 0 or total_below <= 0:
        return None
    moves = (a / total_above - b / total_below for a, b in zip(above, below, strict=True))
    seen = tuple(move if abs(move) > _ROUNDING else 0.0 for move in moves)
    return Sample(tuple((work, index) for index in range(number)), seen, in_order=True)


def of_processes(values: Mapping[Hashable, float]) -> Sample | None:
    """The values of several processes, by what each is of (its seed and repeat); None for one, or a mean of 0."""
    if len(values) < 2 or (middle := mean(list(values.values()))) <= 0:
        return None
    moves = tuple((value - middle) / (len(values) * middle) for value in values.values())
    return Sample(tuple(values), moves, in_order=False)


def averaged(samples: Sequence[Sample]) -> Sample | None:
    """The sample of a mean over processes that have the same parts; None where their parts differ."""
    if not samples or any(sample.keys != samples[0].keys for sample in samples):
        return None
    moves = zip(*(sample.moves for sample in samples), strict=True)
    return Sample(samples[0].keys, tuple(math.fsum(parts) / len(samples) for parts in moves), samples[0].in_order)


def between(ours: Sample, theirs: Sample) -> LogVariance:
    """The spread of the ratio of two figures: of their paired parts where they have the same ones."""
    if ours.keys == theirs.keys:
        return ours.less(theirs).spread
    return summed([ours.spread, theirs.spread])


def summed(spreads: Sequence[LogVariance]) -> LogVariance:
    """The spread of what independent parts add up to, with the degrees of freedom of Welch and Satterthwaite."""
    variance = math.fsum(spread.variance for spread in spreads)
    if not variance:
        return LogVariance(0.0, min((spread.degrees for spread in spreads), default=math.inf))
    weights = math.fsum((spread.variance / variance) ** 2 / spread.degrees for spread in spreads)
    return LogVariance(variance, 1 / weights)


@cache
def quantile(degrees: float) -> float:
    """How many standard errors an interval reaches to each side: Student's t for `LEVEL`."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


# -- intervals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """Where a figure may be; an end that nothing bounds is None."""

    low: float | None
    high: float | None


def interval_around(value: float, spread: LogVariance, bound: float = 0.0, divided_by: float = 0.0) -> Interval:
    """The interval of a positive figure.

    bound: the share of the figure by which it may be off at most, beside its random error.
    divided_by: the same of the figure that it was divided by.
    """
    factor = math.exp(min(spread.half_width, 700.0))
    low = value / factor * max(0.0, 1 - bound) / (1 + divided_by)
    high = None if divided_by >= 1 else value * factor * (1 + bound) / (1 - divided_by)
    return Interval(low, high if high is None or math.isfinite(high) else None)
