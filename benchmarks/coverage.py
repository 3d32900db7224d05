"""How often the one-sided bounds on a difference of quality hold the true difference.

    python benchmarks/coverage.py [--repetitions N]

Two models are scored on the same examples, in clusters of 1 to 9, and trained with the same seeds. Their true
difference is known, because the scores are simulated:

* *normal*: a seed's part, a cluster's part and a part of each example and seed, all normal
* *answers*: scores of 0 or 1, from a normal latent ability, so that most examples score alike for both models
* *texts*: log-likelihoods, with numbers of tokens that differ by a factor of 10, and a ratio of sums

Of the variance of the mean difference, the seeds' share is: 90 % (seeds rule), 0 % (examples rule), 45 % (alike, as
much as the clusters' share), and 0 % with no clusters' part either (neither: each example varies by itself).

A bound at 95 % should hold in 95 of 100 repetitions. This fails where the coverage of the lower or the upper bound lies
outside 93.5 to 97 % by more than the number of repetitions explains (binomial interval, 99.9 %). With one seed the
bound is for that seed, so the truth is, too. The last line is one JSON document.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binomtest

from howlow.analysis.quality_statistics import ClusterScores, paired

CONFIDENCE = 0.95
LEAST, MOST = 0.935, 0.97
SEEDS = (1, 2, 3, 5, 10)
EXAMPLES = (50, 200, 1000, 5000)
SHARES = {
    "seeds rule": (0.9, 0.05, 0.05),
    "examples rule": (0.0, 0.9, 0.1),
    "alike": (0.45, 0.45, 0.1),
    "neither": (0.0, 0.0, 1.0),
}
Shares = tuple[float, float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Clusters of examples, and the standard deviations of the parts of a difference: seed, cluster, example."""

    sizes: NDArray[np.int64]
    seeds: int
    of_seed: float
    of_cluster: float
    of_example: float

    @classmethod
    def of(
        cls, generator: np.random.Generator, examples: int, seeds: int, shares: tuple[float, float, float]
    ) -> "Design":
        """The mean difference has variance 1, divided into these shares."""
        ends = np.minimum(np.cumsum(generator.integers(1, 10, examples)), examples)
        array = np.diff(np.unique(ends), prepend=0)
        weight = float((array / examples) @ (array / examples))
        seed, cluster, rest = shares
        return cls(array, seeds, (seed * seeds) ** 0.5, (cluster / weight) ** 0.5, (rest * seeds * examples) ** 0.5)


@dataclass(frozen=True)
class Cell:
    """The coverage of both bounds in one design."""

    kind: str
    shares: str
    seeds: int
    examples: int
    lower: float
    upper: float
    width: float
    holds: bool

    def line(self) -> str:
        """The cell for people."""
        mark = "" if self.holds else "  OUTSIDE"
        return (
            f"{self.kind:8} {self.shares:14} {self.seeds:5} {self.examples:8} {self.lower:8.1%} {self.upper:8.1%}{mark}"
        )


# -- simulated scores -----------------------------------------------------------------------------------------------


def normal(generator: np.random.Generator, design: Design) -> tuple[ClusterScores, ClusterScores, float]:
    """Sums of normal differences, and the true difference of these seeds if there is one, else 0."""
    sizes = design.sizes
    seeds = generator.normal(0, design.of_seed, design.seeds)
    clusters = generator.normal(0, design.of_cluster, len(sizes))
    rest = generator.normal(0, design.of_example, (design.seeds, len(sizes))) * np.sqrt(sizes)
    sums = sizes * (seeds[:, None] + clusters) + rest
    return *_pair(sums, np.zeros_like(sums), sizes.astype(float), is_bounded=False), _truth(seeds)


def texts(generator: np.random.Generator, design: Design) -> tuple[ClusterScores, ClusterScores, float]:
    """Sums of log-likelihoods over texts of 10 to 100 tokens, whose tokens differ in mean by the same parts."""
    number = int(design.sizes.sum())
    tokens = np.exp(generator.uniform(np.log(10), np.log(100), number))
    owner = np.repeat(np.arange(len(design.sizes)), design.sizes)
    weights = np.bincount(owner, tokens)
    seeds = generator.normal(0, design.of_seed, design.seeds)
    clusters = generator.normal(0, design.of_cluster, len(weights))
    spread = np.sqrt(np.bincount(owner, tokens**2))
    rest = generator.normal(0, design.of_example, (design.seeds, len(weights))) * spread
    sums = weights * (seeds[:, None] + clusters) + rest
    return *_pair(sums, np.zeros_like(sums), weights, is_bounded=False), _truth(seeds)


def answers(generator: np.random.Generator, design: Design) -> tuple[ClusterScores, ClusterScores, float]:
    """Right or wrong answers: two models of equal ability, whose latent scores have the same parts.

    The latent scores of an example have a standard deviation of 1 in common, so that both models often agree.
    """
    number = int(design.sizes.sum())
    owner = np.repeat(np.arange(len(design.sizes)), design.sizes)
    scale = 0.5 / max(design.of_example, design.of_cluster, design.of_seed)
    common, both = generator.normal(0, 1, number), []
    effects = generator.normal(0, design.of_seed * scale, (2, design.seeds)) / 2**0.5
    for model in range(2):
        cluster = generator.normal(0, design.of_cluster * scale, len(design.sizes))[owner] / 2**0.5
        rest = generator.normal(0, design.of_example * scale, (design.seeds, number)) / 2**0.5
        right = common + effects[model][:, None] + cluster + rest > 0
        both.append(np.array([np.bincount(owner, row) for row in right.astype(float)]))
    noise = 1 + (design.of_cluster**2 + design.of_example**2) * scale**2 / 2
    shares = ndtr(effects / noise**0.5)
    truth = float(shares[0, 0] - shares[1, 0]) if design.seeds == 1 else 0.0
    return *_pair(*both, design.sizes.astype(float), is_bounded=True), truth


def _pair(ours: Floats, theirs: Floats, weights: Floats, *, is_bounded: bool) -> tuple[ClusterScores, ClusterScores]:
    seeds = tuple(range(len(ours)))
    return ClusterScores(seeds, ours, weights, is_bounded), ClusterScores(seeds, theirs, weights, is_bounded)


def _truth(seeds: Floats) -> float:
    """With one seed the bound is for this seed."""
    return float(seeds[0]) if len(seeds) == 1 else 0.0


Kind = Callable[[np.random.Generator, Design], tuple[ClusterScores, ClusterScores, float]]
KINDS: dict[str, Kind] = {"normal": normal, "answers": answers, "texts": texts}


# -- coverage -------------------------------------------------------------------------------------------------------


def coverage(kind: str, shares: str, seeds: int, examples: int, repetitions: int) -> Cell:
    """How often the bounds hold the truth in repetitions of one design."""
    generator = np.random.default_rng([len(kind), len(shares), seeds, examples])
    below, above, widths = 0, 0, []
    design = Design.of(generator, examples, seeds, SHARES[shares])
    for _ in range(repetitions):
        ours, theirs, truth = KINDS[kind](generator, design)
        found = paired(ours, theirs)
        assert found is not None, "every design has several clusters"
        below += found.low(CONFIDENCE) <= truth
        above += found.high(CONFIDENCE) >= truth
        widths.append(found.half_width(CONFIDENCE))
    holds = all(_is_within(count, repetitions) for count in (below, above))
    counts = below / repetitions, above / repetitions
    return Cell(kind, shares, seeds, examples, *counts, float(np.median(widths)), holds)


def _is_within(count: int, repetitions: int) -> bool:
    ends = binomtest(count, repetitions).proportion_ci(0.999)
    return bool(ends.high >= LEAST and ends.low <= MOST)


def designs() -> Iterator[tuple[str, str, int, int]]:
    """Every design; answers and texts of the largest size only for few seeds, as they take long."""
    for kind in KINDS:
        for shares in SHARES:
            for seeds in SEEDS:
                for examples in EXAMPLES:
                    if kind == "normal" or seeds * examples <= 5000:
                        yield kind, shares, seeds, examples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    print(f"{'scores':8} {'variance':14} {'seeds':>5} {'examples':>8} {'lower':>8} {'upper':>8}", flush=True)
    cells = []
    for design in designs():
        cells.append(coverage(*design, repetitions))
        print(cells[-1].line(), flush=True)
    outside = [cell for cell in cells if not cell.holds]
    told = {"repetitions": repetitions, "outside": len(outside), "cells": [asdict(cell) for cell in cells]}
    print(json.dumps(told))
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
