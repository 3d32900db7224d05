"""Check every claim that only a GPU can check, in under nine minutes. Run this first where a GPU is available.

    python benchmarks/gpu.py [--only CHECK ...] [--dry-run] [--seconds 540] [--tokenizer FOLDER] [--work DIR]

Each check is a process of its own with a time limit, so one that fails or hangs does not stop the others. All of them
together take no longer than `--seconds` (`budget.py`): a check has its own share at least, and the time that earlier
ones left. A check for which too little time is left is not run, and the document says so. They run in this order, the
most important first:

    machine     `howlow env`
    engine-1b, engine-8b
                training steps on the architecture of LLaMA-3.2-1B and of 3.1-8B, 40 and 160 questions a step, in
                `padded`, `packed` and `shared`: plain, compiled, as CUDA graphs, and both; transformers' Trainer padded
                to 512 in the same run; samples/s, how many times the Trainer, the share of the bf16 peak
    generation  64 prompts with 32 new tokens each, on both architectures: transformers' `generate` in three batch
                sizes, ours in `shared` with plain token steps, with steps replayed as CUDA graphs, and compiled as
                well: samples/s, the time to read the prompts, the time of a token step, and how many times that is
                the time to read the weights once (at 3.0 TB/s, and at the rate at which this device's memory was seen
                to copy)
    tests       pytest -m gpu, what matters first
    ranks       a step of 40 questions in `shared` on the 1B architecture at the ranks 1, 2, 4, ..., 512, against r = 1
    search      training.batch_size = "max" for two ranks of the 8B architecture: the seconds of each search, split into
                starting processes, choosing batches, loading, compiling, probing and confirming
    study       the paper's study on the 8B architecture with its settings (padded to 512, fp16 autocast over fp32, head
                at every position), ranks 1, 512 and 2048 in batches of 8 and 1: throughput, energy, power, memory,
                utilisation
    meters      meter_overhead.py at 4 and 20 Hz: what questions to NVML take, and the meters' share of the steps' time
                and of a core

The targets (`gpu_targets.py`) are printed beside the figures, and the document has them under `targets`.

Data: SQuAD from `HOWLOW_TEST_DATA` (default ../shared/data), else questions that this script makes up; the document
says which. `--dry-run` uses tiny models and few steps on any device, without limits, to see whether the script runs; it
shows how the time would be divided. The last line is one JSON document. What a check could not do is an error in it,
never a number. The exit code is 1 if a check failed or was not run; a missed target is no failure of a check.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from budget import limit_of, planned
from gpu_budget import SHARES, TOTAL_S
from gpu_checks import CHECKS
from gpu_subject import TOKENIZER
from gpu_targets import judged, lines
from peers import Reply

_DRY_S = 600.0


def run_check(name: str, work: Path, is_dry: bool, limit_s: float) -> Reply:
    """Run one check in its own process; return its answer, or what went wrong."""
    answer = work / f"{name}.json"
    command = [sys.executable, __file__, "--check", name, "--work", str(work), *(["--dry-run"] if is_dry else [])]
    command += ["--tokenizer", os.environ[TOKENIZER]] if TOKENIZER in os.environ else []
    started_s = time.monotonic()
    with (work / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found: Reply = {"time_s": round(time.monotonic() - started_s, 1)}
    if answer.exists():  # a check that was stopped has what it found so far
        found |= json.loads(answer.read_text())
    if status != 0 and "error" not in found:
        tail = (work / f"{name}.log").read_text(errors="replace").strip().splitlines()[-8:]
        found["error"] = f"status {status}: " + " | ".join(tail)
    return found


def run_all(document: Reply, names: list[str], work: Path, is_dry: bool, total_s: float) -> None:
    """Run the checks one after the other, each within what is left of the time; fills the document in."""
    ends_s = time.monotonic() + total_s
    shares = {name: SHARES[name] for name in names}
    document |= {"dry_run": is_dry, "budget": {"total_s": total_s, "limits_s": planned(shares, total_s)}}
    tell("budget", document["budget"])
    for name in names:
        left_s = ends_s - time.monotonic()
        limit_s = _DRY_S if is_dry else limit_of(name, shares, left_s)
        if limit_s is None:
            document[name] = {"not_run": f"{left_s:.0f} s are left, it takes {shares[name].least_s:.0f} s at least"}
        else:
            document[name] = run_check(name, work, is_dry, limit_s)
        tell(name, document[name])
        if not is_dry:  # a tiny model on any device says nothing about a target
            for line in lines(judged(document, [name])):
                print(f"  {line}", flush=True)


def tell(name: str, found: Reply) -> None:
    """Show what a check found."""
    print(f"\n{name} ({found['time_s']} s)" if "time_s" in found else f"\n{name}", flush=True)
    for key, value in found.items():
        if key != "time_s":
            print(f"  {key}: {json.dumps(value) if isinstance(value, dict | list) else value}", flush=True)


def answer_check(name: str, work: Path, is_dry: bool) -> None:
    """Run one check in this process; its answer is written whenever it has found something."""
    answer = work / f"{name}.json"

    def keep(found: Reply) -> None:
        new = answer.with_suffix(".new")  # renamed into place: the parent may end this process at any time
        new.write_text(json.dumps(found, default=str))
        new.rename(answer)

    keep(CHECKS[name](work, is_dry, keep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CHECKS), nargs="+", default=list(CHECKS))
    parser.add_argument("--dry-run", action="store_true", help="tiny models, few steps, any device")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="what all checks together may take")
    parser.add_argument("--work", type=Path, help="keep logs and run directories here")
    parser.add_argument("--tokenizer", type=Path, help="a folder, where the packaged model is not installed")
    parser.add_argument("--check", choices=list(CHECKS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.tokenizer:
        os.environ[TOKENIZER] = str(asked.tokenizer.resolve())
    if asked.check:
        answer_check(asked.check, asked.work, asked.dry_run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        document: Reply = {}
        try:
            run_all(document, asked.only, work, asked.dry_run, asked.seconds)
        finally:  # also where this script is stopped
            document["targets"] = "not judged in a dry run" if asked.dry_run else judged(document, asked.only)
            if not asked.dry_run:
                print("\n" + "\n".join(lines(document["targets"])))
            print(json.dumps(document), flush=True)
    if any("error" in document.get(name, {}) or "not_run" in document.get(name, {}) for name in asked.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
