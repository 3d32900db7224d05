"""Simulated sweeps whose true qualities are known: shapes of the curve over the rank, and what scores vary by.

A score is the rank's true quality, a part of the seed, a part of the cluster, a part of each example and seed, and a
difficulty that all ranks have in common. Clusters have 1 to 9 examples. In half of the sweeps the seeds' part of the
two highest ranks is twice as large. The shapes with cliffs are made to provoke errors: one rank is good enough by
nothing, and its neighbours are too low by nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN, CONFIDENCE = 0.02, 0.95
EXAMPLES = (500, 2000, 10000)
NOISE = {"low": 0.1, "high": 0.3}
"""The standard deviation of an example's score that a rank does not share with others."""
CAUSES = {"examples": 0.1, "both": 1.0, "seeds": 4.0}
"""The standard deviation of a rank's mean by its seed, in units of that by its examples."""
Floats = NDArray[np.float64]


def shapes(ranks: int) -> dict[str, list[float]]:
    """The true qualities of the base model and of so many ranks, at least 6, by the shape of the curve."""
    too_low, good = 0.6 - MARGIN, 0.6
    half, low, middle = ranks // 2, ranks * 3 // 8, ranks // 4
    return {
        "saturates early": [0.2, *_saturating(ranks, 1)],
        "saturates late": [0.2, *_saturating(ranks, ranks / 2)],
        "rises": [0.2, *(0.4 + 0.2 / ranks * index for index in range(ranks))],
        "flat": [0.2, *[good] * ranks],
        "falls at high ranks": [0.2, 0.55, 0.58, *[good] * (ranks - 6), 0.59, 0.57, 0.53, 0.45],
        "falls from the start": [0.2, *(good - 0.02 * index for index in range(ranks))],
        "base as good": [good, *[good] * ranks],
        "base best": [good, *(0.59 - 0.01 * index for index in range(ranks))],
        "base just too low": [too_low, *[good] * ranks],
        "cliff": [0.2, *[too_low] * half, *[good] * (ranks - half)],
        "two cliffs": [0.2, *[too_low] * low, *[good] * middle, *[too_low] * (ranks - low - middle)],
        "slope of margins": [0.2, *(good - MARGIN * (ranks - 1 - index) for index in range(ranks))],
    }


def _saturating(ranks: int, middle: float) -> list[float]:
    return [0.6 - 0.15 * 2.0 ** -(2 * index / middle) for index in range(ranks)]


@dataclass(frozen=True)
class Scores:
    """The sums of each candidate, seeds x clusters (the base model has one row), and what each seed added to it."""

    sums: list[Floats]
    effects: list[Floats]
    weights: Floats


def simulated_scores(
    generator: np.random.Generator, truth: Floats, seeds: int, examples: int, noise: float, of_seed: float
) -> Scores:
    """The scores of a base model and of ranks with these true qualities.

    of_seed: the standard deviation of a rank's mean by its seed, in units of that by its examples.
    """
    sizes = generator.integers(1, 10, examples // 5)
    spread, widens = of_seed * noise / examples**0.5, bool(generator.integers(2))
    difficulty = generator.normal(0, 0.3, len(sizes)) * sizes
    sums, all_effects = [], []
    for index, quality in enumerate(truth):
        own_seeds = seeds if index else 1
        own_spread = spread * (0 if index == 0 else 2 if widens and index >= len(truth) - 2 else 1)
        effects = generator.normal(0, own_spread, own_seeds) if own_spread else np.zeros(own_seeds)
        cluster = generator.normal(0, noise / 2, len(sizes)) * sizes
        rest = generator.normal(0, noise, (own_seeds, len(sizes))) * np.sqrt(sizes)
        sums.append((quality + effects)[:, None] * sizes + cluster + rest + difficulty)
        all_effects.append(effects)
    return Scores(sums, all_effects, sizes.astype(float))


def good_enough(truth: Floats) -> NDArray[np.int64]:
    """The candidates that are not worse than the best one by the margin."""
    return np.flatnonzero(truth > truth.max() - MARGIN + 1e-12)
