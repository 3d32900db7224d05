"""The ways in which a simulated sweep over ranks 1 to 2048 may be run, from its first trial to what it says.

`until_decided` takes the steps of `howlow sweep --until-decided` with its own functions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from simulated import CAUSES, CONFIDENCE, MARGIN, NOISE, Floats, shapes, simulated_scores

from howlow.analysis.allocation import next_seeds, stopped_after_one_seed
from howlow.analysis.group_sequential import LookPlan, plan_of
from howlow.analysis.noninferiority import Pairs
from howlow.analysis.quality_statistics import ClusterScores, PairedDifference, paired

SEEDS = 5
RANKS = [2**index for index in range(12)]
SHAPES = shapes(len(RANKS))


@dataclass(frozen=True)
class Setting:
    """What a sweep is like."""

    shape: str
    examples: int
    noise: str
    cause: str


@dataclass
class Simulated:
    """A sweep whose trials are all known; `shown` says how many seeds of each candidate were run.

    of_first_seed: the quality of the adapters that the first seed trained.
    """

    truth: Floats
    of_first_seed: Floats
    sums: list[Floats]
    weights: Floats
    shown: list[int]
    stopped: list[int] = field(default_factory=list)
    differences: dict[tuple[int, int, int], PairedDifference | None] = field(default_factory=dict)

    @property
    def going(self) -> list[int]:
        """The candidates that were run and not stopped, the base model first."""
        return [one for one, seeds in enumerate(self.shown) if (seeds or one == 0) and one not in self.stopped]

    def pairs(self, plan: LookPlan | None = None) -> Pairs:
        """What is known of the candidates that go on; a difference that a look has computed stays."""
        going = self.going
        known = {
            (i, j): self._difference(going[i], going[j]) for i in range(len(going)) for j in range(len(going)) if i != j
        }
        return Pairs([self._scores(one) for one in going], plan, _found=known)

    def _difference(self, ours: int, theirs: int) -> PairedDifference | None:
        key = ours, theirs, min(self.shown[one] for one in (ours, theirs) if one)
        if key not in self.differences:
            self.differences[key] = paired(self._scores(ours), self._scores(theirs))
        return self.differences[key]

    def _scores(self, one: int) -> ClusterScores:
        seeds = tuple(range(self.shown[one])) if one else ()
        return ClusterScores(seeds, self.sums[one][: max(1, self.shown[one])], self.weights, is_bounded=False)


def simulated(generator: np.random.Generator, setting: Setting) -> Simulated:
    """A sweep of this kind."""
    truth, noise = np.array(SHAPES[setting.shape]), NOISE[setting.noise]
    found = simulated_scores(generator, truth, SEEDS, setting.examples, noise, CAUSES[setting.cause])
    of_first_seed = truth + [float(effects[0]) for effects in found.effects]
    return Simulated(truth, of_first_seed, found.sums, found.weights, [0] * len(truth))


def guide(generator: np.random.Generator, truth: Floats) -> list[int]:
    """The candidates worth training by truncations of the reference rank's adapter, the smallest first."""
    seen = [quality - 0.03 * 2.0**-index for index, quality in enumerate(truth[1:])] + generator.normal(0, 0.005, 12)
    enough = next(index for index, score in enumerate(seen) if score >= seen[-1] - MARGIN)
    return sorted({enough + 1, min(enough + 2, 12), 12})


@dataclass(frozen=True)
class Ending:
    """What a sweep said, and what it ran: the seeds of each rank."""

    chosen: int | None
    looks: int
    ran: tuple[int, ...]


def until_decided(sweep: Simulated, opening: Sequence[int], *, is_planned: bool) -> Ending:
    """The steps of `howlow sweep --until-decided`."""
    sweep.shown = [1 if one in opening else 0 for one in range(len(sweep.truth))]
    sweep.stopped = []
    going = sweep.going
    hopeless = stopped_after_one_seed(sweep.pairs(), MARGIN, CONFIDENCE)
    worst = sorted(hopeless, key=lambda one: hopeless[one])[: max(0, len(opening) - 2)]
    sweep.stopped = [going[one] for one in worst]
    for one in sweep.going:
        sweep.shown[one] = 2 if one else 0
    pairs, trained = sweep.pairs(), range(1, len(sweep.going))
    found = [pairs.difference(*pair) for pair in pairwise(trained)]
    plan = plan_of([one for one in found if one is not None], SEEDS) if is_planned else None
    for looks in range(1, 100):
        need = next_seeds(sweep.pairs(plan), MARGIN, CONFIDENCE, SEEDS)
        if need.is_settled:
            chosen = None if need.chosen is None else sweep.going[need.chosen]
            return Ending(chosen, looks, tuple(sweep.shown[1:]))
        for one in [sweep.going[index] for index in need.candidates]:
            sweep.shown[one] += 1
    raise AssertionError("every look adds a seed")


def looked_at_once(sweep: Simulated, trained: Sequence[int], seeds: int) -> Ending:
    """These ranks with so many seeds, and one look."""
    sweep.shown, sweep.stopped = [seeds if one in trained else 0 for one in range(len(sweep.truth))], []
    need = next_seeds(sweep.pairs(), MARGIN, CONFIDENCE, seeds)
    chosen = None if need.chosen is None else sweep.going[need.chosen]
    return Ending(chosen, 1, tuple(sweep.shown[1:]))


WAYS = ("planned", "naive", "all seeds", "guided", "guided pair")


def endings(generator: np.random.Generator, sweep: Simulated) -> Iterator[Ending]:
    """The ending of each way to run the same sweep."""
    everyone, guided = range(1, len(sweep.truth)), guide(generator, sweep.truth)
    yield until_decided(sweep, everyone, is_planned=True)
    yield until_decided(sweep, everyone, is_planned=False)
    yield looked_at_once(sweep, everyone, SEEDS)
    yield until_decided(sweep, guided, is_planned=True)
    yield looked_at_once(sweep, [guided[0], guided[-1]], 1)
