"""Which ranks are shown to be non-inferior: not worse than the best candidate by more than a margin.

Candidates stand in the order of their size: the base model without an adapter, then the ranks. `low(j, b)` is the
one-sided lower bound of the quality of j less that of b (`howlow.analysis.quality_statistics`).

**The rule.** Candidate k is non-inferior if low(k, b) > -margin for every other candidate b, and low(j, b) > -margin
for each candidate j between k and b, too, unless b is *beaten*: shown to be worse than another candidate, so that it
cannot be the best. Any candidate may be the one that beats it, so that bound has the level that all candidates share.

**Why this keeps the error.** Nobody knows which candidate is truly the best, so each of them is taken for the best in
turn (the partitioning principle: Finner and Strassburger, Annals of Statistics 30, 2002; for such sequences of doses
Hsu and Berger, JASA 94, 1999). If b is the best, the others are tested against b in an order that was fixed before the
data were seen: from b's nearest neighbour downwards, and from its other neighbour upwards. Each test has the full
level, and the first failure ends the sequence, so that a truly worse rank below b is accepted with at most
1 - confidence (fixed-sequence testing: Maurer, Hothorn and Lehmacher, 1995). What is claimed has to hold whichever b
is the best; one of these assumptions is true, and its error bounds that of the claim (intersection-union: Berger,
Technometrics 24, 1982). So the best rank is picked inside the procedure, and picking it costs its due; no quantile has
to be raised for the number of ranks.

For a curve that never falls this is the usual sequence from the largest rank downwards. Where quality declines at
high ranks, that sequence would stop at its first rank; this one does not need the high ranks to be good.

A rank above the true best could be accepted wrongly by the other sequence, and counts only if the best itself is not
accepted. Theory bounds both errors together by twice the level. In `benchmarks/recommendations.py` they stay below the
level. Both sequences are needed: without the upward one, a curve with a single good rank is misjudged in 15 % of cases.

Without the exception for beaten candidates, ranks that are all bad in different ways would hide a base model that is
better than each of them: no sequence from a bad rank gets past the next one that is worse still. The true best is
beaten wrongly in at most 1 - confidence of cases, and a claim about k is wrong only if k itself also looks good against
it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

from howlow.analysis.group_sequential import FIRST_LOOK, LookPlan
from howlow.analysis.quality_statistics import ClusterScores, PairedDifference, paired


@dataclass(frozen=True)
class Pairs:
    """The paired differences of candidates that stand in the order of their size.

    plan: where the data were looked at while they grew; every bound then has the level of its look.
    number: of all candidates before limits left some out; None: these are all.
    """

    scores: Sequence[ClusterScores]
    plan: LookPlan | None = None
    number: int | None = None
    _found: dict[tuple[int, int], PairedDifference | None] = field(default_factory=dict)
    _beaten: dict[float, frozenset[int]] = field(default_factory=dict, init=False)  # of this plan

    def __len__(self) -> int:
        return len(self.scores)

    def difference(self, ours: int, theirs: int) -> PairedDifference | None:
        """The quality of one candidate less that of another; None where they cannot be compared."""
        if (ours, theirs) not in self._found:
            self._found[ours, theirs] = paired(self.scores[ours], self.scores[theirs])
        return self._found[ours, theirs]

    def low(self, ours: int, theirs: int, confidence: float) -> float:
        """The one-sided lower bound of that difference; minus infinity where nothing bounds it."""
        found = self._at_its_level(ours, theirs, confidence)
        return float("-inf") if found is None else found[0].low(found[1])

    def half_width(self, ours: int, theirs: int, confidence: float) -> float | None:
        """How far the one-sided bounds of that difference are away; None where nothing bounds it."""
        found = self._at_its_level(ours, theirs, confidence)
        return None if found is None else found[0].half_width(found[1])

    def _at_its_level(self, ours: int, theirs: int, confidence: float) -> tuple[PairedDifference, float] | None:
        """That difference, and how sure to be of it; None where nothing bounds it."""
        found = self.difference(ours, theirs)
        level = None if found is None else self.level(found.seeds, confidence)
        return None if found is None or level is None else (found, level)

    def level(self, seeds: int, confidence: float) -> float | None:
        """How sure to be on so many seeds, so that all looks are as sure as stated; None: no look."""
        if self.plan is None:
            return confidence
        return None if seeds < FIRST_LOOK else self.plan.confidence(seeds, confidence)

    def shared(self, confidence: float) -> float:
        """The level of a bound against whichever other candidate shows most: all of them share the error."""
        return 1 - (1 - confidence) / max(1, (self.number or len(self)) - 1)

    def beaten(self, confidence: float) -> frozenset[int]:
        """The candidates that are shown to be worse than another one."""
        if confidence not in self._beaten:
            level, places = self.shared(confidence), range(len(self))
            worse = (one for one in places if any(self.low(other, one, level) > 0 for other in places if other != one))
            self._beaten[confidence] = frozenset(worse)
        return self._beaten[confidence]

    def needed(self, candidate: int, confidence: float) -> Iterator[tuple[int, int]]:
        """The pairs whose lower bound must be above -margin for a candidate to be non-inferior."""
        return needed(candidate, len(self), self.beaten(confidence))

    @property
    def unknown(self) -> list[tuple[int, int]]:
        """The pairs that cannot be compared: without a common seed, or on a test of a single cluster."""
        return [pair for pair in combinations(range(len(self)), 2) if self.difference(*pair) is None]

    @property
    def seeds(self) -> int | None:
        """The fewest seeds that two candidates have in common; None where no two can be compared."""
        found = (self.difference(*pair) for pair in combinations(range(len(self)), 2))
        return min((one.seeds for one in found if one is not None), default=None)

    def value(self, ours: int, theirs: int) -> float:
        """The difference as estimated, over the seeds that both have."""
        found = self.difference(ours, theirs)
        return self.scores[ours].mean - self.scores[theirs].mean if found is None else found.value


def needed(candidate: int, number: int, beaten: Collection[int] = ()) -> Iterator[tuple[int, int]]:
    """The pairs (j, b) of `number` candidates whose lower bound must be above -margin for one to be non-inferior."""
    for best in range(number):
        between = chain(range(candidate, best), range(best + 1, candidate + 1))
        yield from ((other, best) for other in between if other == candidate or best not in beaten)


def is_non_inferior(pairs: Pairs, candidate: int, margin: float, confidence: float) -> bool:
    """Whether a candidate is shown to be not worse than the best one by more than the margin."""
    return all(pairs.low(*pair, confidence) > -margin for pair in pairs.needed(candidate, confidence))


def worst_obstacle(pairs: Pairs, candidate: int, margin: float, confidence: float) -> tuple[int, int] | None:
    """The needed pair whose lower bound is farthest below -margin; None where all are above."""
    failing = [pair for pair in pairs.needed(candidate, confidence) if pairs.low(*pair, confidence) <= -margin]
    return min(failing, key=lambda pair: pairs.low(pair[0], pair[1], confidence), default=None)


@dataclass(frozen=True)
class Standing:
    """A candidate's quality less that of the best one: as estimated, and its one-sided bounds, at most 0 each.

    against: the candidate that the lower bound was found against: the one that could be better by the most.
    """

    difference: float
    low: float
    high: float
    against: int
    is_non_inferior: bool


def standing_of(pairs: Pairs, candidate: int, margin: float, confidence: float) -> Standing:
    """How a candidate stands to the best one.

    The lower bound holds for any best one. The upper bound is the smallest over all others, each at the level that they
    share, because the smallest is picked.
    """
    others = [other for other in range(len(pairs)) if other != candidate]
    against = min(others, key=lambda other: pairs.low(candidate, other, confidence))
    highs = [-pairs.low(other, candidate, pairs.shared(confidence)) for other in others]
    return Standing(
        difference=min(0.0, *(pairs.value(candidate, other) for other in others)),
        low=min(0.0, pairs.low(candidate, against, confidence)),
        high=min(0.0, *highs),
        against=against,
        is_non_inferior=is_non_inferior(pairs, candidate, margin, confidence),
    )
