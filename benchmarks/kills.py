"""Random kills over sweeps of tiny trials: every sweep ends complete, with the same losses, and runs no trial twice.

    python benchmarks/kills.py [--kills 200] [--workers 1] [--seed 0] [--work DIR]

A sweep is started with `howlow sweep`, and after a random time killed: the parent alone, the whole group, the trial
alone (SIGKILL), or the parent as a cluster does it (SIGTERM). The same command is given again, up to twelve times, then
left to its end. With several workers, half of the sweeps have one worker less, and a `howlow worker` joins them and is
killed at random as well, while it runs a trial. A worker takes longer to start than these trials take, so the sweep is
halted (SIGSTOP) until the worker has a trial. Steps with their losses, predictions, scores and adapters must equal
those of a sweep that was never killed. A trial that was killed alone has a record that says so and is run again by
`--retry failed`.

Throughout a sweep a watcher looks at the processes and the records: no trial may be written by two processes at once
(`double`), and none may be started that has a record (`again`). A trial's process starts again only where its holder
was killed.

A start takes about ten seconds on two cores, most of it the imports, and each kill takes one: 100 kills with three
workers take three quarters of an hour on an idle machine. With `--work` the count is kept in that folder, so the script
can itself be killed, and resumes. The last line is one JSON document.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from howlow.records import read_lines, read_record

HOWLOW = Path(sys.executable).parent / "howlow"
WAYS = ("parent", "group", "trial", "terminate", "worker")
MOST_KILLS_A_SWEEP = 12


# -- a tiny sweep ---------------------------------------------------------------------------------------------------


def make_inputs(folder: Path) -> Path:
    """A random LLaMA of two layers, a byte tokenizer, made-up questions, and the settings of a sweep over them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=264, num_key_value_heads=2, bos_token_id=256, eos_token_id=257, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder / "model")
    for side, paragraphs in (("train", 8), ("test", 4)):
        (folder / f"{side}.json").write_text(json.dumps(questions(side, paragraphs)), encoding="utf-8")
    settings = folder / "sweep.toml"
    settings.write_text(SETTINGS.format(folder=folder), encoding="utf-8")
    return settings


TRIALS = 5
SETTINGS = """
model = "{folder}/model"
grid = {{"lora.rank" = [1, 2, 3, 4]}}
task = {{name = "question_answering", train = "{folder}/train.json", test = "{folder}/test.json"}}
lora = {{dropout = 0.1}}
training = {{sequence_length = 160, batch_size = 4, learning_rate = 1e-3, epochs = 20, checkpoint_every_s = 0.05}}
inference = {{batch_size = 2, max_new_tokens = 6}}
"""


def questions(name: str, paragraphs: int) -> dict[str, Any]:
    found = []
    for number in range(paragraphs):
        context = f"Box {name}{number} holds {number + 2} red balls and {number + 5} blue cubes in room {number * 3}."
        asked = {"How many balls?": f"{number + 2}", "How many cubes?": f"{number + 5}", "Where?": "room"}
        qas = [
            {
                "id": f"{name}{number}-{index}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for index, (question, answer) in enumerate(asked.items())
        ]
        found.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": name, "paragraphs": found}]}


# -- running, killing, comparing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A sweep to be killed: its settings, its folder, the log of all commands, and how many workers it has itself."""

    settings: Path
    out: Path
    log: Path
    workers: int
    is_joined: bool = False

    def start(self) -> subprocess.Popen[bytes]:
        """Start the sweep, or resume it."""
        retry = ["--retry", "failed", "--workers", str(self.workers)]
        return self._command("sweep", str(self.settings), "--out", str(self.out), *retry)

    def join(self) -> subprocess.Popen[bytes]:
        """Start a worker that joins it."""
        return self._command("worker", str(self.out))

    def _command(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a trial has one thread, however many workers there are
        with self.log.open("ab") as file:
            return subprocess.Popen(
                [str(HOWLOW), *arguments], stdout=file, stderr=file, start_new_session=True, env=environment
            )


class Watcher:
    """Looks for trials that two processes write, and for trials that start although they have a record."""

    def __init__(self, out: Path) -> None:
        self.out, self.double, self.again = out, list[str](), list[str]()
        self._started: dict[int, tuple[str, bool]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._look()

    def _look(self) -> None:
        writers: dict[str, list[int]] = {}
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        for pid in pids:  # read directly: psutil would take half a core
            trial = trial_of(pid, self.out)
            if trial is None:
                continue
            if pid not in self._started:
                record, created_s = record_of(self.out / "trials" / trial), created_of(pid)
                # A failed trial is run again by --retry; a process seen for the first time may have just written.
                is_over = record is not None and record[0] == "done" and record[1] < created_s - 1.0
                self.again += [trial] * is_over
                self._started[pid] = (trial, is_over)
            if holds_lock(pid, self.out / "trials" / trial):
                writers.setdefault(trial, []).append(pid)
        self.double += [trial for trial, pids in writers.items() if len(pids) > 1]


def created_of(pid: int) -> float:
    """When a process was started; long ago where it has ended."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def trial_of(pid: int, out: Path) -> str | None:
    """The trial into whose log a process writes."""
    try:
        log = Path(f"/proc/{pid}/fd/1").readlink()
    except OSError:
        return None
    return log.parent.name if log.name == "log.txt" and log.parent.parent == out / "trials" else None


def holds_lock(pid: int, trial: Path) -> bool:
    """Whether a process has a file of steps open: it has the trial's lock, and works."""
    try:
        return any(path.readlink() == trial / "steps.jsonl" for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def record_of(trial: Path) -> tuple[str, float] | None:
    """A record's status and when it was written."""
    try:
        path = trial / "record.json"
        return json.loads(path.read_text())["status"], path.stat().st_mtime
    except (OSError, ValueError):
        return None


def kill(process: subprocess.Popen[bytes], way: str, out: Path) -> bool:
    """Kill in one of the ways; whether there was something to kill."""
    if process.poll() is not None:
        return False
    if way == "trial":
        children = psutil.Process(process.pid).children(recursive=True)
        trials = [child for child in children if trial_of(child.pid, out) is not None]
        for child in trials:
            child.kill()
        return bool(trials)
    if way == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM if way == "terminate" else signal.SIGKILL)
    process.wait(120)
    return True


def wait_for_trial(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until a trial runs, or the command has ended: a trial takes a small part of a sweep's time."""
    while process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        if any(trial_of(child.pid, out) is not None for child in children):
            return
        time.sleep(0.02)


def contents(out: Path) -> dict[str, Any]:
    """Everything that must not depend on kills, by trial; a trial without a record, or with lines too many, shows."""
    found = {}
    for folder in sorted(path for path in (out / "trials").iterdir() if path.is_dir()):
        record = read_record(folder)
        steps = [
            [line["phase"], line["step"], line.get("loss"), line["samples"]]
            for line in read_lines(folder / "steps.jsonl")
        ]
        adapter = folder / "adapter" / "adapter_model.safetensors"
        found[folder.name] = {
            "status": record.status if record else "no record",
            "scores": record.scores.model_dump() if record else None,
            "steps": steps,
            "predictions": list(read_lines(folder / "predictions.jsonl")),
            "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.exists() else None,
        }
    return found


def joined_worker(case: Case, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Start a worker, and halt the sweep until the worker runs a trial, or has ended because none was left."""
    while process.poll() is None and not (case.out / ".howlow" / "board.json").exists():
        time.sleep(0.02)
    halted = process.poll() is None
    if halted:
        os.killpg(process.pid, signal.SIGSTOP)
    worker = case.join()
    wait_for_trial(worker, case.out)
    if halted:
        os.killpg(process.pid, signal.SIGCONT)
    return worker


def one_kill(case: Case, process: subprocess.Popen[bytes], way: str, chance: random.Random, whole_s: float) -> bool:
    """Kill a running sweep, its trials or a worker that joins it; whether it was still there, and at work."""
    victim = joined_worker(case, process) if way == "worker" else process
    if way == "trial":
        wait_for_trial(victim, case.out)
    try:
        victim.wait(chance.uniform(0.0, 0.5) if way in ("trial", "worker") else chance.uniform(0.2, 1.1 * whole_s))
    except subprocess.TimeoutExpired:
        return kill(victim, "parent" if way == "worker" else way, case.out)
    return False


def one_sweep(case: Case, chance: random.Random, whole_s: float, most: int) -> dict[str, int]:
    """Start, kill, start again, at most so many times, then let it end; gives the kills by way."""
    longest_s = max(300.0, 5 * whole_s)  # other work may slow the machine down
    kills = dict.fromkeys(WAYS, 0)
    ways = (*WAYS, "worker") if case.is_joined else WAYS[:-1]  # twice as often as the others
    process = case.start()
    for _ in range(chance.randint(1, MOST_KILLS_A_SWEEP)):
        if sum(kills.values()) == most:
            break
        way = chance.choice(ways)
        if way == "worker" and left_of(case.out) <= case.workers:
            way = "parent"  # the sweep's own workers have all that is left: none would be the joined one's
        kills[way] += one_kill(case, process, way, chance, whole_s)
        if process.poll() is not None or way == "trial":
            process.wait(longest_s)
            process = case.start()
    process.wait(longest_s)
    if process.returncode == 1:  # a trial that was killed alone: its record says so, and --retry runs it again
        process = case.start()
        process.wait(longest_s)
    assert process.returncode == 0, f"the last start ended with {process.returncode}; see {case.log}"
    return kills


def left_of(out: Path) -> int:
    """How many trials have no record."""
    return TRIALS - sum(record_of(trial) is not None for trial in (out / "trials").glob("*"))


def first_state(work: Path, case: Case) -> dict[str, Any]:
    """The inputs, a sweep that is not killed, and a count of nothing."""
    make_inputs(work / "inputs")
    started_s = time.monotonic()
    assert case.start().wait(600) == 0, f"the unbroken sweep failed; see {case.log}"
    return {"whole_s": time.monotonic() - started_s, "sweeps": 0, "kills": dict.fromkeys(WAYS, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="on the folder; of two or more, one may join the sweep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep the count here, and resume it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch)).resolve()
        state_path, settings = work / "state.json", work / "inputs" / "sweep.toml"
        unbroken = Case(settings, work / "unbroken", work / "log.txt", 1)
        if not state_path.exists():
            shutil.rmtree(unbroken.out, ignore_errors=True)
            state_path.parent.mkdir(parents=True, exist_ok=True)
            state_path.write_text(json.dumps(first_state(work, unbroken)))
        state, expected = json.loads(state_path.read_text()), contents(unbroken.out)
        while (done := sum(state["kills"].values())) < asked.kills:
            chance = random.Random(f"{asked.seed}/{state['sweeps']}")
            is_joined = asked.workers > 1 and chance.random() < 0.5
            own = asked.workers - is_joined
            case = Case(settings, work / f"sweep-{state['sweeps']}", work / "log.txt", own, is_joined)
            shutil.rmtree(case.out, ignore_errors=True)
            with Watcher(case.out) as watcher:
                kills = one_sweep(case, chance, state["whole_s"], asked.kills - done)
            assert not watcher.double, f"two processes wrote {watcher.double} at once"
            assert not watcher.again, f"{watcher.again} started again although they were done"
            assert contents(case.out) == expected, f"{case.out} differs from {unbroken.out}; look there"
            shutil.rmtree(case.out)
            state["sweeps"] += 1
            state["kills"] = {way: state["kills"][way] + kills[way] for way in WAYS}
            state_path.write_text(json.dumps(state))
            print(
                f"sweep {state['sweeps']}: {sum(kills.values())} kills, {done + sum(kills.values())} in all", flush=True
            )
        kinds = {"kills": sum(state["kills"].values()), "sweeps": state["sweeps"], "workers": asked.workers}
        print(json.dumps(kinds | {"by_way": state["kills"]}))


if __name__ == "__main__":
    main()
