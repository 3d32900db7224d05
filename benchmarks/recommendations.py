"""How often a recommendation is wrong: simulated sweeps whose true qualities are known.

    python benchmarks/recommendations.py [--sweeps N]

Each sweep has a base model and ranks 1 to 128 by powers of two, scored on clusters of 1 to 9 examples. A score is the
rank's true quality, a part of the seed, a part of the cluster, a part of each example and seed, and a difficulty that
all ranks have in common. Sweeps differ in the shape of the curve, in the noise, in what causes it, in the seeds and in
the examples; every combination occurs as often, as far as N allows. In half of the sweeps the seeds' part of the two
highest ranks is twice as large. The margin is 0.02, the confidence 95 %.

* A recommendation is *wrong* if the rank, or the base model, is truly worse than the best candidate by the margin or
  more. With one seed, the truth is that of this seed.
* *undecided*: not enough evidence.
* *frugal*: the recommended candidate is truly the smallest one that is not worse than the best by the margin.

The curves `cliff` and `two cliffs` are made to provoke errors: one rank is good enough by nothing, and its neighbours
are too low by nothing. It fails where more than 5 % are wrong in all, or in any shape or number of seeds, by more than
chance explains (binomial interval, 99 %). The last line is one JSON document.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from howlow.analysis.noninferiority import Pairs, is_non_inferior
from howlow.analysis.quality_statistics import ClusterScores

MARGIN, CONFIDENCE = 0.02, 0.95
RANKS = 8
Floats = NDArray[np.float64]


def _saturating(middle: float) -> list[float]:
    return [0.2, *(0.6 - 0.15 * 2.0 ** -(2 * index / middle) for index in range(RANKS))]


SHAPES: dict[str, list[float]] = {
    "saturates early": _saturating(1),
    "saturates late": _saturating(4),
    "rises": [0.2, *(0.4 + 0.025 * index for index in range(RANKS))],
    "flat": [0.2, *[0.6] * RANKS],
    "falls at high ranks": [0.2, 0.55, 0.58, 0.6, 0.6, 0.59, 0.57, 0.53, 0.45],
    "falls from the start": [0.2, *(0.6 - 0.02 * index for index in range(RANKS))],
    "base as good": [0.6, *[0.6] * RANKS],
    "base best": [0.6, *(0.59 - 0.01 * index for index in range(RANKS))],
    "base just too low": [0.6 - MARGIN, *[0.6] * RANKS],
    "cliff": [0.2, *[0.6 - MARGIN] * 4, *[0.6] * 4],
    "two cliffs": [0.2, *[0.6 - MARGIN] * 3, *[0.6] * 2, *[0.6 - MARGIN] * 3],
    "slope of margins": [0.2, *(0.6 - MARGIN * (RANKS - 1 - index) for index in range(RANKS))],
}
SEEDS = (1, 2, 3, 5, 10)
EXAMPLES = (500, 2000, 10000)
NOISE = {"low": 0.1, "high": 0.3}
"""The standard deviation of an example's score that a rank does not share with others."""
CAUSES = {"examples": 0.1, "both": 1.0, "seeds": 4.0}
"""The standard deviation of a rank's mean by its seed, in units of that by its examples."""


@dataclass(frozen=True)
class Setting:
    """What a sweep is like."""

    shape: str
    seeds: int
    examples: int
    noise: str
    cause: str


@dataclass(frozen=True)
class Outcome:
    """What was recommended (None: undecided), and whether that was wrong or the smallest that is good enough."""

    setting: Setting
    chosen: int | None
    is_wrong: bool
    is_frugal: bool


def settings() -> Iterator[Setting]:
    for parts in product(SHAPES, SEEDS, EXAMPLES, NOISE, CAUSES):
        yield Setting(*parts)


def simulated(generator: np.random.Generator, setting: Setting) -> tuple[list[ClusterScores], Floats]:
    """The scores of the candidates, and their true qualities."""
    sizes = generator.integers(1, 10, setting.examples // 5)
    noise = NOISE[setting.noise]
    of_seed = CAUSES[setting.cause] * noise / setting.examples**0.5
    truth, scores = np.array(SHAPES[setting.shape]), []
    true = truth.copy()
    widens = bool(generator.integers(2))
    difficulty = generator.normal(0, 0.3, len(sizes)) * sizes
    for index, quality in enumerate(truth):
        seeds = 1 if index == 0 else setting.seeds
        spread = of_seed * (0 if index == 0 else 2 if widens and index >= len(truth) - 2 else 1)
        effects = generator.normal(0, spread, seeds) if spread else np.zeros(seeds)
        cluster = generator.normal(0, noise / 2, len(sizes)) * sizes
        rest = generator.normal(0, noise, (seeds, len(sizes))) * np.sqrt(sizes)
        sums = (quality + effects)[:, None] * sizes + cluster + rest + difficulty
        names = () if index == 0 else tuple(range(seeds))
        scores.append(ClusterScores(names, sums, sizes.astype(float), is_bounded=False))
        true[index] += effects[0] if setting.seeds == 1 else 0.0
    return scores, true


def outcome(generator: np.random.Generator, setting: Setting) -> Outcome:
    """Simulate one sweep and ask for the recommendation."""
    scores, true = simulated(generator, setting)
    pairs = Pairs(scores)
    chosen = next((k for k in range(len(scores)) if is_non_inferior(pairs, k, MARGIN, CONFIDENCE)), None)
    good = np.flatnonzero(true > true.max() - MARGIN + 1e-12)
    return Outcome(setting, chosen, chosen is not None and chosen not in good, chosen == int(good[0]))


@dataclass(frozen=True)
class Rate:
    """The outcomes of the sweeps of one kind."""

    name: str
    sweeps: int
    wrong: int
    undecided: int
    frugal: int

    @classmethod
    def of(cls, name: str, outcomes: Sequence[Outcome]) -> "Rate":
        """Count what happened."""
        return cls(
            name,
            len(outcomes),
            sum(one.is_wrong for one in outcomes),
            sum(one.chosen is None for one in outcomes),
            sum(one.is_frugal for one in outcomes),
        )

    @property
    def holds(self) -> bool:
        """Whether the rate of wrong recommendations may be the stated one or less."""
        return bool(binomtest(self.wrong, self.sweeps).proportion_ci(0.99).low <= 1 - CONFIDENCE)

    def line(self) -> str:
        """The rate for people."""
        shares = (count / self.sweeps for count in (self.wrong, self.undecided, self.frugal))
        told = "".join(f"{share:>11.1%}" for share in shares)
        return f"{self.name:32} {self.sweeps:7}{told}{'' if self.holds else '  MORE THAN STATED'}"


def rates(outcomes: Sequence[Outcome]) -> list[Rate]:
    """All sweeps, then those of each shape, number of seeds and examples, noise and cause."""
    found = [Rate.of("all", outcomes)]
    for part in ("shape", "seeds", "examples", "noise", "cause"):
        alike = defaultdict(list)
        for one in outcomes:
            alike[getattr(one.setting, part)].append(one)
        found += [Rate.of(f"{part}: {value}", ones) for value, ones in alike.items()]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    number = parser.parse_args().sweeps
    generator = np.random.default_rng(17)
    every = list(settings())
    order = [int(index) for _ in range(-(-number // len(every))) for index in generator.permutation(len(every))]
    outcomes = [outcome(generator, every[index]) for index in order[:number]]
    found = rates(outcomes)
    print(f"{'sweeps':32} {'number':>7}{'wrong':>11}{'undecided':>11}{'frugal':>11}")
    for rate in found:
        print(rate.line())
    told = {
        rate.name: {
            "sweeps": rate.sweeps,
            "wrong": rate.wrong / rate.sweeps,
            "undecided": rate.undecided / rate.sweeps,
            "frugal": rate.frugal / rate.sweeps,
        }
        for rate in found
    }
    print(json.dumps({"margin": MARGIN, "confidence": CONFIDENCE, "rates": told}))
    return 0 if all(rate.holds for rate in found) else 1


if __name__ == "__main__":
    sys.exit(main())
