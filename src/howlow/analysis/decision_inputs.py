"""What a decision rests on, so that the same rule gives the answer for other margins and limits without the records.

The bounds of a pair of candidates do not depend on the other candidates, and a limit leaves candidates out. So the
differences and half widths of all pairs, and the costs with the worse ends of their intervals, are all that the rule of
`noninferiority` and `constraints` needs. The page holds them, and `reporting/browser/decision.js` has the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from howlow.analysis.bill import BillItem, bill_of
from howlow.analysis.comparison import Group
from howlow.analysis.constraints import CostLimits, Kept, kept
from howlow.analysis.contest import one_a_seed
from howlow.analysis.noninferiority import Pairs
from howlow.analysis.recommendation import Recommendation

_ANY = CostLimits(max_memory_bytes=1.0, max_energy_j=1.0, max_time_s=1.0)
"""Some value for each limit, to ask for the costs that it is about."""


@dataclass(frozen=True)
class CandidateInputs:
    """A candidate: its trials, its seeds (None: it was not trained), and by the limits' names the costs they limit."""

    group: Group
    seeds: int | None
    costs: Mapping[str, Kept]
    bill: tuple[BillItem, ...]

    @property
    def rank(self) -> int | None:
        """Its rank; None: the base model."""
        return self.group.rank


@dataclass(frozen=True)
class PairInputs:
    """The quality of a candidate less that of a larger one, and how far its one-sided bounds are away.

    half_width: at the decision's confidence. strict_half_width: at the level that all candidates share, for a bound
    that holds against all of them together. seeds: those that both have. None: the two cannot be compared.
    """

    value: float
    half_width: float | None
    strict_half_width: float | None
    seeds: int | None


@dataclass(frozen=True)
class DecisionInputs:
    """The candidates, the smallest first, and the pairs (i, j) of their places with i < j."""

    candidates: tuple[CandidateInputs, ...]
    pairs: Mapping[tuple[int, int], PairInputs]


def decision_inputs(found: Recommendation) -> DecisionInputs:
    """The inputs of a decision that was made without limits."""
    assert not found.terms.limits.given, "limits leave candidates out, whose pairs would be missing"
    numbers = combinations(range(len(found.groups)), 2)
    return DecisionInputs(
        tuple(_candidate(found, group) for group in found.groups),
        {pair: _pair(found.pairs, *pair, found.terms.confidence) for pair in numbers},
    )


def _candidate(found: Recommendation, group: Group) -> CandidateInputs:
    reference = found.contest.reference
    is_reference = group.rank == reference.rank
    return CandidateInputs(
        group,
        None if group.rank is None else len(one_a_seed(group)),
        {one.limit.name: one for one in kept(group, _ANY)},
        () if is_reference else tuple(bill_of(found.contest.comparison, group, reference)),
    )


def _pair(pairs: Pairs, ours: int, theirs: int, confidence: float) -> PairInputs:
    difference = pairs.difference(ours, theirs)
    return PairInputs(
        pairs.value(ours, theirs),
        pairs.half_width(ours, theirs, confidence),
        pairs.half_width(ours, theirs, pairs.shared(confidence)),
        None if difference is None else difference.seeds,
    )
