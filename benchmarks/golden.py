"""Golden runs: does the code of this checkout give, bit for bit, the numbers of an earlier revision?

    python benchmarks/golden.py --against REV [--case NAME ...] [--keep DIR]
    python benchmarks/golden.py --list

A refactoring must not change a number. Every case is a short sweep of SmolLM2-135M on a CPU. It runs twice, through the
command line alone: with REV, in a temporary git worktree, and with this checkout, uncommitted edits included. Both
sides run with the same Python and libraries, and oneDNN computes their products; only PYTHONPATH differs. Of every
trial are compared

    steps.jsonl        phase, step, loss, samples, tokens, target_tokens and computed_tokens of every line
    predictions.jsonl  every line; keys that only this checkout writes may be added
    adapter/           the SHA-256 of adapter_model.safetensors
    results.csv        the trial's row: status, decided settings, parameter counts, losses and scores, in full precision

In the case `resume` REV runs through unbroken; this checkout is stopped twice with SIGTERM, in training and in
generation, and started again. Not covered: durations, memory and energy; CUDA and `compile`; `batch_size = "max"`,
because the batch that is found depends on the memory that is free.

Real data is read from HOWLOW_TEST_DATA (default ../shared/data, from the project's root); cases that need it are
skipped by name where it is absent. `--keep DIR` keeps the runs as DIR/COMMIT/CASE and DIR/working-tree/CASE. A case of
REV that ran there with the same arguments is reused, so a series of edits pays for REV once; this checkout always runs.
Each difference is one line of a table: the first one of each file. The last line is one JSON document. Exit status 1
says that something differs or that a sweep failed.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HOWLOW_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()

STEP_KEYS = ("phase", "step", "loss", "samples", "tokens", "target_tokens", "computed_tokens")
ROW_KEYS = (
    *("kind", "rank", "seed", "status", "alpha", "scaling_factor", "layout", "precision", "total_parameters"),
    *("trainable_parameters", "adapter_bytes", "train_batch_size", "train_final_loss", "inference_batch_size"),
    *("loss", "perplexity", "word_perplexity", "bits_per_byte", "exact_match", "f1", "rouge1", "rouge2", "rougeL"),
)
"""No figure of the measured steps alone: which steps are measured depends on the moment at which a sweep is stopped."""

# -- the cases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One sweep by its arguments; `stops` are the (phase, step) after which this checkout's sweep is stopped."""

    name: str
    arguments: tuple[str, ...]
    stops: tuple[tuple[str, int], ...] = ()


def small(task: str, train: str, test: str, ranks: str, *assignments: str) -> tuple[str, ...]:
    """A sweep of a few steps on real data; later assignments replace earlier ones."""
    sizes = ("task.train_examples=24", "task.test_examples=6", "training.max_steps=3", "training.batch_size=4")
    lengths = ("training.sequence_length=192", "inference.max_new_tokens=4", "training.learning_rate=1e-3")
    where = ("--train", str(DATA / train), "--test", str(DATA / test))
    fixed = ("--model", "smollm2-135m", "--task", task, *where, "--ranks", ranks, "--baselines", "none")
    return fixed + tuple(part for one in (*sizes, *lengths, *assignments) for part in ("--set", one))


def squad(ranks: str, *assignments: str) -> tuple[str, ...]:
    return small("question_answering", "squad/dev-v1.1.json", "squad/dev-v2.0.json", ranks, *assignments)


def wikitext(ranks: str, *assignments: str) -> tuple[str, ...]:
    short = "training.sequence_length=96"
    return small("language_modeling", "wikitext-2/valid.txt", "wikitext-2/test.txt", ranks, short, *assignments)


def cases() -> list[Case]:
    resumed = ("training.max_steps=5", "training.batch_size=2", "lora.dropout=0.1", "training.checkpoint_every_s=0.05")
    return [
        Case("demo", ("demo", "--ranks", "1,16")),
        *(Case(f"squad-{name}", squad("1,16", f"training.layout={name}")) for name in ("padded", "packed", "shared")),
        *(Case(f"text-{name}", wikitext("1,16", f"training.layout={name}")) for name in ("padded", "packed", "shared")),
        Case("windows", wikitext("4", "task.unit=window")),
        Case("accumulation", squad("4", "training.batch_size=2", "training.effective_batch_size=6")),
        Case("loss-on-all", squad("4", "training.loss_on=all")),
        Case("head-all", squad("4", "training.head=all")),
        Case("merged", squad("4", "inference.adapter=merged")),
        Case("bf16", squad("4", "training.precision=bf16")),
        Case("gradient-checkpointing", squad("4", "training.gradient_checkpointing=true")),
        Case("full", squad("1", 'baselines=["full"]', "training.max_steps=2", "training.batch_size=2")),
        Case("resume", squad("4", *resumed, "inference.batch_size=2"), stops=(("train", 2), ("generate", 0))),
    ]


# -- running --------------------------------------------------------------------------------------------------------


def start(tree: Path, folder: Path, *arguments: str, threads: int | None = 1) -> "subprocess.Popen[bytes]":
    """Start Python with the code of `tree`, in a folder; its output is appended to log.txt there."""
    # With two threads the same code was seen to round otherwise in one trial of twenty, from its first step on.
    paths = [str(tree / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env=environment, cwd=folder)


def finish(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the exit status; when this script is stopped, so is the process."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        raise


def check_code(tree: Path, scratch: Path) -> None:
    """Make sure that PYTHONPATH wins over an installed package."""
    finish(start(tree, scratch, "-c", "import howlow; print(howlow.__file__)"))
    *_, found = (scratch / "log.txt").read_text(encoding="utf-8").splitlines()
    assert Path(found).is_relative_to(tree / "src"), f"{found} is not the code of {tree}"


def run(case: Case, tree: Path, folder: Path, stops: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Run a case; gives how it went, which is also kept in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments, started_s = (*case.arguments, *same_library(tree)), time.monotonic()
    sweep = ("-m", "howlow", "sweep", *arguments, "--out", "run")
    problems = [stopped(start(tree, folder, *sweep), folder / "run", *stop) for stop in stops]
    status = finish(start(tree, folder, *sweep))
    problem = next((text for text in problems if text), f"exit status {status}" if status else "")
    went = {"arguments": list(case.arguments), "problem": problem, "seconds": round(time.monotonic() - started_s, 1)}
    (folder / "went.json").write_text(json.dumps(went), encoding="utf-8")
    return went


def same_library(tree: Path) -> tuple[str, ...]:
    """The option with which products are rounded in one way on both sides; older revisions know no other way."""
    schema = (tree / "src" / "howlow" / "settings" / "schema.py").read_text(encoding="utf-8")
    return ("--set", "run.gemm_library=onednn") if "gemm_library" in schema else ()


def stopped(sweep: "subprocess.Popen[bytes]", out: Path, phase: str, step: int) -> str:
    """Send SIGTERM once a trial has written this step; gives what went wrong, or nothing."""
    while sweep.poll() is None and not reached(out, phase, step):
        time.sleep(0.02)
    sweep.send_signal(signal.SIGTERM)
    status = finish(sweep)
    if status != 128 + signal.SIGTERM or list(out.glob("trials/*/record.json")):
        return f"not stopped in {phase} after step {step}: exit status {status}"
    return "" if reached(out, phase, 0) else f"{phase} was lost when stopped"


def reached(out: Path, phase: str, step: int) -> bool:
    paths = out.glob("trials/*/steps.jsonl")
    return any(line["phase"] == phase and line["step"] >= step for path in paths for line in lines_of(path))


def kept(case: Case, folder: Path) -> dict[str, Any] | None:
    """How an earlier run of the same case went, if it ran to its end."""
    path = folder / "went.json"
    went: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"problem": "absent"}
    return went if not went["problem"] and went["arguments"] == list(case.arguments) else None


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


# -- comparing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first line of a file in which two runs of a trial differ, and what each says there."""

    case: str
    trial: str
    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.case:22} {self.trial:12} {self.file}:{self.line}  {self.before} -> {self.after}"


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a line that is still being written is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def contents(run: Path, trial: str) -> dict[str, list[dict[str, Any]]]:
    """What must be equal in a trial: of each file its lines."""
    folder = run / "run" / "trials" / trial
    rows = list(csv.DictReader((run / "run" / "results.csv").open(encoding="utf-8", newline="")))
    adapter = folder / "adapter" / "adapter_model.safetensors"
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.exists() else None
    return {
        "steps.jsonl": [{key: line.get(key) for key in STEP_KEYS} for line in lines_of(folder / "steps.jsonl")],
        "predictions.jsonl": lines_of(folder / "predictions.jsonl"),
        "adapter_model.safetensors": [{"sha256": digest}],
        "results.csv": [{key: row.get(key) for key in ROW_KEYS} for row in rows if row["trial"] == trial],
    }


def is_kept(before: Any, after: Any) -> bool:
    """Whether a value is the same, as text; what a document held, it still holds, and more keys may have come."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(is_kept(value, after.get(key)) for key, value in before.items())
    return json.dumps(before) == json.dumps(after)


def first_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> tuple[int, str, str] | None:
    """The first line (from 1) and values that differ, as text: so 0.0 is not -0.0, and NaN is NaN."""
    for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
        keys = [key for key, value in old.items() if not is_kept(value, new.get(key))]
        if keys:
            before_text, after_text = (json.dumps({key: line.get(key) for key in keys})[:300] for line in (old, new))
            return number, before_text, after_text
    if len(before) != len(after):
        return 1 + min(len(before), len(after)), f"{len(before)} lines", f"{len(after)} lines"
    return None


def compare(case: str, before: Path, after: Path) -> tuple[dict[str, int], list[Difference]]:
    """The number of lines compared, by file, and every file in which the two runs of a case differ."""
    old_trials, new_trials = (sorted(path.name for path in side.glob("run/trials/*")) for side in (before, after))
    if old_trials != new_trials:
        return {}, [Difference(case, "-", "trials", 1, " ".join(old_trials), " ".join(new_trials))]
    counts, found = Counter[str](), list[Difference]()
    for trial in old_trials:
        old, new = contents(before, trial), contents(after, trial)
        counts.update({file: len(lines) for file, lines in old.items()})
        different = {file: first_difference(old[file], new[file]) for file in old}
        found += [Difference(case, trial, file, *values) for file, values in different.items() if values]
    assert counts["steps.jsonl"], f"nothing to compare in {before}"
    return counts, found


# -- the whole ------------------------------------------------------------------------------------------------------


def check(case: Case, tree: Path, old: Path, new: Path) -> dict[str, Any]:
    """Run both sides of a case and compare them; prints the differences and gives the case's result."""
    before = kept(case, old) or run(case, tree, old, ())
    after, counts, found = run(case, ROOT, new, case.stops), dict[str, int](), list[Difference]()
    if before["problem"] or after["problem"]:
        found = [Difference(case.name, "-", "log.txt", 1, before["problem"] or "done", after["problem"] or "done")]
    else:
        counts, found = compare(case.name, old, new)
    seconds = before["seconds"], after["seconds"]
    compared, verdict = ", ".join(f"{counts[file]} of {file}" for file in counts), "DIFFERS" if found else "equal"
    print(f"{case.name:22} {verdict}, {seconds[0]} s and {seconds[1]} s: {compared}", flush=True)
    print(*found, sep="\n", end="\n" if found else "", flush=True)
    return {"compared": counts, "seconds": seconds, "differences": [asdict(difference) for difference in found]}


@contextmanager
def worktree(commit: str, scratch: Path) -> Iterator[Path]:
    """The code of a commit, in a git worktree that is removed afterwards."""
    tree = scratch / "tree"
    git("worktree", "add", "--detach", "--quiet", str(tree), commit)
    try:
        check_code(tree, scratch)
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))


def golden(commit: str, chosen: list[Case], folder: Path, scratch: Path) -> dict[str, Any]:
    """Check every case against a commit."""
    old, new = folder / commit, folder / "working-tree"
    with worktree(commit, scratch) as tree:
        return {case.name: check(case, tree, old / case.name, new / case.name) for case in chosen}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in cases()]
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--against", metavar="REV", help="the revision whose numbers must not change")
    what.add_argument("--list", action="version", version=" ".join(names), help="print the names of the cases")
    parser.add_argument("--case", action="append", metavar="NAME", choices=names, help="only this case; repeatable")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs, and reuse those of REV")
    return parser.parse_args()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    asked = parsed()
    chosen = [case for case in cases() if not asked.case or case.name in asked.case]
    skipped = [case.name for case in chosen if str(DATA) in " ".join(case.arguments) and not DATA.is_dir()]
    if skipped:
        print(f"skipped, because {DATA} (HOWLOW_TEST_DATA) is absent: {', '.join(skipped)}", flush=True)
    commit = git("rev-parse", "--verify", f"{asked.against}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        check_code(ROOT, Path(scratch))
        folder = (asked.keep or Path(scratch) / "runs").resolve()
        results = golden(commit, [case for case in chosen if case.name not in skipped], folder, Path(scratch))
    is_equal = not any(result["differences"] for result in results.values())
    print(json.dumps({"against": commit, "equal": is_equal, "skipped": skipped, "cases": results}))
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
