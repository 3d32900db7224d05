"""How sure each look at growing data has to be, so that several looks err no more often than a single one.

Whoever looks after every seed and stops as soon as a test at 5 % says so errs in 15.6 % of cases by the tenth seed. A
group-sequential plan spends the error over the looks. By the time a share t of the information is there, it has spent

    alpha(t) = 2 (1 - Phi(z / sqrt(t))),   z = Phi^-1(1 - alpha / 2),

of the one-sided error alpha: next to nothing early, and all of it at t = 1 (the O'Brien-Fleming type of Lan and DeMets,
Biometrika 70, 1983). What a look may spend fixes its boundary: with the increments of information independent, as
those of a mean are, it is found by integrating from look to look (Armitage, McPherson and Rowe, JRSS A 132, 1969;
Jennison and Turnbull, Group Sequential Methods, chapter 19). Means of few seeds follow a t-like distribution, so only
the boundary's one-sided *level* is taken from there and the bound of `howlow.analysis.quality_statistics` is computed
at that level (the significance-level approach, Jennison and Turnbull, section 4.4).

**Information** is 1 / variance. With n of N seeds, and the variances v_s of one seed and v_c of the test examples,
which all seeds share,

    t(n) = (v_s / N + v_c) / (v_s / n + v_c).

Where the seeds rule, t(n) = n / N. Where the examples rule, two seeds have most of the information. The variances are
taken from all pairs of neighbouring ranks at the first look and then kept. v_s is raised to its upper bound at 99 %: a
t that is too small spends too late, which costs trials but no error (Slepian's inequality).

**Why the order of trials cannot raise the error.** Each rank runs its seeds in one fixed order. The level of a
comparison depends only on how many seeds the two ranks have in common. So whatever decides which rank runs next, a
wrong claim needs the same boundary to be crossed as if both ranks had run all seeds and every look had been taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from howlow.analysis.quality_statistics import PairedDifference

FIRST_LOOK = 2
"""With one seed nothing is known about other seeds."""
_FARTHEST = 8.0
_POINTS = 241
_LEAST_LEVEL = 1e-12
_SURE_OF_SEEDS = 0.99


def spent(alpha: float, information: float) -> float:
    """The part of the one-sided error alpha that may be spent by this share of the information."""
    from scipy.special import ndtr, ndtri

    if information <= 0:
        return 0.0
    return float(2 * ndtr(ndtri(alpha / 2) / math.sqrt(min(information, 1.0))))


@lru_cache(256)
def levels(alpha: float, information: tuple[float, ...]) -> tuple[float, ...]:
    """The one-sided level of each look, at these growing shares of the information.

    All looks together cross their boundaries with probability `spent(alpha, information[-1])` where there is nothing
    to find.
    """
    from scipy.special import ndtr

    path, found, before = _Path.start(), [], 0.0
    for share in information:
        boundary, now = path.boundary(spent(alpha, share) - before, share), spent(alpha, share)
        before = max(before, now)
        found.append(float(ndtr(-boundary)))
        path = path.below(boundary, share)
    return tuple(found)


@dataclass(frozen=True)
class _Path:
    """The density of the sum so far (variance t, no drift) where no boundary was crossed, at points with weights."""

    information: float
    points: np.ndarray
    weighted: np.ndarray

    @classmethod
    def start(cls) -> "_Path":
        return cls(0.0, np.zeros(1), np.ones(1))

    def boundary(self, probability: float, information: float) -> float:
        """The boundary of z that the next look crosses for the first time with this probability."""
        from scipy.optimize import brentq
        from scipy.special import ndtri

        if probability < _LEAST_LEVEL:
            return -float(ndtri(_LEAST_LEVEL))
        return float(brentq(lambda z: self.crossing(z, information) - probability, -1.0, _FARTHEST))

    def crossing(self, boundary: float, information: float) -> float:
        """The probability to cross this boundary of z at the next look for the first time."""
        from scipy.special import ndtr

        step = math.sqrt(information - self.information)
        return float(self.weighted @ ndtr((self.points - boundary * math.sqrt(information)) / step))

    def below(self, boundary: float, information: float) -> "_Path":
        """The path after a look that did not cross the boundary; weights are Simpson's."""
        step, scale = math.sqrt(information - self.information), math.sqrt(information)
        points = np.linspace(-_FARTHEST * scale, boundary * scale, _POINTS)
        distances = (points[:, None] - self.points[None, :]) / step
        density = np.exp(-0.5 * distances**2) @ self.weighted / (step * math.sqrt(2 * math.pi))
        weights = np.where(np.arange(_POINTS) % 2, 4.0, 2.0)
        weights[[0, -1]] = 1.0
        return _Path(information, points, density * weights * (points[1] - points[0]) / 3)


@dataclass(frozen=True)
class LookPlan:
    """At how many seeds comparisons are looked at, and the share of the information that each number has.

    information: of 2 seeds, 3 seeds, ... up to all that are planned, whose share is 1.
    """

    information: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """The most seeds that are planned."""
        return len(self.information) + FIRST_LOOK - 1

    def confidence(self, seeds: int, overall: float) -> float:
        """How sure a comparison with so many common seeds has to be, so that all looks together err as stated.

        Seeds beyond the planned ones are judged at the last look's level.
        """
        assert seeds >= FIRST_LOOK, "nothing is decided on one seed"
        return 1 - levels(1 - overall, self.information)[min(seeds, self.seeds) - FIRST_LOOK]

    def spent(self, seeds: int, overall: float) -> float:
        """The error that looks at up to so many seeds have spent together."""
        return spent(1 - overall, self.information[min(seeds, self.seeds) - FIRST_LOOK]) if seeds >= FIRST_LOOK else 0.0


def plan_of(neighbours: Sequence[PairedDifference], seeds: int) -> LookPlan:
    """The plan for so many seeds, by the variances that differences of neighbouring ranks show at the first look."""
    from scipy.special import chdtri

    several = [one for one in neighbours if one.seeds_square is not None]
    of_seed = math.fsum((one.seeds_square or 0.0) / one.clusters for one in several)
    of_clusters = math.fsum(
        max(0.0, one.clusters_square - one.rest_square) / (one.seeds * one.clusters) for one in several
    )
    degrees = sum(one.seeds - 1 for one in several)
    raised = of_seed * degrees / float(chdtri(degrees, _SURE_OF_SEEDS)) if degrees else 0.0
    return LookPlan(_spaced([_share(raised, of_clusters, n, seeds) for n in range(FIRST_LOOK, seeds + 1)]))


def _share(of_seed: float, of_clusters: float, seeds: int, planned: int) -> float:
    whole = of_seed / seeds + of_clusters
    return (of_seed / planned + of_clusters) / whole if whole else seeds / planned


def _spaced(shares: Sequence[float]) -> tuple[float, ...]:
    """The shares in hundredths (finer for many seeds), rounded down, each lower than the next one."""
    steps = max(100, 4 * (len(shares) + 1))
    found = [steps]
    for share in reversed(shares[:-1]):
        found.append(min(int(steps * share + 1e-9), found[-1] - 1))
    return tuple(share / steps for share in reversed(found))
