"""Which ranks are worth training: a guess from one adapter that was cut to smaller ranks (`howlow shrink`).

A cut is the best approximation of the trained update at its rank, which says nothing certain about training at that
rank: on 300 questions of SQuAD (alpha = 2r) a cut to rank 1 had an F1 of 55 %, an adapter trained at rank 1 of 42 %. At
rank 16 it was 54 and 57 %. So the smallest rank whose cut is within the margin of the best cut, and the two halvings
below it, are worth a try. The guess rests on means alone. It says what to train next, and no recommendation follows
from it.
"""

import math
from dataclasses import dataclass

from howlow.analysis.column import Column
from howlow.analysis.comparison import Comparison, Group, Reference, quality_metric
from howlow.analysis.margins import QualityScale


@dataclass(frozen=True)
class WorthTraining:
    """The smallest rank whose cut is within the margin of the best one, and the ranks to train.

    behind: how far it is behind the best cut, on the scale on which differences are compared.
    """

    metric: Column
    margin: float
    rank: int
    best_rank: int
    behind: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks to train, ascending."""
        return tuple(sorted({max(1, self.rank // part) for part in (4, 2, 1)}))


def worth_training(comparison: Comparison, reference: Reference) -> WorthTraining | None:
    """What the cut ranks beside a reference suggest; None where they were trained, or fewer than two have a score."""
    metric = quality_metric(comparison.results)
    if reference.group.kind != "shrunk" or metric is None:
        return None
    cuts = [group for group in comparison.groups if reference.is_beside(group)]
    gains = {
        group.rank: gain for group in cuts if (gain := _gain(group, metric)) is not None and group.rank is not None
    }
    if len(gains) < 2:
        return None
    scale = QualityScale(metric)
    best = max(sorted(gains), key=lambda rank: gains[rank])
    margin = scale.default_margin
    enough = min(rank for rank, gain in gains.items() if gains[best] - gain <= scale.as_gain(margin))
    return WorthTraining(metric, margin, enough, best, gains[best] - gains[enough])


def _gain(group: Group, metric: Column) -> float | None:
    """The mean of a metric on the scale on which higher is better, and differences of which are compared."""
    mean = group.mean(metric)
    if mean is None or not QualityScale(metric).is_relative:
        return mean if mean is None or metric.better == "higher" else -mean
    return -math.log(mean)
