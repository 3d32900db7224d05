"""Which rank needs a further seed, while a sweep runs until its recommendation holds.

The decision waits for the smallest candidate that is not shown to be enough yet but still can be. Its comparisons that
are not shown name the ranks whose next seed tells most; all others wait. A candidate is *hopeless* where, by the
differences and variances found so far, a needed comparison would not be shown with all planned seeds even if it turned
out better by 1.28 standard errors: its chance is then below 10 %. A comparison of a candidate between it and another
one is needed only until that other one is shown to be worse than any candidate. The decision holds once every candidate
below the recommended one is hopeless. If all are, no planned seed is expected to settle it.

After its first seed, a rank is stopped where it is worse than another one by far more than chance or seeds explain: the
upper bound of its difference, at a level divided by the number of candidates, is below three margins. It takes no
part any more.

None of this can raise the error of what is claimed, except for the ranks that are stopped after one seed, for which
nothing is claimed (`howlow.analysis.group_sequential`; `benchmarks/sooner.py` counts both).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from howlow.analysis.noninferiority import Pairs, is_non_inferior
from howlow.analysis.quality_statistics import PairedDifference

_CHANCE = 1.2816  # the normal distribution's 90 % quantile
_MARGINS_BELOW = 3.0


@dataclass(frozen=True)
class NextSeeds:
    """What a look says.

    chosen: the candidate that would be recommended now. goal: the smaller one that may still be shown to be enough.
    candidates: those whose next seed would tell most about the goal.
    """

    chosen: int | None
    goal: int | None
    candidates: tuple[int, ...]

    @property
    def is_settled(self) -> bool:
        """Whether no further seed is expected to change what is recommended."""
        return self.goal is None


def next_seeds(pairs: Pairs, margin: float, confidence: float, most_seeds: int) -> NextSeeds:
    """Which candidates need a further seed; `most_seeds` are planned in all."""
    chosen = next((one for one in range(len(pairs)) if is_non_inferior(pairs, one, margin, confidence)), None)
    for candidate in range(len(pairs) if chosen is None else chosen):
        open_pairs = list(_open_pairs(pairs, candidate, margin, confidence, most_seeds))
        if None not in open_pairs:
            lagging = {one for pair in open_pairs if pair is not None for one in _lagging(pairs, *pair)}
            return NextSeeds(chosen, candidate, tuple(sorted(lagging)))
    return NextSeeds(chosen, None, ())


def _open_pairs(
    pairs: Pairs, candidate: int, margin: float, confidence: float, most_seeds: int
) -> Iterator[tuple[int, int] | None]:
    """The comparisons that would show a candidate to be enough, of those not shown yet; None: one has no chance."""
    for pair in pairs.needed(candidate, confidence):
        if pairs.low(*pair, confidence) > -margin:
            continue
        if _can_be_shown(pairs, pair, margin, confidence, most_seeds):
            yield pair
        else:
            yield None if pair[0] == candidate else _beating(pairs, pair[1], confidence, most_seeds)


def _beating(pairs: Pairs, best: int, confidence: float, most_seeds: int) -> tuple[int, int] | None:
    """The comparison that may show a candidate not to be the best, so that those on the way to it do not count."""
    rival = max((one for one in range(len(pairs)) if one != best), key=lambda one: pairs.value(one, best))
    is_possible = _can_be_shown(pairs, (rival, best), 0.0, pairs.shared(confidence), most_seeds)
    return (rival, best) if is_possible else None


def _can_be_shown(pairs: Pairs, pair: tuple[int, int], margin: float, confidence: float, most_seeds: int) -> bool:
    """Whether all planned seeds have a chance to show a difference that is not shown yet."""
    found = pairs.difference(*pair)
    if found is None or found.seeds >= most_seeds:
        return False
    level = confidence if pairs.plan is None else pairs.plan.confidence(most_seeds, confidence)
    width, _ = found.expected_half_width(most_seeds, found.clusters, level)
    return found.value + _CHANCE * _error(found) + margin > width


def _error(found: PairedDifference) -> float:
    """The standard error of a difference as it stands."""
    return found.expected_half_width(found.seeds, found.clusters, 0.9)[1]


def _lagging(pairs: Pairs, ours: int, theirs: int) -> Iterator[int]:
    """Of two candidates, those that have no more seeds than they have in common; an untrained one needs none."""
    trained = [one for one in (ours, theirs) if pairs.scores[one].seeds]
    fewest = min(len(pairs.scores[one].seeds) for one in trained)
    yield from (one for one in trained if len(pairs.scores[one].seeds) == fewest)


def stopped_after_one_seed(pairs: Pairs, margin: float, confidence: float) -> dict[int, float]:
    """The trained candidates that are hopeless by their first seed, each with the upper bound of its difference."""
    strict = 1 - (1 - confidence) / max(len(pairs) - 1, 1)
    found = {}
    for one in range(len(pairs)):
        others = (pairs.difference(other, one) for other in range(len(pairs)) if other != one)
        high = min((-other.low(strict) for other in others if other is not None), default=0.0)
        if pairs.scores[one].seeds and high < -_MARGINS_BELOW * margin:
            found[one] = high
    return found
