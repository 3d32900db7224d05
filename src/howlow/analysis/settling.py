"""How many more seeds or test examples would settle which rank is enough, by the variances found so far.

If the differences found are the true ones, a candidate is shown to be non-inferior once every needed difference is
above -margin by more than its half width. Differences of the next data vary again, so each has to be above by
`_CHANCE` standard errors more: then it is shown in 80 of 100 repetitions. The smallest candidate that can pass is the
goal. Examples are counted in clusters of the present size.

Where a candidate between the goal and another one is worse than that by more than the margin, the other one has to be
shown to be worse than the one that looks best beside it (`noninferiority`).

Where no candidate can pass by the differences found, those that may be chance are taken for none: a difference whose
one-sided upper bound is above 0 counts as 0.

Where the data are looked at while they grow, a number of seeds is judged at the level of its own look.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from howlow.analysis.noninferiority import Pairs

_CHANCE = 0.8416  # the normal distribution's 80 % quantile
_MOST_SEEDS = 50
_MOST_TIMES = 1000.0
"""More than this is no advice."""
Pair = tuple[int, int]


@dataclass(frozen=True)
class Gap:
    """A difference that has to be shown to be above a bound: how far above it is, and how sure all looks have to be."""

    pair: Pair
    above: float
    confidence: float


@dataclass(frozen=True)
class Plan:
    """A number of seeds and of test examples that would settle it, in all; of examples those of the whole test."""

    seeds: int
    examples: int


@dataclass(frozen=True)
class Settlement:
    """What would settle the decision; a way that does not lead there, or not within reason, is None.

    goal: the candidate that would then be recommended; None: by the differences found, none would.
    """

    goal: int | None
    more_seeds: Plan | None = None
    more_examples: Plan | None = None
    both: Plan | None = None


def settlement(pairs: Pairs, margin: float, confidence: float, seeds: int, examples: int) -> Settlement:
    """What would settle the decision, from so many seeds (0: no candidate has several) and examples."""
    chance = partial(_value_or_chance, confidence=confidence)
    found = _goal(pairs, margin, confidence, _value) or _goal(pairs, margin, confidence, chance)
    if found is None:
        return Settlement(None)
    goal, gaps = found
    several = seeds >= 2

    def settles(number: int, times: float) -> bool:
        return all(_passes(pairs, gap, number, times) for gap in gaps)

    only_examples = _fewest_times(lambda times: settles(seeds, times))
    more_seeds = next((n for n in range(seeds + 1, _MOST_SEEDS + 1) if settles(n, 1.0)), None) if several else None
    both = _cheapest(settles, seeds) if several and only_examples is None and more_seeds is None else None
    return Settlement(
        goal,
        None if more_seeds is None else Plan(more_seeds, examples),
        None if only_examples is None else Plan(seeds, round(only_examples * examples)),
        None if both is None else Plan(both[0], round(both[1] * examples)),
    )


def _goal(
    pairs: Pairs, margin: float, confidence: float, value: Callable[[Pairs, Pair], float]
) -> tuple[int, list[Gap]] | None:
    """The smallest candidate that would pass if these were the true differences, and what has to be shown for it."""
    for candidate in range(len(pairs)):
        gaps = list(_gaps(pairs, candidate, margin, confidence, value))
        if all(gap.above > 0 for gap in gaps):
            return candidate, gaps
    return None


def _gaps(
    pairs: Pairs, candidate: int, margin: float, confidence: float, value: Callable[[Pairs, Pair], float]
) -> Iterator[Gap]:
    for ours, theirs in pairs.needed(candidate, confidence):
        above = value(pairs, (ours, theirs)) + margin
        others = (one for one in range(len(pairs)) if one != theirs)
        rival = max(others, key=lambda one, best=theirs: value(pairs, (one, best)))  # type: ignore[misc]
        if ours == candidate or above > 0:
            yield Gap((ours, theirs), above, confidence)
        else:
            yield Gap((rival, theirs), value(pairs, (rival, theirs)), pairs.shared(confidence))


def _value(pairs: Pairs, pair: Pair) -> float:
    return float("-inf") if pairs.difference(*pair) is None else pairs.value(*pair)


def _value_or_chance(pairs: Pairs, pair: Pair, confidence: float) -> float:
    is_chance = pairs.difference(*pair) is not None and pairs.low(pair[1], pair[0], confidence) < 0
    return max(0.0, _value(pairs, pair)) if is_chance else _value(pairs, pair)


def _passes(pairs: Pairs, gap: Gap, seeds: int, times: float) -> bool:
    found, level = pairs.difference(*gap.pair), pairs.level(seeds, gap.confidence)
    assert found is not None, "a goal's pairs have differences"
    if level is None:
        return False
    width, error = found.expected_half_width(seeds, round(found.clusters * times), level)
    return gap.above > width + _CHANCE * error


def _fewest_times(settles: Callable[[float], bool]) -> float | None:
    """How many times as many examples settle it, found to within 5 %; None where no reasonable number does."""
    if not settles(_MOST_TIMES):
        return None
    low, high = 1.0, _MOST_TIMES
    while high > 1.05 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if settles(middle) else (middle, high)
    return high


def _cheapest(settles: Callable[[int, float], bool], seeds: int) -> tuple[int, float] | None:
    """The seeds and the multiple of the examples whose product is the least."""
    found: Sequence[tuple[int, float]] = [
        (number, times)
        for number in range(seeds + 1, _MOST_SEEDS + 1)
        if (times := _fewest_times(lambda times, number=number: settles(number, times))) is not None  # type: ignore[misc]
    ]
    return min(found, key=lambda plan: plan[0] * plan[1], default=None)
