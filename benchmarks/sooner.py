"""How often a sweep that runs until its recommendation holds is wrong, and what it costs: simulated, with known truths.

    python benchmarks/sooner.py [--sweeps N] [--comparisons N]

**One comparison.** A rank is worse than another one by exactly the margin, so every claim that it is enough is wrong.
It is looked at after every seed from the second on. *naive* tests at 5 % each time; *planned* has the levels of
`howlow.analysis.group_sequential`. The variances are taken from this comparison and those of 3 or 11 neighbours.

**Sweeps** over ranks 1 to 2048 with a base model and at most 5 seeds take the steps of `howlow sweep --until-decided`:
the same functions choose the next seeds, stop ranks and say when to end. They differ in the shape of the curve, in
noise, and in what causes it. Shapes with cliffs are made to provoke errors. A recommendation is *wrong* if the rank, or
the base model, is truly worse than the best candidate by the margin or more, a rank that was stopped included.

* *planned*: as built. *naive*: the same, with every look at 95 %.
* *all seeds*: every rank with all seeds, looked at once.
* *guided*: only the reference rank, and the two ranks that its adapter, truncated to each rank, points to: the smallest
  whose truncation is within the margin of the reference, and the next larger one. A truncation scores like the rank,
  less 0.03 at rank 1 and half as much at each doubling, and with an error of 0.005.
* *cost*: fine-tunings, in units of one at the reference rank, where every rank costs the same (as SmolLM2-135M on a CPU
  nearly does), and by the throughputs of LLaMA-3.1-8B's shape on an H100 with the largest batch that fits (21.3
  samples/s at rank 1, 19.8 at 512, 3.39 at 2048; between 512 and 2048 by the geometric mean).

It fails where more than 5 % are wrong by more than chance explains (binomial interval, 99 %), in all or in any shape.
The last line is one JSON document.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from howlow.analysis.allocation import next_seeds, stopped_after_one_seed
from howlow.analysis.group_sequential import FIRST_LOOK, LookPlan, plan_of
from howlow.analysis.noninferiority import Pairs
from howlow.analysis.quality_statistics import ClusterScores, PairedDifference, paired

MARGIN, CONFIDENCE, SEEDS = 0.02, 0.95, 5
RANKS = [2**index for index in range(12)]
Floats = NDArray[np.float64]


# -- one comparison -------------------------------------------------------------------------------------------------

CAUSES = {"examples": 0.0, "both": 1.0, "seeds": 10.0}
"""The variance of a difference by its seed, in units of that by its examples."""


def comparison(generator: np.random.Generator, seeds: int, of_seeds: float, clusters: int = 60) -> Floats:
    """The scores of one rank less those of another one, by seed and cluster; on average worse by the margin."""
    by_cluster = generator.normal(0, 1, clusters)
    rest = generator.normal(0, 0.5, (seeds, clusters))
    by_seed = generator.normal(0, np.sqrt(of_seeds / clusters), seeds)
    return 0.05 * (by_seed[:, None] + by_cluster[None, :] + rest) - MARGIN


def difference(table: Floats) -> PairedDifference:
    """The comparison of that table with nothing."""
    seeds, clusters = tuple(range(len(table))), table.shape[1]
    pair = (ClusterScores(seeds, one, np.ones(clusters), is_bounded=False) for one in (table, np.zeros_like(table)))
    found = paired(*pair)
    assert found is not None, "both have the same seeds"
    return found


def wrong_claims(generator: np.random.Generator, number: int, seeds: int, of_seeds: float, ranks: int) -> list[float]:
    """How often a comparison at the margin is claimed to be within it: naive and planned."""
    naive = planned = 0
    for _ in range(number):
        tables = [comparison(generator, seeds, of_seeds) for _ in range(ranks - 1)]
        plan = plan_of([difference(table[:FIRST_LOOK]) for table in tables], seeds)
        looks = [difference(tables[0][:n]) for n in range(FIRST_LOOK, seeds + 1)]
        naive += any(one.low(CONFIDENCE) > -MARGIN for one in looks)
        planned += any(one.low(plan.confidence(one.seeds, CONFIDENCE)) > -MARGIN for one in looks)
    return [naive / number, planned / number]


# -- sweeps ---------------------------------------------------------------------------------------------------------


def _saturating(middle: float) -> list[float]:
    return [0.2, *(0.6 - 0.15 * 2.0 ** -(2 * index / middle) for index in range(len(RANKS)))]


SHAPES: dict[str, list[float]] = {
    "saturates early": _saturating(1),
    "saturates late": _saturating(5),
    "rises": [0.2, *(0.4 + 0.02 * index for index in range(12))],
    "flat": [0.2, *[0.6] * 12],
    "falls at high ranks": [0.2, 0.55, 0.58, *[0.6] * 5, 0.59, 0.57, 0.53, 0.45, 0.4],
    "base as good": [0.6, *[0.6] * 12],
    "base just too low": [0.6 - MARGIN, *[0.6] * 12],
    "cliff": [0.2, *[0.6 - MARGIN] * 6, *[0.6] * 6],
    "two cliffs": [0.2, *[0.6 - MARGIN] * 4, *[0.6] * 3, *[0.6 - MARGIN] * 5],
    "slope of margins": [0.2, *(0.6 - MARGIN * (11 - index) for index in range(12))],
}
EXAMPLES = (500, 2000, 10000)
NOISE = {"low": 0.1, "high": 0.3}
SHARES = {"examples": 0.1, "both": 1.0, "seeds": 4.0}
"""The standard deviation of a rank's mean by its seed, in units of that by its examples."""


@dataclass(frozen=True)
class Setting:
    """What a sweep is like."""

    shape: str
    examples: int
    noise: str
    cause: str


@dataclass
class Simulated:
    """A sweep whose trials are all known; `shown` says how many seeds of each candidate were run."""

    truth: Floats
    sums: list[Floats]
    weights: Floats
    shown: list[int]
    stopped: list[int] = field(default_factory=list)

    @property
    def going(self) -> list[int]:
        """The candidates that were run and not stopped, the base model first."""
        return [one for one, seeds in enumerate(self.shown) if (seeds or one == 0) and one not in self.stopped]

    def pairs(self, plan: LookPlan | None = None) -> Pairs:
        """What is known of the candidates that go on."""
        return Pairs([self._scores(one) for one in self.going], plan)

    def _scores(self, one: int) -> ClusterScores:
        seeds = tuple(range(self.shown[one])) if one else ()
        return ClusterScores(seeds, self.sums[one][: max(1, self.shown[one])], self.weights, is_bounded=False)


def simulated(generator: np.random.Generator, setting: Setting) -> Simulated:
    """A sweep of this kind; in half of them, the seeds' part of the two highest ranks is twice as large."""
    sizes = generator.integers(1, 10, setting.examples // 5)
    noise, truth = NOISE[setting.noise], np.array(SHAPES[setting.shape])
    of_seed, widens = SHARES[setting.cause] * noise / setting.examples**0.5, bool(generator.integers(2))
    hard, sums = generator.normal(0, 0.3, len(sizes)) * sizes, []
    for index, quality in enumerate(truth):
        seeds = SEEDS if index else 1
        spread = of_seed * (0 if index == 0 else 2 if widens and index >= len(truth) - 2 else 1)
        effects = generator.normal(0, 1, seeds) * spread
        own = generator.normal(0, noise / 2, len(sizes)) * sizes
        rest = generator.normal(0, noise, (seeds, len(sizes))) * np.sqrt(sizes)
        sums.append((quality + effects)[:, None] * sizes + own + rest + hard)
    return Simulated(truth, sums, sizes.astype(float), [0] * len(truth))


def guide(generator: np.random.Generator, truth: Floats) -> list[int]:
    """The candidates worth training by truncations of the reference rank's adapter."""
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


def with_all_seeds(sweep: Simulated) -> Ending:
    """Every rank with every seed, and one look."""
    sweep.shown, sweep.stopped = [0] + [SEEDS] * 12, []
    need = next_seeds(sweep.pairs(), MARGIN, CONFIDENCE, SEEDS)
    return Ending(need.chosen, 1, tuple(sweep.shown[1:]))


def costs(ran: Sequence[int]) -> tuple[float, float]:
    """Fine-tunings in units of one at the reference rank: at equal costs, and at those of an H100."""
    per_s = [float(np.interp(np.log2(rank), [0, 9, 11], np.log([21.3, 19.8, 3.39]))) for rank in RANKS]
    on_h100 = [3.39 / float(np.exp(one)) for one in per_s]
    return float(sum(ran)), float(np.dot(ran, on_h100))


# -- counting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """The endings of one kind of sweep."""

    wrong: int
    undecided: int
    frugal: int
    trials: float
    looks: float
    costs: tuple[float, float]
    number: int

    @classmethod
    def of(cls, endings: Sequence[tuple[Ending, Floats]]) -> "Counted":
        """Count the endings, each with its truth."""
        good = [np.flatnonzero(truth > truth.max() - MARGIN + 1e-12) for _, truth in endings]
        chosen = [ending.chosen for ending, _ in endings]
        both = [costs(ending.ran) for ending, _ in endings]
        return cls(
            sum(one is not None and one not in fine for one, fine in zip(chosen, good, strict=True)),
            sum(one is None for one in chosen),
            sum(one == int(fine[0]) for one, fine in zip(chosen, good, strict=True)),
            float(np.mean([sum(ending.ran) for ending, _ in endings])),
            float(np.mean([ending.looks for ending, _ in endings])),
            (float(np.mean([one for one, _ in both])), float(np.mean([other for _, other in both]))),
            len(endings),
        )

    @property
    def holds(self) -> bool:
        """Whether the rate of wrong recommendations may be the stated one or less."""
        return bool(binomtest(self.wrong, self.number).proportion_ci(0.99).low <= 1 - CONFIDENCE)

    def line(self, name: str) -> str:
        """For people."""
        shares = "".join(f"{one / self.number:>11.1%}" for one in (self.wrong, self.undecided, self.frugal))
        told = f"{self.trials:>9.1f}{self.looks:>7.1f}{self.costs[0]:>9.1f}{self.costs[1]:>9.1f}"
        return f"{name:30}{self.number:>7}{shares}{told}{'' if self.holds else '  MORE THAN STATED'}"

    def document(self) -> dict[str, float]:
        """For the last line."""
        shares = {name: getattr(self, name) / self.number for name in ("wrong", "undecided", "frugal")}
        return shares | {"trials": self.trials, "looks": self.looks, "cost": self.costs[0], "cost_h100": self.costs[1]}


def settings() -> Iterator[Setting]:
    for parts in product(SHAPES, EXAMPLES, NOISE, SHARES):
        yield Setting(*parts)


def swept(generator: np.random.Generator, number: int) -> dict[str, list[tuple[Setting, Ending, Floats]]]:
    """The endings of each way to run the same simulated sweeps."""
    every = list(settings())
    order = [int(one) for _ in range(-(-number // len(every))) for one in generator.permutation(len(every))][:number]
    found: dict[str, list[tuple[Setting, Ending, Floats]]] = {"planned": [], "naive": [], "all seeds": [], "guided": []}
    for index in order:
        sweep, everyone = simulated(generator, every[index]), range(1, 13)
        endings = {
            "planned": until_decided(sweep, everyone, is_planned=True),
            "naive": until_decided(sweep, everyone, is_planned=False),
            "all seeds": with_all_seeds(sweep),
            "guided": until_decided(sweep, guide(generator, sweep.truth), is_planned=True),
        }
        for way, ending in endings.items():
            found[way].append((every[index], ending, sweep.truth))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--comparisons", type=int, default=2000)
    asked, generator = parser.parse_args(), np.random.default_rng(17)
    claims = {}
    print(f"{'one comparison at the margin':46}{'naive':>9}{'planned':>9}")
    for (cause, share), seeds, ranks in product(CAUSES.items(), (3, 5, 10), (2, 4, 12)):
        rates = wrong_claims(generator, asked.comparisons, seeds, share, ranks)
        claims[f"{cause}, {seeds} seeds, {ranks} ranks"] = rates
        print(f"{f'{cause}, at most {seeds} seeds, {ranks} ranks':46}{rates[0]:>9.1%}{rates[1]:>9.1%}")
    found = swept(generator, asked.sweeps)
    heads = f"{'wrong':>11}{'undecided':>11}{'frugal':>11}{'trials':>9}{'looks':>7}{'cost':>9}{'H100':>9}"
    print(f"\n{'sweeps':30}{'number':>7}{heads}")
    rates_of = {way: Counted.of([(ending, truth) for _, ending, truth in all_]) for way, all_ in found.items()}
    for way, counted in rates_of.items():
        print(counted.line(way))
    by_shape = {
        shape: Counted.of([(ending, truth) for one, ending, truth in found["planned"] if one.shape == shape])
        for shape in dict.fromkeys(one.shape for one, _, _ in found["planned"])
    }
    for shape, counted in by_shape.items():
        print(counted.line(f"planned: {shape}"))
    told = {way: counted.document() for way, counted in rates_of.items()}
    print(json.dumps({"margin": MARGIN, "confidence": CONFIDENCE, "comparisons": claims, "sweeps": told}))
    limit = 1 - CONFIDENCE
    level = all(
        binomtest(round(planned * asked.comparisons), asked.comparisons).proportion_ci(0.99).low <= limit
        for _, planned in claims.values()
    )
    return 0 if level and all(one.holds for one in (rates_of["planned"], *by_shape.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
