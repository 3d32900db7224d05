"""Kill sweeps of tiny trials at random: each must end complete, with equal losses and no record lost or doubled.

    python benchmarks/kills.py [--kills 200] [--seed 0] [--work DIR]

The script starts `howlow sweep` and kills it after a random time: the parent alone, the whole group, the trial alone
(SIGKILL), or the parent as a cluster does it (SIGTERM). It repeats the same command up to eight times, then lets it
end. Steps with their losses, predictions, scores and adapters must equal those of a sweep that was never killed. A
trial that was killed alone has a record that says so, and `--retry failed` runs it again.

With `--work` the count is kept in that folder, so that this script can be killed, too, and resumes. The last line is
one JSON document.
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
import time
from pathlib import Path
from typing import Any

import psutil

from howlow.records import read_lines, read_record

HOWLOW = Path(sys.executable).parent / "howlow"
WAYS = ("parent", "group", "trial", "terminate")
MOST_KILLS_A_SWEEP = 8


# -- a tiny sweep ---------------------------------------------------------------------------------------------------


def make_inputs(folder: Path) -> Path:
    """Write a random LLaMA of two layers, a byte tokenizer, made-up questions, and the settings of a sweep."""
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


SETTINGS = """
model = "{folder}/model"
grid = {{"lora.rank" = [1, 4]}}
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


def start(settings: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [str(HOWLOW), "sweep", str(settings), "--out", str(out), "--retry", "failed"]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def kill(process: subprocess.Popen[bytes], way: str, out: Path) -> bool:
    """Kill in one of the ways; return whether there was something to kill."""
    if process.poll() is not None:
        return False
    if way == "trial":
        trials = [child for child in psutil.Process(process.pid).children(recursive=True) if writes_into(child, out)]
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
    """Wait until a trial runs or the sweep has ended; trials take only a small part of a sweep's time."""
    while process.poll() is None:
        if any(writes_into(child, out) for child in psutil.Process(process.pid).children(recursive=True)):
            return
        time.sleep(0.02)


def writes_into(process: psutil.Process, out: Path) -> bool:
    """Tell whether the process is a trial, whose output goes to the trial's log."""
    try:
        return str(out / "trials") in str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return False


def contents(out: Path) -> dict[str, Any]:
    """Collect by trial all that must not depend on kills; a missing record or an extra line is visible in it."""
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


def one_sweep(settings: Path, out: Path, log: Path, chance: random.Random, whole_s: float, most: int) -> dict[str, int]:
    """Start and kill a sweep several times, with at most `most` kills, then let it end; return the kills by way."""
    kills = dict.fromkeys(WAYS, 0)
    for _ in range(chance.randint(1, MOST_KILLS_A_SWEEP)):
        if sum(kills.values()) == most:
            break
        process, way = start(settings, out, log), chance.choice(WAYS)
        if way == "trial":
            wait_for_trial(process, out)
        try:
            process.wait(chance.uniform(0.0, 0.5) if way == "trial" else chance.uniform(0.2, 1.1 * whole_s))
        except subprocess.TimeoutExpired:
            kills[way] += kill(process, way, out)
            if way == "trial":
                process.wait(300)
    process = start(settings, out, log)
    process.wait(300)
    assert process.returncode == 0, f"the last start ended with {process.returncode}; see {log}"
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep the count here, and resume from it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch)).resolve()
        state_path, log = work / "state.json", work / "log.txt"
        settings = work / "inputs" / "sweep.toml"
        if not state_path.exists():
            make_inputs(work / "inputs")
            started_s = time.monotonic()
            assert start(settings, work / "unbroken", log).wait(600) == 0, f"the unbroken sweep failed; see {log}"
            state: dict[str, Any] = {
                "whole_s": time.monotonic() - started_s,
                "sweeps": 0,
                "kills": dict.fromkeys(WAYS, 0),
            }
            state_path.write_text(json.dumps(state))
        state, expected = json.loads(state_path.read_text()), contents(work / "unbroken")
        while (done := sum(state["kills"].values())) < asked.kills:
            out = work / f"sweep-{state['sweeps']}"
            shutil.rmtree(out, ignore_errors=True)
            chance = random.Random(f"{asked.seed}/{state['sweeps']}")
            kills = one_sweep(settings, out, log, chance, state["whole_s"], asked.kills - done)
            found = contents(out)
            assert found == expected, f"{out} differs from {work / 'unbroken'}; look there, and into {log}"
            shutil.rmtree(out)
            state["sweeps"] += 1
            state["kills"] = {way: state["kills"][way] + kills[way] for way in WAYS}
            state_path.write_text(json.dumps(state))
            print(
                f"sweep {state['sweeps']}: {sum(kills.values())} kills, {done + sum(kills.values())} in all", flush=True
            )
        print(json.dumps({"kills": sum(state["kills"].values()), "sweeps": state["sweeps"], "by_way": state["kills"]}))


if __name__ == "__main__":
    main()
