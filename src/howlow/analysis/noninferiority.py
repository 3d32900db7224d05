"""Which ranks are shown to be non-inferior: not worse than the best candidate by more than a margin.

Candidates stand in the order of their size: the base model without an adapter, then the ranks. `low(j, b)` is the
one-sided lower bound of the quality of j less that of b (`howlow.analysis.quality_statistics`).

**The rule.** Candidate k is non-inferior if low(j, b) > -margin for every other candidate b and every j from k up to
b's neighbour: k itself, and each candidate between k and b.

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
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from howlow.analysis.group_sequential import FIRST_LOOK, LookPlan
from howlow.analysis.quality_statistics import ClusterScores, PairedDifference, paired


@dataclass(frozen=True)
class Pairs:
    """The paired differences of candidates that stand in the order of their size.

    plan: where the data were looked at while they grew; every bound then has the level of its look.
    """

    scores: Sequence[ClusterScores]
    plan: LookPlan | None = None
    _found: dict[tuple[int, int], PairedDifference | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    def difference(self, ours: int, theirs: int) -> PairedDifference | None:
        """The quality of one candidate less that of another; None where they cannot be compared."""
        if (ours, theirs) not in self._found:
            self._found[ours, theirs] = paired(self.scores[ours], self.scores[theirs])
        return self._found[ours, theirs]

    def low(self, ours: int, theirs: int, confidence: float) -> float:
        """The one-sided lower bound of that difference; minus infinity where nothing bounds it."""
        found = self.difference(ours, theirs)
        if found is None or (self.plan is not None and found.seeds < FIRST_LOOK):
            return float("-inf")
        return found.low(confidence if self.plan is None else self.plan.confidence(found.seeds, confidence))

    def value(self, ours: int, theirs: int) -> float:
        """The difference as estimated, over the seeds that both have."""
        found = self.difference(ours, theirs)
        return self.scores[ours].mean - self.scores[theirs].mean if found is None else found.value


def needed(candidate: int, number: int) -> Iterator[tuple[int, int]]:
    """The pairs (j, b) of `number` candidates whose lower bound must be above -margin for one to be non-inferior."""
    for best in range(number):
        between = chain(range(candidate, best), range(best + 1, candidate + 1))
        yield from ((other, best) for other in between)


def is_non_inferior(pairs: Pairs, candidate: int, margin: float, confidence: float) -> bool:
    """Whether a candidate is shown to be not worse than the best one by more than the margin."""
    return all(pairs.low(*pair, confidence) > -margin for pair in needed(candidate, len(pairs)))


def worst_obstacle(pairs: Pairs, candidate: int, margin: float, confidence: float) -> tuple[int, int] | None:
    """The needed pair whose lower bound is farthest below -margin; None where all are above."""
    failing = [pair for pair in needed(candidate, len(pairs)) if pairs.low(*pair, confidence) <= -margin]
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

    The lower bound holds for any best one. The upper bound is the smallest over all others, each at a level that is
    divided by their number, because the smallest is picked.
    """
    others = [other for other in range(len(pairs)) if other != candidate]
    against = min(others, key=lambda other: pairs.low(candidate, other, confidence))
    strict = 1 - (1 - confidence) / len(others)
    highs = [-pairs.low(other, candidate, strict) for other in others]
    return Standing(
        difference=min(0.0, *(pairs.value(candidate, other) for other in others)),
        low=min(0.0, pairs.low(candidate, against, confidence)),
        high=min(0.0, *highs),
        against=against,
        is_non_inferior=is_non_inferior(pairs, candidate, margin, confidence),
    )
