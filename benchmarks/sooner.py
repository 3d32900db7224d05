"""How often a sweep that runs until its recommendation holds is wrong, and what it costs: simulated, with known truths.

    python benchmarks/sooner.py [--sweeps N] [--comparisons N] [--processes N] [--out FILE]

**One comparison.** A rank is worse than another one by exactly the margin, so every claim that it is enough is wrong.
It is looked at after every seed from the second on. *naive* tests at 5 % each time; *planned* has the levels of
`howlow.analysis.group_sequential`. The variances are taken from this comparison and those of 3 or 11 neighbours.

**Sweeps** over ranks 1 to 2048 with a base model and at most 5 seeds take the steps of `howlow sweep --until-decided`:
the same functions choose the next seeds, stop ranks and say when to end. They differ in the shape of the curve, in
noise, and in what causes it (`simulated.py`). A recommendation is *wrong* if the rank, or the base model, is truly
worse than the best candidate by the margin or more, a rank that was stopped included.

* *planned*: as built. *naive*: the same, with every look at 95 %.
* *all seeds*: every rank with all seeds, looked at once.
* *guided*: only the reference rank, and the two ranks that its adapter, truncated to each rank, points to: the smallest
  whose truncation is within the margin of the reference, and the next larger one. A truncation scores like the rank,
  less 0.03 at rank 1 and half as much at each doubling, and with an error of 0.005.
* *guided pair*: the reference rank and the smallest of these, with one seed each, looked at once.
* *wrong among trained*: worse by the margin than the best of the candidates that were trained; with one seed, than
  the trained adapters' own quality. It is all that the guided ways claim.
* *cost*: fine-tunings, in units of one at the reference rank, where every rank costs the same (as SmolLM2-135M on a CPU
  nearly does), and by the throughputs of LLaMA-3.1-8B's shape on an H100 with the largest batch that fits (21.3
  samples/s at rank 1, 19.8 at 512, 3.39 at 2048; between 512 and 2048 by the geometric mean).

**Least costs.** What no way to run the seeds can undercut (`least_costs`).

It fails where more than 5 % are wrong by more than chance explains (binomial interval, 99 %), in all or in any shape.
Finished parts are kept in FILE, and a run that was interrupted resumes. The last line is one JSON document.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from parts import Part, finished
from scipy.stats import binomtest
from simulated import CAUSES, CONFIDENCE, EXAMPLES, MARGIN, NOISE, Floats, good_enough
from simulated_looks import RANKS, SHAPES, WAYS, Ending, Setting, Simulated, endings, simulated

from howlow.analysis.group_sequential import FIRST_LOOK, plan_of
from howlow.analysis.quality_statistics import ClusterScores, PairedDifference, paired

# -- one comparison -------------------------------------------------------------------------------------------------

OF_SEEDS = {"examples": 0.0, "both": 1.0, "seeds": 10.0}
"""The variance of a difference by its seed, in units of that by its examples."""


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of one kind: what rules their chance, the most seeds, and the number of ranks in the sweep."""

    cause: str
    seeds: int
    ranks: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.cause}, at most {self.seeds} seeds, {self.ranks} ranks"


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


def wrong_claims(kind: Comparisons, generator: np.random.Generator, number: int) -> list[int]:
    """How many comparisons at the margin are claimed to be within it: naive and planned."""
    naive = planned = 0
    for _ in range(number):
        tables = [comparison(generator, kind.seeds, OF_SEEDS[kind.cause]) for _ in range(kind.ranks - 1)]
        looks = [difference(tables[0][:n]) for n in range(FIRST_LOOK, kind.seeds + 1)]
        claimed = [one for one in looks if one.low(CONFIDENCE) > -MARGIN]
        naive += bool(claimed)
        if claimed:  # no planned look is less sure than a naive one
            plan = plan_of([difference(table[:FIRST_LOOK]) for table in tables], kind.seeds)
            planned += any(one.low(plan.confidence(one.seeds, CONFIDENCE)) > -MARGIN for one in claimed)
    return [naive, planned]


# -- costs ----------------------------------------------------------------------------------------------------------


def costs(ran: Sequence[int]) -> tuple[float, float]:
    """Fine-tunings in units of one at the reference rank: at equal costs, and at those of an H100."""
    per_s = [float(np.interp(np.log2(rank), [0, 9, 11], np.log([21.3, 19.8, 3.39]))) for rank in RANKS]
    on_h100 = [3.39 / float(np.exp(one)) for one in per_s]
    return float(sum(ran)), float(np.dot(ran, on_h100))


def least_costs() -> dict[str, tuple[float, float]]:
    """The least that claims cost, at equal costs and at an H100's, however seeds and looks are arranged.

    A claim about the best of all ranks compares with each rank, so each has to be trained. A claim about other seeds
    needs the variance between seeds, so each rank has two of them. A claim about the reference rank alone compares one
    other rank, at best the smallest, with it.
    """
    smallest = [1, *[0] * (len(RANKS) - 2), 1]
    return {
        "best of all ranks, any seed": costs([2] * len(RANKS)),
        "best of all ranks, one seed": costs([1] * len(RANKS)),
        "against the reference, any seed": costs([2 * one for one in smallest]),
        "against the reference, one seed": costs(smallest),
    }


# -- counting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One ending of one sweep, counted."""

    shape: str
    way: str
    is_wrong: bool
    is_wrong_among_trained: bool
    is_undecided: bool
    is_frugal: bool
    trials: int
    looks: int
    cost: float
    cost_h100: float


def told(sweep: Simulated, setting: Setting, way: str, ending: Ending) -> Told:
    """Hold an ending against the truth; with one seed, the claim is about the adapters that it trained."""
    fine, chosen = good_enough(sweep.truth), ending.chosen
    trained = [0, *(one + 1 for one, seeds in enumerate(ending.ran) if seeds)]
    claimed = sweep.of_first_seed if max(ending.ran) == 1 else sweep.truth
    among = [trained[one] for one in good_enough(claimed[trained])]
    return Told(
        setting.shape,
        way,
        chosen is not None and chosen not in fine,
        chosen is not None and chosen not in among,
        chosen is None,
        chosen == int(fine[0]),
        sum(ending.ran),
        ending.looks,
        *costs(ending.ran),
    )


@dataclass(frozen=True)
class Counted:
    """The endings of one kind of sweep."""

    found: Sequence[Told]

    def share(self, name: str) -> float:
        """The share or the mean of a field."""
        return float(np.mean([getattr(one, name) for one in self.found]))

    def holds(self, name: str = "is_wrong") -> bool:
        """Whether the rate of wrong recommendations may be the stated one or less."""
        return at_most_stated(sum(getattr(one, name) for one in self.found), len(self.found))

    def line(self, name: str) -> str:
        """For people."""
        shares = "".join(f"{self.share(one):>11.1%}" for one in SHARES_TOLD)
        means = "".join(f"{self.share(one):>9.1f}" for one in ("trials", "looks", "cost", "cost_h100"))
        return f"{name:30}{len(self.found):>7}{shares}{means}{'' if self.holds() else '  MORE THAN STATED'}"

    def document(self) -> dict[str, float]:
        """For the last line."""
        return {name: self.share(name) for name in (*SHARES_TOLD, "trials", "looks", "cost", "cost_h100")}


SHARES_TOLD = ("is_wrong", "is_wrong_among_trained", "is_undecided", "is_frugal")


def at_most_stated(wrong: int, number: int) -> bool:
    """Whether so many wrong claims are explained by the stated error."""
    return bool(binomtest(wrong, number).proportion_ci(0.99).low <= 1 - CONFIDENCE)


# -- running --------------------------------------------------------------------------------------------------------


def all_comparisons(number: int, processes: int, kept: Path | None) -> dict[Comparisons, tuple[float, float]]:
    """The rates of wrong claims of each kind, naive and planned."""
    kinds = [Comparisons(*one) for one in product(OF_SEEDS, (3, 5, 10), (2, 4, 12))]
    parts: dict[str, Part] = {
        f"{number} comparisons, {kind.name}": partial(_claims, kind, place, number) for place, kind in enumerate(kinds)
    }
    rates = finished(parts, processes, kept).values()
    return {kind: (naive / number, planned / number) for kind, (naive, planned) in zip(kinds, rates, strict=True)}


def _claims(kind: Comparisons, place: int, number: int) -> list[int]:
    return wrong_claims(kind, np.random.default_rng([17, 0, place]), number)


def all_sweeps(number: int, processes: int, kept: Path | None) -> list[Told]:
    """Sweeps of every setting, as evenly as their number allows."""
    places = range(-(-number // A_PART))
    parts: dict[str, Part] = {
        f"sweeps {place} of {number}": partial(_sweeps, place, min(A_PART, number - place * A_PART)) for place in places
    }
    return [Told(**one) for part in finished(parts, processes, kept).values() for one in part]


A_PART = 20


def _sweeps(place: int, number: int) -> list[dict[str, object]]:
    every = [Setting(*one) for one in product(SHAPES, EXAMPLES, NOISE, CAUSES)]
    rounds = -(-(place + 1) * A_PART // len(every))
    order = np.concatenate([np.random.default_rng([17, 1, one]).permutation(len(every)) for one in range(rounds)])
    generator, found = np.random.default_rng([17, 2, place]), []
    for index in order[place * A_PART : place * A_PART + number]:
        sweep = simulated(generator, every[index])
        by_way = zip(WAYS, endings(generator, sweep), strict=True)
        found += [asdict(told(sweep, every[index], way, ending)) for way, ending in by_way]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--comparisons", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="keeps finished parts, for a run that resumes")
    asked = parser.parse_args()
    claims = all_comparisons(asked.comparisons, asked.processes, asked.out)
    print(f"{'one comparison at the margin':46}{'naive':>9}{'planned':>9}")
    for kind, (naive, planned) in claims.items():
        print(f"{kind.name:46}{naive:>9.1%}{planned:>9.1%}")
    print(f"\n{'least costs of a claim':46}{'equal':>9}{'H100':>9}")
    for name, (equal, h100) in least_costs().items():
        print(f"{name:46}{equal:>9.1f}{h100:>9.1f}")
    found = all_sweeps(asked.sweeps, asked.processes, asked.out)
    ways = {way: Counted([one for one in found if one.way == way]) for way in WAYS}
    by_shape = {shape: Counted([one for one in ways["planned"].found if one.shape == shape]) for shape in SHAPES}
    heads = (
        f"{'wrong':>11}{'of trained':>11}{'undecided':>11}{'frugal':>11}{'trials':>9}{'looks':>7}{'cost':>9}{'H100':>9}"
    )
    print(f"\n{'sweeps':30}{'number':>7}{heads}")
    for name, counted in (ways | {f"planned: {shape}": one for shape, one in by_shape.items() if one.found}).items():
        print(counted.line(name))
    print(json.dumps(document(claims, ways)))
    level = all(at_most_stated(round(rate * asked.comparisons), asked.comparisons) for _, rate in claims.values())
    return 0 if level and all(one.holds() for one in (ways["planned"], *by_shape.values()) if one.found) else 1


def document(claims: dict[Comparisons, tuple[float, float]], ways: dict[str, Counted]) -> dict[str, object]:
    """The last line."""
    rates = {kind.name: list(one) for kind, one in claims.items()}
    sweeps = {way: one.document() for way, one in ways.items()}
    return {
        "margin": MARGIN,
        "confidence": CONFIDENCE,
        "comparisons": rates,
        "sweeps": sweeps,
        "least_costs": least_costs(),
    }


if __name__ == "__main__":
    sys.exit(main())
