"""How far two models differ on one test: paired scores, and an error that covers other examples and other seeds.

**The figure.** Both models are scored on the same examples. With the sums x (scores; of a text, its log-likelihood) and
the weights w (examples; of a text, its tokens), the difference of the two is a ratio of sums,

    R = sum(x_ours - x_theirs) / sum(w),

so it is a difference of means for scores of answers, and for perplexity the logarithm of the ratio of two perplexities.

**Two causes of chance.** Examples that go together (the questions on one paragraph, the paragraphs of one article) form
a cluster c, and every model was trained with the seeds s. Cell (s, c) moves R by z = (x - R w) / mean(w) (the ratio
estimator of Cochran, Sampling Techniques, 3rd edition, chapter 6), and z = seed effect + cluster effect + rest. With
S seeds, C clusters and the mean squares of the two-way table without replication (Searle, Casella and McCulloch,
Variance Components, chapter 4; Owen, Annals of Applied Statistics 1, 2007, on why a bootstrap does not do this),

    var(R) = V_seeds + V_clusters,   V_seeds = MS_seeds / (S C),   V_clusters = max(0, MS_clusters - MS_rest) / (S C).

V_seeds includes the rest, so the variance is counted once. It has only S - 1 degrees of freedom. A bootstrap ignores
that, which is why it is too narrow for few seeds.

Clusters of unequal weight count for fewer. A cluster with the share w of the weight pulls R towards itself, so its z is
divided by sqrt((1 - w) C / (C - 1)) in these mean squares (Bell and McCaffrey, Survey Methodology 28, 2002, the CR2
estimator), and the clusters have 1 / sum(w^2) - 1 degrees of freedom, which is C - 1 for equal weights.

**The quantile.** Two ways are known to give a sum of such variances one quantile. Satterthwaite's degrees of freedom
(Biometrics Bulletin 2, 1946) cover too little: at 2 seeds 91.6 % of 95 where the seeds rule but not alone, because an
estimate that is small by chance then also seems certain. The mean of both t quantiles, weighted by their variances
(Cochran and Cox, Experimental Designs, section 4.14), covers up to 97.1 %. The quantile is made of two fifths of the
first and three fifths of the second. By numerical integration its coverage lies between 93.8 and 96.7 % at 2 seeds
and nearer to 95 % with more, whatever the seeds' share. `benchmarks/coverage.py` measures it.

**One seed** says nothing about seeds: the interval covers other examples only.

**Few examples that differ.** Where few scores differ, and most of them in one direction, their spread says too little
about what other examples would show: t bounds of 2 to 12 answers lost in 100 to 400 are missed in up to 12 % of cases.
A score between 0 and 1 gets at least the error that unseen differences allow: the upper Clopper-Pearson bound of the
share of clusters that differ, less the share seen, times the root mean square of those differences (1, the largest
there can be, of fewer than 3). Clusters of unequal weight count as 1 / sum(w^2) of equal ones (Kish's effective size).
A difference of such scores is at most 1.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
_FEW_DIFFER = 3
_COCHRAN = 0.6


@dataclass(frozen=True)
class ClusterScores:
    """A model's scores, higher being better, summed over the examples of each cluster.

    seeds: the seeds that it was trained with; empty: it was not trained, and stands beside every seed.
    sums: seeds x clusters (one row without seeds).
    weights: of each cluster.
    is_bounded: whether each example's score lies between 0 and 1.
    """

    seeds: tuple[int, ...]
    sums: Table
    weights: Table
    is_bounded: bool

    @property
    def mean(self) -> float:
        """The mean score over seeds and examples."""
        return float(self.sums.sum() / (len(self.sums) * self.weights.sum()))

    def of_seeds(self, seeds: tuple[int, ...]) -> Table:
        """The sums of these seeds, in this order."""
        if not self.seeds:
            return np.repeat(self.sums, max(len(seeds), 1), axis=0)
        return self.sums[[self.seeds.index(seed) for seed in seeds]]


@dataclass(frozen=True)
class PairedDifference:
    """The mean score of one model less that of another one, and the mean squares of the two-way table behind it.

    seeds_square is None with one seed; clusters_square then holds all that one seed shows.
    """

    value: float
    seeds: int
    clusters: int
    seeds_square: float | None
    clusters_square: float
    rest_square: float
    clusters_degrees: float
    """the degrees of freedom of the clusters' part: fewer than clusters - 1 where their weights differ"""
    differing_share: float
    """of the weight, in clusters in which any score differs"""
    differing_size: float
    """the root mean square of these clusters' differences; 1 where they are too few to tell"""
    is_bounded: bool

    def low(self, confidence: float) -> float:
        """The one-sided lower bound of the true difference."""
        return max(self.value - self.half_width(confidence), -1.0 if self.is_bounded else -math.inf)

    def high(self, confidence: float) -> float:
        """The one-sided upper bound of the true difference."""
        return min(self.value + self.half_width(confidence), 1.0 if self.is_bounded else math.inf)

    def half_width(self, confidence: float) -> float:
        """How far the one-sided bounds are away."""
        cells = self.seeds * self.clusters
        if self.seeds_square is None:
            error = _quantile(self.clusters_degrees, confidence) * math.sqrt(self.clusters_square / cells)
        else:
            variances = self.seeds_square / cells, max(0.0, self.clusters_square - self.rest_square) / cells
            degrees = self.seeds - 1, self.clusters_degrees
            error = _error(*variances, *degrees, self._degrees(sum(variances) * cells), confidence)
        return max(error, self._unseen(self.clusters_degrees + 1, confidence))

    def _degrees(self, total: float) -> float:
        """Satterthwaite's degrees of freedom of the sum of the mean squares; at least those of the smaller part."""
        assert self.seeds_square is not None, "one seed has no part of its own"
        of_seeds, of_clusters = self.seeds - 1, self.clusters_degrees
        weights = self.seeds_square**2 / of_seeds
        if self.clusters_square > self.rest_square:
            weights += self.clusters_square**2 / of_clusters + self.rest_square**2 / (of_seeds * of_clusters)
        return max(total**2 / weights if weights else math.inf, min(of_seeds, of_clusters))

    def _unseen(self, clusters: float, confidence: float) -> float:
        """The error that differences allow which these examples did not show, on so many clusters of equal weight."""
        if not self.is_bounded:
            return 0.0
        most = _most_differing(self.differing_share, clusters, confidence)
        return (most - self.differing_share) * self.differing_size

    def expected_half_width(self, seeds: int, clusters: int, confidence: float) -> tuple[float, float]:
        """The half width and the standard error to expect with so many seeds and clusters, by the variances found.

        No seed is taken away. With one seed nothing is known about the seeds' part: it is left out, as it is from the
        interval.
        """
        seeds = max(seeds, self.seeds)
        degrees = (self.clusters_degrees + 1) * clusters / self.clusters - 1
        unseen = self._unseen(degrees + 1, confidence)
        if self.seeds_square is None:
            error = math.sqrt(self.clusters_square / clusters)
            return max(_quantile(degrees, confidence) * error, unseen), error
        of_seed = max(0.0, self.seeds_square - self.rest_square) / self.clusters
        of_cluster = max(0.0, self.clusters_square - self.rest_square) / self.seeds
        own, other = of_seed / seeds + self.rest_square / (seeds * clusters), of_cluster / clusters
        squares = own**2 / (seeds - 1) + other**2 / degrees
        satterthwaite = (own + other) ** 2 / squares if squares else math.inf
        return max(_error(own, other, seeds - 1, degrees, satterthwaite, confidence), unseen), math.sqrt(own + other)


def paired(ours: ClusterScores, theirs: ClusterScores) -> PairedDifference | None:
    """The difference of two models over the seeds that both have; None without a common seed or with one cluster."""
    seeds = _common_seeds(ours.seeds, theirs.seeds)
    sums = ours.of_seeds(seeds) - theirs.of_seeds(seeds) if seeds is not None else np.empty((0, 0))
    rows, clusters = sums.shape
    if rows < 1 or clusters < 2:
        return None
    value = float(sums.sum() / (rows * ours.weights.sum()))
    shares = ours.weights / ours.weights.sum()
    moves = (sums - value * ours.weights) / ours.weights.mean()
    degrees = max(1.0, float(1 / (shares**2).sum()) - 1)
    differing = _differing(sums, shares, ours.weights)
    return PairedDifference(value, rows, clusters, *_squares(moves, shares), degrees, *differing, ours.is_bounded)


def _differing(sums: Table, shares: Table, weights: Table) -> tuple[float, float]:
    """The share of the clusters that differ in the weight, and the root mean square of their differences."""
    differ = np.any(sums != 0, axis=0)
    share = min(1.0, float(shares[differ].sum()))
    if differ.sum() < _FEW_DIFFER:
        return share, 1.0
    means = sums.mean(axis=0) / weights
    return share, math.sqrt(float(shares @ (means * means)) / share)


def _common_seeds(ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...] | None:
    if not ours or not theirs:
        return ours or theirs
    return tuple(seed for seed in ours if seed in theirs) or None


def _squares(moves: Table, shares: Table) -> tuple[float | None, float, float]:
    """The mean squares of seeds, clusters and the rest, of a table of seeds x clusters whose mean is 0.

    shares: of each cluster in the weight.
    """
    rows, clusters = moves.shape
    scaled = moves / np.sqrt((1 - shares) * clusters / (clusters - 1))
    by_cluster = scaled.mean(axis=0)
    clusters_square = rows * float(by_cluster @ by_cluster) / (clusters - 1)
    if rows < 2:
        return None, clusters_square, 0.0
    by_seed = moves.mean(axis=1)
    rest = scaled - scaled.mean(axis=1)[:, None] - by_cluster + scaled.mean()
    rest_square = float((rest * rest).sum()) / ((rows - 1) * (clusters - 1))
    return clusters * float(by_seed @ by_seed) / (rows - 1), clusters_square, rest_square


def _error(
    of_seeds: float,
    of_clusters: float,
    seeds_degrees: float,
    clusters_degrees: float,
    satterthwaite: float,
    confidence: float,
) -> float:
    """The quantile of the two parts' sum times its standard error."""
    total = of_seeds + of_clusters
    if not total:
        return 0.0
    parts = of_seeds * _quantile(seeds_degrees, confidence) + of_clusters * _quantile(clusters_degrees, confidence)
    quantile = (1 - _COCHRAN) * _quantile(satterthwaite, confidence) + _COCHRAN * parts / total
    return quantile * math.sqrt(total)


@lru_cache(4096)
def _quantile(degrees: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(min(degrees, 1e9), confidence))


@lru_cache(4096)
def _most_differing(share: float, clusters: float, confidence: float) -> float:
    """The upper Clopper-Pearson bound of the share of clusters that differ."""
    from scipy.special import betaincinv

    return float(betaincinv(share * clusters + 1, (1 - share) * clusters, confidence)) if share < 1 else 1.0
