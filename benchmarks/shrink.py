"""Measure how far a shrunk adapter is from one that was trained at its rank, and what each costs.

    python benchmarks/shrink.py [--out DIR] [--train N] [--test N] [--ranks 1..64] [--seeds 0,1] [--continue-steps N]

The script trains SmolLM2-135M on real SQuAD (`HOWLOW_TEST_DATA`, default ../shared/data) at every rank with every seed,
in OUT/trained. Each seed's adapter of the largest rank is then cut to each smaller rank, once as it is and once with N
further steps of training, in OUT/shrunk-sSEED. All are scored on the same test. A difference in F1 is shrunk minus
trained at the same rank and seeds, with the two-sided 95 % interval of `howlow.analysis.quality_statistics` (over the
test's paragraphs and the seeds; with one seed it leaves the seed's part out). An interrupted run resumes. The last line
is one JSON document.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from smollm2 import SQUAD, smollm2_settings

import howlow
from howlow.analysis.columns import column_named
from howlow.analysis.example_scores import cluster_scores
from howlow.analysis.quality_statistics import paired
from howlow.analysis.rows import Results, Trial
from howlow.settings import parse_integers, parse_ranks

F1 = column_named("f1")
EACH_SIDE = 0.975


@dataclass(frozen=True)
class Row:
    """One rank in one way, means over seeds: scores, the time of a trial, and F1 less that of training at the rank."""

    rank: int
    way: str
    f1: float
    exact_match: float
    loss: float
    trial_s: float
    update_kept: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


# -- the sweeps -----------------------------------------------------------------------------------------------------


def trained_settings(asked: argparse.Namespace) -> howlow.Settings:
    grid = {"lora.rank": asked.ranks, "seed": asked.seeds}
    task = {**SQUAD, "train_examples": asked.train, "test_examples": asked.test}
    return smollm2_settings(grid, task, training={"learning_rate": 5e-4})


def run(asked: argparse.Namespace) -> Results:
    """Train, cut and continue what is not there yet, and read all of it."""
    trained, largest = asked.out / "trained", max(asked.ranks)
    howlow.sweep(trained_settings(asked), trained)
    steps = {"grid": {"lora.continue_steps": [0, asked.continue_steps]}}
    smaller = [rank for rank in asked.ranks if rank < largest]
    folders = [trained]
    for seed in asked.seeds:
        adapter, out = trained / "trials" / f"r{largest:04d}-s{seed}" / "adapter", asked.out / f"shrunk-s{seed}"
        howlow.sweep(howlow.shrink_settings(adapter, smaller, [steps]), out)
        folders.append(out)
    return howlow.load(*folders)


# -- what came of them ----------------------------------------------------------------------------------------------


def trials_of(results: Results, kind: str, rank: int | None, steps: int | None = None) -> list[Trial]:
    """The trials of one rank in one way, by seed."""
    found = [trial for trial in results.trials if (trial.record.kind, trial.record.rank) == (kind, rank)]
    found = [trial for trial in found if steps in (None, trial.record.settings.lora.continue_steps)]
    for trial in found:
        assert trial.record.status == "done", f"{trial.folder}: {trial.record.error}"
    return sorted(found, key=lambda trial: trial.record.seed)


def mean(trials: Sequence[Trial], name: str) -> float:
    return fmean(trial.row[name] for trial in trials)


def seconds(trials: Sequence[Trial]) -> float:
    return sum(trial.record.total_s or 0.0 for trial in trials)


def row(rank: int, way: str, own: Sequence[Trial], trained: Sequence[Trial]) -> Row:
    kept = [trial.row["update_kept"] for trial in own if trial.row["update_kept"] is not None]
    scores = {name: mean(own, name) for name in ("f1", "exact_match", "loss")}
    found = Row(rank, way, **scores, trial_s=seconds(own) / len(own), update_kept=fmean(kept) if kept else None)
    if own is trained:
        return found
    apart = paired(*cluster_scores([own, trained], F1))
    assert apart is not None, "both have the same seeds and several paragraphs"
    ends = {"difference": apart.value, "low": apart.low(EACH_SIDE), "high": apart.high(EACH_SIDE)}
    return Row(**asdict(found) | ends)


def ways_of(asked: argparse.Namespace, results: Results, rank: int) -> dict[str, list[Trial]]:
    ways = {"trained": trials_of(results, "lora", rank)}
    if rank < max(asked.ranks):
        ways["cut"] = trials_of(results, "shrunk", rank, 0)
        ways[f"cut, {asked.continue_steps} steps"] = trials_of(results, "shrunk", rank, asked.continue_steps)
    return ways


def costs(ways: dict[int, dict[str, list[Trial]]]) -> dict[str, float]:
    """The seconds of all trials: every rank trained, or the largest alone and the others cut from it."""
    largest = seconds(ways[max(ways)]["trained"])
    cut, continued = (
        sum(seconds(list(one.values())[index]) for rank, one in ways.items() if rank < max(ways)) for index in (1, 2)
    )
    return {
        "every_rank_trained_s": sum(seconds(one["trained"]) for one in ways.values()),
        "largest_trained_others_cut_s": largest + cut,
        "largest_trained_others_cut_and_continued_s": largest + continued,
    }


def shown(one: Row) -> str:
    kept = "" if one.update_kept is None else f"  kept {one.update_kept:6.1%}"
    ends = "" if one.difference is None else f"  F1 {one.difference:+.3f} ({one.low:+.3f} .. {one.high:+.3f})"
    return (
        f"{one.rank:4d}  {one.way:14s} F1 {one.f1:.3f}  EM {one.exact_match:.3f}  loss {one.loss:.4f}  "
        f"{one.trial_s:6.1f} s{kept}{ends}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shrink"))
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--ranks", type=parse_ranks, default=parse_ranks("1..64"))
    parser.add_argument("--seeds", type=lambda text: parse_integers("--seeds", text), default=[0, 1])
    parser.add_argument("--continue-steps", type=int, default=10)
    asked = parser.parse_args()
    results = run(asked)
    ways = {rank: ways_of(asked, results, rank) for rank in asked.ranks}
    rows = [row(rank, way, own, one["trained"]) for rank, one in ways.items() for way, own in one.items()]
    base = trials_of(results, "base", None)
    print(f"base  F1 {mean(base, 'f1'):.3f}  EM {mean(base, 'exact_match'):.3f}  loss {mean(base, 'loss'):.4f}")
    for one in rows:
        print(shown(one))
    spent = costs(ways)
    for name, value in spent.items():
        print(f"{name.removesuffix('_s').replace('_', ' ')}: {value:.0f} s")
    settings = {"train": asked.train, "test": asked.test, "seeds": asked.seeds, "continue_steps": asked.continue_steps}
    print(json.dumps(settings | spent | {"base_f1": mean(base, "f1"), "rows": [asdict(one) for one in rows]}))


if __name__ == "__main__":
    main()
