"""Is this checkout as fast as an earlier revision? Both run at the same time and take their steps in turns.

    python benchmarks/revisions.py --against REV [--case NAME ...] [--rounds N]

A case is a short sweep through the command line. Two sweeps, one of each revision, hand a token to each other: a step
begins when the other's has ended, so that the machine's drift hits both (`turns/sitecustomize.py`). A pair is the same
step of both; the revision that begins changes from round to round. Printed are the ratios this checkout / REV of the
pairs of each phase, without the first two and the last (beside which the other sweep goes on with what is no step):
their median, the quartiles, a 95 % interval of the median by the bootstrap over pairs, and the median of each round;
over 1 means slower. The losses of every step must be equal. The last line is one JSON document.

    shared     SmolLM2-135M, SQuAD, layout `shared`, 40 questions a step
    few        the same with 8 questions a step: many pairs in little time
    demo       the preset `demo` at rank 16, its generation included
    llama-1b   LLaMA-3.2-1B's shape with random weights, SQuAD, `shared`, 40 questions a step: for a GPU; takes
               `--tokenizer FOLDER`
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from golden import DATA, ROOT, check_code, finish, git, lines_of, start, worktree

TURNS = Path(__file__).resolve().parent / "turns"
FIRST, LAST = 2, 1
"""Pairs left out: those in which a process warms up, and the last, beside which the other does what is no step."""
SQUAD = ("--task", "question_answering", "--train", str(DATA / "squad/dev-v1.1.json"), "--test")
SHARED = (*SQUAD, str(DATA / "squad/dev-v2.0.json"), "--ranks", "8", "--baselines", "none", "--layout", "shared")


def cases(tokenizer: str | None) -> dict[str, tuple[str, ...]]:
    """The arguments of each case."""
    short = ("task.train_examples=360", "task.test_examples=40", "inference.batch_size=8", "inference.max_new_tokens=4")
    steps = (*sets(*short, "training.max_steps=9"), "--batch-size", "40")
    few = (*sets(*short, "training.max_steps=30"), "--batch-size", "8")
    large = sets("random_weights=true", *([f"tokenizer={json.dumps(tokenizer)}"] if tokenizer else []))
    many = sets("task.train_examples=1000", "training.max_steps=24", "task.test_examples=64")
    return {
        "shared": ("--model", "smollm2-135m", *SHARED, *steps),
        "few": ("--model", "smollm2-135m", *SHARED, *few),
        "demo": ("demo", "--ranks", "16", "--baselines", "none", *sets("inference.batch_size=2")),
        "llama-1b": ("--model", "llama-3.2-1b", *SHARED, *steps, *large, *many),
    }


def sets(*assignments: str) -> tuple[str, ...]:
    return tuple(part for one in assignments for part in ("--set", one))


def both(case: tuple[str, ...], old: Path, folder: Path, begins: str) -> dict[str, list[dict[str, Any]]]:
    """Run a sweep with the code of both, step by step in turns: the lines of their steps."""
    shutil.rmtree(folder, ignore_errors=True)
    trees = {"before": old, "after": ROOT}
    pipes = {name: folder / f"{name}.turn" for name in trees}
    folder.mkdir(parents=True)
    for pipe in pipes.values():
        os.mkfifo(pipe)
    token = os.open(pipes[begins], os.O_RDWR)
    os.write(token, b".")  # the first turn
    sweeps = {}
    for name, tree in trees.items():
        (folder / name).mkdir()
        other = pipes["after" if name == "before" else "before"]
        with patch.dict(os.environ, {"HOWLOW_TURNS": f"{pipes[name]}:{other}", "PYTHONPATH": str(TURNS)}):
            sweeps[name] = start(tree, folder / name, "-m", "howlow", "sweep", *case, "--out", "run", threads=None)
    for name, sweep in sweeps.items():
        if status := finish(sweep):
            log = (folder / name / "log.txt").read_text(errors="replace")
            raise SystemExit(f"{trees[name]}: exit status {status}: {log[-2000:]}")
    os.close(token)
    paths = {name: next((folder / name / "run" / "trials").glob("*/steps.jsonl")) for name in trees}
    return {name: list(lines_of(path)) for name, path in paths.items()}


def compared(case: str, arguments: tuple[str, ...], old: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """The ratio of each pair of steps, by phase."""
    ratios: dict[str, list[float]] = {}
    medians: dict[str, list[float]] = {}
    is_equal = True
    for number in range(rounds):
        lines = both(arguments, old, folder / case, ("before", "after")[number % 2])
        is_equal &= [line.get("loss") for line in lines["before"]] == [line.get("loss") for line in lines["after"]]
        found: dict[str, list[float]] = {}
        for before, after in zip(lines["before"], lines["after"], strict=True):
            found.setdefault(after["phase"], []).append(after["duration_s"] / before["duration_s"])
        for phase, values in found.items():
            ratios.setdefault(phase, []).extend(kept := values[FIRST:-LAST])
            medians.setdefault(phase, []).extend([statistics.median(kept)] if kept else [])
        print(f"{case} round {number}: {len(lines['after'])} pairs of steps", flush=True)
    for phase, values in ((phase, values) for phase, values in ratios.items() if values):
        low, high = interval(values)
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        spread = f"95 % {low:.3f}..{high:.3f}, quartiles {quartiles[0]:.3f}..{quartiles[2]:.3f}, {len(values)} pairs"
        spread += f"; rounds {', '.join(format(one, '.3f') for one in medians[phase])}"
        print(f"{case} {phase}: {statistics.median(values):.3f} of the time before ({spread})")
    print(f"{case}: losses {'equal bit for bit' if is_equal else 'DIFFER'}", flush=True)
    return {"ratios": ratios, "medians": medians, "losses_equal": is_equal}


def interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by the bootstrap."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def main() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="REV", help="the revision to be held against, or a folder")
    parser.add_argument("--case", action="append", choices=list(cases(None)), help="default: shared and demo")
    parser.add_argument("--rounds", type=int, default=5, help="how often both run")
    parser.add_argument("--tokenizer", help="a folder, where the packaged model is not installed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="revisions-") as scratch, ExitStack() as stack:
        check_code(ROOT, Path(scratch))
        if os.path.isdir(asked.against):  # noqa: PTH112  (where there is no git)
            old = Path(asked.against).resolve()
        else:
            old = stack.enter_context(worktree(git("rev-parse", "--verify", asked.against), Path(scratch)))
        chosen = asked.case or ["shared", "demo"]
        found = {
            case: compared(case, cases(asked.tokenizer)[case], old, Path(scratch) / case, asked.rounds)
            for case in chosen
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
