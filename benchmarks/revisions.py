"""Is this checkout as fast as an earlier revision? Both run in turns, so that the machine's drift hits both.

    python benchmarks/revisions.py --against REV [--case NAME ...] [--rounds N]

A case is a short sweep through the command line. In each round both revisions run it, in alternating order; a round's
figure is the median duration of the training steps (or test batches) behind the first two. Printed are the ratios this
checkout / REV, round by round, with their median and range; over 1 means slower. The losses of every step must be
equal. The last line is one JSON document.

    shared     SmolLM2-135M, SQuAD, layout `shared`, 40 questions a step
    demo       the preset `demo` at rank 16, its generation included
    llama-1b   LLaMA-3.2-1B's shape with random weights, SQuAD, `shared`, 40 questions a step: for a GPU; takes
               `--tokenizer FOLDER`
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from golden import DATA, ROOT, check_code, finish, git, lines_of, start, worktree

LEFT_OUT = 2  # steps in which the process warms up
SQUAD = ("--task", "question_answering", "--train", str(DATA / "squad/dev-v1.1.json"), "--test")
SHARED = (*SQUAD, str(DATA / "squad/dev-v2.0.json"), "--ranks", "8", "--baselines", "none", "--layout", "shared")


def cases(tokenizer: str | None) -> dict[str, tuple[str, ...]]:
    """The arguments of each case."""
    short = ("task.train_examples=360", "task.test_examples=8", "inference.max_new_tokens=4")
    steps = (*sets(*short, "training.max_steps=8"), "--batch-size", "40")
    large = sets("random_weights=true", *([f"tokenizer={json.dumps(tokenizer)}"] if tokenizer else []))
    many = sets("task.train_examples=1000", "training.max_steps=24", "task.test_examples=64")
    return {
        "shared": ("--model", "smollm2-135m", *SHARED, *steps),
        "demo": ("demo", "--ranks", "16", "--baselines", "none"),
        "llama-1b": ("--model", "llama-3.2-1b", *SHARED, *steps, *large, *many),
    }


def sets(*assignments: str) -> tuple[str, ...]:
    return tuple(part for one in assignments for part in ("--set", one))


def once(tree: Path, folder: Path, arguments: tuple[str, ...]) -> tuple[dict[str, float], list[float | None]]:
    """Run a sweep with the code of `tree`: the median step of each phase in seconds, and every loss."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    status = finish(start(tree, folder, "-m", "howlow", "sweep", *arguments, "--out", "run", threads=None))
    if status:
        raise SystemExit(f"{tree}: exit status {status}: {(folder / 'log.txt').read_text(errors='replace')[-2000:]}")
    (path,) = (folder / "run" / "trials").glob("*/steps.jsonl")
    lines = lines_of(path)
    times: dict[str, float] = {}
    for phase in dict.fromkeys(line["phase"] for line in lines):
        taken = [line["duration_s"] for line in lines if line["phase"] == phase]
        times[phase] = statistics.median(taken[min(LEFT_OUT, len(taken) - 1) :])
    return times, [line.get("loss") for line in lines]


def compared(case: str, arguments: tuple[str, ...], old: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Both revisions in turns: the ratio of each phase's step time, round by round."""
    found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    losses: dict[str, list[float | None]] = {}
    for number in range(rounds):
        sides = [("before", old), ("after", ROOT)]
        for name, tree in sides if number % 2 == 0 else sides[::-1]:
            times, losses[name] = once(tree, folder / name, arguments)
            found[name].append(times)
            print(f"{case} round {number} {name}: {times}", flush=True)
    phases = found["before"][0]
    ratios = {phase: [b[phase] / a[phase] for a, b in zip(*found.values(), strict=True)] for phase in phases}
    for phase, values in ratios.items():
        spread = f"{min(values):.3f}..{max(values):.3f}"
        print(f"{case} {phase}: {statistics.median(values):.3f} of the time before ({spread}, {rounds} rounds)")
    is_equal = losses["before"] == losses["after"]
    print(f"{case}: losses {'equal bit for bit' if is_equal else 'DIFFER'}", flush=True)
    return {"ratios": ratios, "times_s": found, "losses_equal": is_equal}


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
