"""How often a recommendation is wrong: simulated sweeps whose true qualities are known.

    python benchmarks/recommendations.py [--sweeps N]

Each sweep has a base model and ranks 1 to 128 by powers of two (`simulated.py` has the scores). Sweeps differ in the
shape of the curve, in the noise, in what causes it, in the seeds and in the examples; every combination occurs as
often, as far as N allows. The margin is 0.02, the confidence 95 %.

* A recommendation is *wrong* if the rank, or the base model, is truly worse than the best candidate by the margin or
  more. With one seed, the truth is that of this seed.
* *undecided*: not enough evidence.
* *frugal*: the recommended candidate is truly the smallest one that is not worse than the best by the margin.

It fails where more than 5 % are wrong in all, or in any shape or number of seeds, by more than
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
from scipy.stats import binomtest
from simulated import CAUSES, CONFIDENCE, EXAMPLES, MARGIN, NOISE, good_enough, shapes, simulated_scores

from howlow.analysis.noninferiority import Pairs, is_non_inferior
from howlow.analysis.quality_statistics import ClusterScores

SHAPES = shapes(ranks=8)
SEEDS = (1, 2, 3, 5, 10)


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


def outcome(generator: np.random.Generator, setting: Setting) -> Outcome:
    """Simulate one sweep and ask for the recommendation."""
    truth, noise = np.array(SHAPES[setting.shape]), NOISE[setting.noise]
    found = simulated_scores(generator, truth, setting.seeds, setting.examples, noise, CAUSES[setting.cause])
    if setting.seeds == 1:
        truth = truth + [float(effects[0]) for effects in found.effects]
    seeds = [tuple(range(setting.seeds)) if index else () for index in range(len(truth))]
    pairs = Pairs([ClusterScores(*one, found.weights, False) for one in zip(seeds, found.sums, strict=True)])
    chosen = next((k for k in range(len(pairs)) if is_non_inferior(pairs, k, MARGIN, CONFIDENCE)), None)
    good = good_enough(truth)
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
