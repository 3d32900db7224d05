"""Do high ranks lose by their rank, or by their scaling and learning rate? SmolLM2-135M on real SQuAD and WikiText-2.

    python benchmarks/scaling.py [--tasks squad wikitext] [--ranks 1,4,16,64,256] [--rates 1e-4,5e-4,2e-3] [--seeds 0,1]
                                 [--train N] [--test N] [--validation N] [--out DIR]

An update is s B A, and AdamW moves A and B by about the learning rate whatever the rank is. Three scalings are swept:
alpha = 2r (s = 2 at every rank), alpha = 32 (s = 32 / r), and rank-stabilised with alpha = 32 (s = 32 / sqrt r), each
at several learning rates. Every trial is scored on validation examples that were set aside from training, and on the
test. At each rank and scaling the learning rate with the best validation score (mean over seeds) is taken; the test
says how good it is. `one rate` has the learning rate that is best on validation over all ranks together, as a sweep at
one rate would.

Data: `HOWLOW_TEST_DATA` (default ../shared/data). An interrupted run resumes: each scaling is a sweep in a folder of
its own. The table has the mean over seeds and their spread. The last line is one JSON document.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
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
METRIC = {"squad": "f1", "wikitext": "loss"}
SIGN = {"squad": 1.0, "wikitext": -1.0}
RATE = "training.learning_rate"


def settings(task: str, scaling: str, asked: argparse.Namespace) -> howlow.Settings:
    sizes = {"train_examples": asked.train, "test_examples": asked.test, "validation_examples": asked.validation}
    grid = {"lora.rank": asked.ranks, "seed": asked.seeds, RATE: asked.rates}
    return smollm2_settings(grid, {**TASKS[task], **sizes}, baselines=(), lora=SCALINGS[scaling])


def of_rank(rows: Sequence[dict[str, Any]], rank: int, rate: float, column: str) -> list[float]:
    """A column's value for each seed that ended."""
    own = [row for row in rows if row["rank"] == rank and float(row[RATE]) == rate]
    return [row[column] for row in own if row[column] is not None]


def best_rate(task: str, rows: Sequence[dict[str, Any]], ranks: Sequence[int], asked: argparse.Namespace) -> float:
    """The learning rate with the best validation score, averaged over ranks and seeds, of which all have ended."""
    scores = {}
    for rate in asked.rates:
        of_each = [of_rank(rows, rank, rate, f"validation_{METRIC[task]}") for rank in ranks]
        if all(len(one) == len(asked.seeds) for one in of_each):
            scores[rate] = SIGN[task] * statistics.mean(statistics.mean(one) for one in of_each)
    return max(scores, key=lambda rate: scores[rate])


def study(task: str, scaling: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """For each rank the test's scores at its best learning rate, and at the one that is best for all ranks together."""
    name = "".join(letter if letter.isalnum() else "-" for letter in scaling)
    rows = howlow.sweep(settings(task, scaling, asked), asked.out / f"{task}-{name}").rows
    shared = best_rate(task, rows, asked.ranks, asked)
    found = []
    for rank in asked.ranks:
        own = best_rate(task, rows, [rank], asked)
        values = {
            "best_rate": of_rank(rows, rank, own, METRIC[task]),
            "one_rate": of_rank(rows, rank, shared, METRIC[task]),
        }
        found.append({"task": task, "scaling": scaling, "rank": rank, "rate": own, "shared_rate": shared, **values})
    return found


def told(values: Sequence[float]) -> str:
    spread = f" (seeds {min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--ranks", type=numbers, default=[1, 4, 16, 64, 256])
    parser.add_argument(
        "--rates", type=lambda text: [float(part) for part in text.split(",")], default=[1e-4, 5e-4, 2e-3]
    )
    parser.add_argument("--seeds", type=numbers, default=[0, 1])
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--validation", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    asked = parser.parse_args()
    found = [line for task in asked.tasks for scaling in SCALINGS for line in study(task, scaling, asked)]
    print("| task | scaling | rank | learning rate | at its own rate | at one rate for all ranks |")
    print("| --- " * 6 + "|")
    for one in found:
        head = f"| {one['task']} | {one['scaling']} | {one['rank']} | {one['rate']:g} "
        print(f"{head}| {told(one['best_rate'])} | {told(one['one_rate'])} ({one['shared_rate']:g}) |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
