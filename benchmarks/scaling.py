"""Do high ranks lose by their rank, or by their scaling and learning rate? SmolLM2-135M on real SQuAD and WikiText-2.

    python benchmarks/scaling.py [--tasks squad wikitext] [--ranks 1,4,16,64,256] [--rates 1e-4,5e-4,2e-3] [--seeds 0,1]
                                 [--train N] [--test N] [--validation N] [--precision fp32|bf16] [--out DIR]

An update is s B A, and AdamW moves A and B by about the learning rate whatever the rank is. Three scalings are swept:
alpha = 2r (s = 2 at every rank), alpha = 32 (s = 32 / r), and rank-stabilised with alpha = 32 (s = 32 / sqrt r), each
at several learning rates. Where two scalings give a rank the same s, its trials are run once.

Every trial has its loss on validation examples that were set aside from training. At each rank and scaling the learning
rate with the lowest validation loss (mean over seeds) is taken; the test says how good it is. `one rate` has the
learning rate that is best on validation over all ranks together, as a sweep at one rate would.

Data: `HOWLOW_TEST_DATA` (default ../shared/data). Windows of WikiText-2 have 128 tokens. An interrupted run resumes,
ranks, rates and seeds may be added: each scaling is a sweep in a folder of its own. The tables have the mean over seeds
and their range. The last line is one JSON document, which has every trial's scores.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smollm2 import SQUAD, WIKITEXT, smollm2_settings

import howlow

SCALINGS: dict[str, dict[str, Any]] = {
    "alpha = 2r": {"alpha": "2r"},
    "alpha = 32": {"alpha": 32.0},
    "rank-stabilised, alpha = 32": {"alpha": 32.0, "scaling": "rank_stabilized"},
}
TASKS = {"squad": SQUAD, "wikitext": WIKITEXT}
SCORES = {"squad": ("f1", "loss"), "wikitext": ("loss",)}
LENGTH = {"squad": 512, "wikitext": 128}
RATE = "training.learning_rate"


@dataclass(frozen=True)
class Trial:
    """What one trial of the study was given, and its scores."""

    rank: int
    factor: float
    rate: float
    seed: int
    validation_loss: float | None
    test: dict[str, float | None]


def factor_of(scaling: str, rank: int) -> float:
    """The scaling factor s of a rank."""
    settings = SCALINGS[scaling]
    alpha = 2.0 * rank if settings["alpha"] == "2r" else settings["alpha"]
    return alpha / (rank**0.5 if settings.get("scaling") == "rank_stabilized" else rank)


def settings(task: str, scaling: str, ranks: Sequence[int], asked: argparse.Namespace) -> howlow.Settings:
    sizes = {"train_examples": asked.train, "test_examples": asked.test, "validation_examples": asked.validation}
    return smollm2_settings(
        {"lora.rank": list(ranks), "seed": asked.seeds, RATE: asked.rates},
        {**TASKS[task], **sizes},
        baselines=(),
        lora=SCALINGS[scaling],
        training={"sequence_length": LENGTH[task], "precision": asked.precision},
    )


def run(task: str, asked: argparse.Namespace) -> list[Trial]:
    """Run the trials of every scaling, those of equal rank and factor once."""
    found: list[Trial] = []
    for scaling in SCALINGS:
        known = {(trial.rank, trial.factor) for trial in found}
        ranks = [rank for rank in asked.ranks if (rank, factor_of(scaling, rank)) not in known]
        name = "".join(letter if letter.isalnum() else "-" for letter in scaling)
        folder = asked.out / f"{task}-{name}"
        howlow.sweep(settings(task, scaling, ranks, asked), folder)
        rows = [trial.row for trial in howlow.load(folder).trials]
        found += [_trial(task, scaling, row) for row in rows if row["rank"] in ranks and row["seed"] in asked.seeds]
    return found


def _trial(task: str, scaling: str, row: dict[str, Any]) -> Trial:
    test = {column: row[column] for column in SCORES[task]}
    factor = factor_of(scaling, row["rank"])
    return Trial(row["rank"], factor, float(row[RATE]), row["seed"], row["validation_loss"], test)


def at(trials: Sequence[Trial], scaling: str, rank: int, rate: float) -> list[Trial]:
    """The trials of one rank, scaling and learning rate: one for each seed."""
    factor = factor_of(scaling, rank)
    return [trial for trial in trials if (trial.rank, trial.factor, trial.rate) == (rank, factor, rate)]


def best_rate(trials: Sequence[Trial], scaling: str, ranks: Sequence[int], asked: argparse.Namespace) -> float:
    """The learning rate with the lowest validation loss, averaged over ranks and seeds, of which all have ended."""
    losses = {}
    for rate in asked.rates:
        each = [trial.validation_loss for rank in ranks for trial in at(trials, scaling, rank, rate)]
        ended = [loss for loss in each if loss is not None]
        if len(ended) == len(ranks) * len(asked.seeds):
            losses[rate] = statistics.mean(ended)
    return min(losses, key=lambda rate: losses[rate])


def told(trials: Sequence[Trial], column: str) -> str:
    values = [trial.test[column] for trial in trials]
    ended = [value for value in values if value is not None]
    if not ended:
        return "n/a"
    spread = f" ({min(ended):.4f}..{max(ended):.4f})" if len(ended) > 1 else ""
    return f"{statistics.mean(ended):.4f}{spread}"


def show(task: str, trials: Sequence[Trial], asked: argparse.Namespace) -> None:
    """The two tables of a task: each rank at its best rate, and the test loss at every rate."""
    columns = SCORES[task]
    heads = [f"{column}, {which}" for column in columns for which in ("own rate", "one rate for all ranks")]
    print(f"\n{task}\n\n| scaling | rank | s | own rate | one rate | " + " | ".join(heads) + " |")
    print("| --- " * (5 + len(heads)) + "|")
    for scaling in SCALINGS:
        shared = best_rate(trials, scaling, asked.ranks, asked)
        for rank in asked.ranks:
            own = best_rate(trials, scaling, [rank], asked)
            cells = [told(at(trials, scaling, rank, rate), column) for column in columns for rate in (own, shared)]
            head = f"| {scaling} | {rank} | {factor_of(scaling, rank):g} | {own:g} | {shared:g} | "
            print(head + " | ".join(cells) + " |")
    print(f"\n| {task}: test loss at | rank | " + " | ".join(f"{rate:g}" for rate in asked.rates) + " |")
    print("| --- " * (2 + len(asked.rates)) + "|")
    for scaling in SCALINGS:
        for rank in asked.ranks:
            cells = [told(at(trials, scaling, rank, rate), "loss") for rate in asked.rates]
            print(f"| {scaling} | {rank} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    rates = lambda text: [float(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--ranks", type=numbers, default=[1, 4, 16, 64, 256])
    parser.add_argument("--rates", type=rates, default=[1e-4, 5e-4, 2e-3])
    parser.add_argument("--seeds", type=numbers, default=[0, 1])
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    asked = parser.parse_args()
    found = {task: run(task, asked) for task in asked.tasks}
    for task, trials in found.items():
        show(task, trials, asked)
    sizes = {name: getattr(asked, name) for name in ("train", "test", "validation", "precision")}
    print(json.dumps(sizes | {task: [asdict(trial) for trial in trials] for task, trials in found.items()}))


if __name__ == "__main__":
    main()
