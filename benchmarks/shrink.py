"""Measure how far a shrunk adapter is from one that was trained at its rank, and what each costs.

    python benchmarks/shrink.py [--out DIR] [--train N] [--test N] [--ranks 1..64] [--continue-steps N]

The script trains SmolLM2-135M on real SQuAD (`HOWLOW_TEST_DATA`, default ../shared/data) at every rank, in OUT/trained.
The largest adapter is then cut to each smaller rank, once as it is and once with N further steps of training, in
OUT/shrunk. All are scored on the same test. A difference in F1 is shrunk minus trained at the same rank, with a 95 %
interval over the test's paragraphs (a bootstrap; questions of one paragraph go together). It leaves out the chance of
the seed, of which there is one. An interrupted run resumes. The last line is one JSON document.
"""

import argparse
import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import howlow
from howlow.records import Record, read_lines, read_record
from howlow.settings import parse_ranks
from howlow.trial.prepared import read_prepared

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HOWLOW_TEST_DATA", ROOT.parent / "shared" / "data")) / "squad"
DRAWS = 4000


@dataclass(frozen=True)
class Row:
    """One rank in one way: F1, exact match, loss, the time of its trial, and F1 less that of training at the rank."""

    rank: int
    way: str
    f1: float
    exact_match: float
    loss: float
    trial_s: float
    update_kept: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def trained_settings(asked: argparse.Namespace) -> howlow.Settings:
    table = {
        "model": "smollm2-135m",
        "baselines": ["base"],
        "grid": {"lora.rank": asked.ranks},
        "task": {
            "name": "question_answering",
            "train": str(DATA / "dev-v1.1.json"),
            "test": str(DATA / "dev-v2.0.json"),
            "train_examples": asked.train,
            "test_examples": asked.test,
        },
        "training": {"batch_size": 8, "sequence_length": 512, "learning_rate": 5e-4},
        "inference": {"batch_size": 20, "max_new_tokens": 24},
    }
    return howlow.load_settings(None, [table])


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None, folder
    assert record.status == "done", f"{folder}: {record.error}"
    return record


def f1_by_question(folder: Path) -> dict[str, float]:
    return {line["id"]: line["scores"]["f1"] for line in read_lines(folder / "predictions.jsonl")}


def paragraphs(run: Path) -> dict[str, str]:
    """The paragraph of each question of the test."""
    (prepared,) = (run / ".howlow").glob("prepared-*")
    return {example.id: example.group for example in read_prepared(prepared).test}


def interval(differences: dict[str, float], groups: dict[str, str]) -> tuple[float, float, float]:
    """The mean difference over questions, and its 95 % percentile interval over paragraphs."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for question, difference in differences.items():
        by_group[groups[question]].append(difference)
    sums = np.array([sum(found) for found in by_group.values()])
    counts = np.array([len(found) for found in by_group.values()])
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def row(folder: Path, rank: int, way: str, beside: Path, groups: dict[str, str]) -> Row:
    record = record_of(folder)
    scores = record.scores
    found = {
        "f1": scores.f1,
        "exact_match": scores.exact_match,
        "loss": scores.loss,
        "trial_s": record.total_s,
        "update_kept": record.shrunk.energy_kept if record.shrunk else None,
    }
    if folder != beside:
        own, other = f1_by_question(folder), f1_by_question(beside)
        ends = interval({question: own[question] - other[question] for question in own}, groups)
        found |= dict(zip(("difference", "low", "high"), ends, strict=True))
    return Row(rank, way, **found)  # type: ignore[arg-type]


def rows(asked: argparse.Namespace) -> list[Row]:
    trained, shrunk, groups = asked.out / "trained", asked.out / "shrunk", paragraphs(asked.out / "trained")
    found = []
    for rank in asked.ranks:
        beside = trained / "trials" / f"r{rank:04d}-s0"
        ways = {"trained": beside}
        if rank < max(asked.ranks):
            stem = f"r{rank:04d}-s0-shrunk-lora.continue_steps="
            ways |= {f"shrunk, {n} steps": shrunk / "trials" / f"{stem}{n}" for n in (0, asked.continue_steps)}
        found += [row(folder, rank, way, beside, groups) for way, folder in ways.items()]
    return found


def shown(one: Row) -> str:
    kept = "" if one.update_kept is None else f"  kept {one.update_kept:6.1%}"
    ends = "" if one.difference is None else f"  F1 {one.difference:+.3f} ({one.low:+.3f} .. {one.high:+.3f})"
    return (
        f"{one.rank:4d}  {one.way:18s} F1 {one.f1:.3f}  EM {one.exact_match:.3f}  loss {one.loss:.4f}  "
        f"{one.trial_s:6.1f} s{kept}{ends}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shrink"))
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--ranks", type=parse_ranks, default=parse_ranks("1..64"))
    parser.add_argument("--continue-steps", type=int, default=10)
    asked = parser.parse_args()
    howlow.sweep(trained_settings(asked), asked.out / "trained")
    largest = asked.out / "trained" / "trials" / f"r{max(asked.ranks):04d}-s0"
    axis = {"grid": {"lora.continue_steps": [0, asked.continue_steps]}}
    smaller = [rank for rank in asked.ranks if rank < max(asked.ranks)]
    howlow.sweep(howlow.shrink_settings(largest / "adapter", smaller, [axis]), asked.out / "shrunk")
    base, found = record_of(asked.out / "trained" / "trials" / "base-s0").scores, rows(asked)
    print(f"base  F1 {base.f1:.3f}  EM {base.exact_match:.3f}  loss {base.loss:.4f}")
    for one in found:
        print(shown(one))
    settings = {"train_examples": asked.train, "test_examples": asked.test, "continue_steps": asked.continue_steps}
    print(json.dumps({**settings, "base_f1": base.f1, "rows": [asdict(one) for one in found]}))


if __name__ == "__main__":
    main()
