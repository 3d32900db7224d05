"""Measure what the training order does to quality: whole paragraphs (`groups`) against single questions (`examples`).

    python benchmarks/order.py [--out DIR] [--train N] [--test N] [--seeds 0,1,2] [--ranks 8]

The script runs one sweep of SmolLM2-135M on real SQuAD (`HOWLOW_TEST_DATA`, default ../shared/data) with the axis
`training.shuffle` = groups, examples: the same examples, number of steps, ranks and seeds. A pair is one rank and seed.
The difference, of F1 and of the test's loss, is groups minus examples. It has two 95 % intervals, because two things
are drawn at random. The one over the pairs (Student's t) allows for another order and initialisation. The one over the
test's questions (a bootstrap of each question's difference, averaged over the pairs) allows for another test set.
An interrupted sweep resumes. The last line is one JSON document.
"""

import argparse
import json
import math
import random
import statistics
from pathlib import Path

from smollm2 import SQUAD, smollm2_settings

import howlow
from howlow.records import read_lines, read_record

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 11: 2.201}


def settings(asked: argparse.Namespace) -> howlow.Settings:
    grid = {"lora.rank": asked.ranks, "seed": asked.seeds, "training.shuffle": ["groups", "examples"]}
    task = {**SQUAD, "train_examples": asked.train, "test_examples": asked.test}
    return smollm2_settings(grid, task, training={"learning_rate": 3e-4})


def scores(out: Path, trial: str) -> tuple[dict[str, float], float]:
    """Return each question's F1, and the test's loss."""
    folder = out / "trials" / trial
    record = read_record(folder)
    assert record is not None, trial
    assert record.scores.loss is not None, trial
    return {line["id"]: line["scores"]["f1"] for line in read_lines(folder / "predictions.jsonl")}, record.scores.loss


def over_pairs(differences: list[float]) -> tuple[float, float]:
    """Compute the 95 % interval of a mean of paired differences, by Student's t."""
    mean, degrees = statistics.fmean(differences), len(differences) - 1
    half = T_975[degrees] * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean - half, mean + half


def over_questions(differences: list[float], draws: int = 4000) -> tuple[float, float]:
    """Compute the 95 % interval of a mean over questions, by the percentile bootstrap."""
    generator, count = random.Random(0), len(differences)
    means = sorted(statistics.fmean(generator.choices(differences, k=count)) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/order"))
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--ranks", type=lambda text: [int(part) for part in text.split(",")], default=[8])
    asked = parser.parse_args()
    howlow.sweep(settings(asked), asked.out)
    by_question: dict[str, list[float]] = {}
    f1, loss, pairs = [], [], []
    for rank in asked.ranks:
        for seed in asked.seeds:
            stem = f"r{rank:04d}-s{seed}-training.shuffle="
            (together, loss_together), (apart, loss_apart) = (
                scores(asked.out, stem + o) for o in ("groups", "examples")
            )
            means = statistics.fmean(together.values()), statistics.fmean(apart.values())
            pairs.append({"rank": rank, "seed": seed, "f1": means, "loss": (loss_together, loss_apart)})
            f1.append(means[0] - means[1])
            loss.append(loss_together - loss_apart)
            for question, score in together.items():
                by_question.setdefault(question, []).append(score - apart[question])
            print(f"rank {rank} seed {seed}: F1 groups {means[0]:.4f}, examples {means[1]:.4f}; ", end="")
            print(f"loss groups {loss_together:.4f}, examples {loss_apart:.4f}")
    found = {
        "pairs": pairs,
        "train_examples": asked.train,
        "test_examples": asked.test,
        "f1_difference": statistics.fmean(f1),
        "f1_over_pairs": over_pairs(f1),
        "f1_over_questions": over_questions([statistics.fmean(one) for one in by_question.values()]),
        "loss_difference": statistics.fmean(loss),
        "loss_over_pairs": over_pairs(loss),
    }
    for name in ("f1", "loss"):
        low, high = found[f"{name}_over_pairs"]
        verdict = "not significant" if low <= 0 <= high else "significant"
        print(
            f"{name}: groups - examples = {found[f'{name}_difference']:+.4f}, 95 % over pairs {low:+.4f} .. {high:+.4f}"
        )
        print(f"  {verdict} over {len(pairs)} pairs")
    low, high = found["f1_over_questions"]
    print(f"f1: 95 % over questions {low:+.4f} .. {high:+.4f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
