"""Measure what lies between the steps of a trial: the host's share of the measured window, where steps are short.

    python benchmarks/host_share.py [--steps 300] [--demo]

A random LLaMA of 3 M parameters takes 12 ms or a little more a step on two cores of a CPU. It is trained, evaluated and
lets write in each layout, as a user would do it (`howlow sweep`). The share is 1 - (time of the measured steps) /
(measured window), both as the raw files and the record hold them. `--demo` takes the demo's model and data at rank 4
instead.
Claim: at most 1 % in every phase and layout. The last line is one JSON document.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kills import questions

BATCHES = {"padded": (2, 7), "packed": (2, 7), "shared": (3, 12)}
"""Layout -> training's and inference's batch, so that a step takes 12 ms or a little more."""
SHAPE = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 4}
SETTINGS = """
model = "{folder}/model"
baselines = []
grid = {{"lora.rank" = [4]}}
task = {{name = "question_answering", train = "{folder}/train.json", test = "{folder}/test.json", stop = ""}}
training = {{sequence_length = 160, epochs = 100, max_steps = {steps}}}
inference = {{max_new_tokens = 8}}
"""


def make_inputs(folder: Path, steps: int) -> Path:
    """A random LLaMA, a byte tokenizer, made-up questions, and the settings of a sweep over them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(vocab_size=264, bos_token_id=256, eos_token_id=257, **SHAPE)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder / "model")
    for side in ("train", "test"):
        (folder / f"{side}.json").write_text(json.dumps(questions(side, steps)), encoding="utf-8")
    settings = folder / "sweep.toml"
    settings.write_text(SETTINGS.format(folder=folder, steps=steps), encoding="utf-8")
    return settings


def swept(out: Path, *arguments: str) -> Path:
    """Run a sweep; gives the folder of its adapter's trial."""
    command = [sys.executable, "-m", "howlow", "sweep", *arguments, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out / "trials" / "r0004-s0"


def chosen(layout: str) -> tuple[str, ...]:
    """The flags that choose a layout and its batches."""
    train, inference = BATCHES[layout]
    batches = (f"training.batch_size={train}", f"inference.batch_size={inference}")
    return ("--layout", layout, *(word for batch in batches for word in ("--set", batch)))


def shares(trial: Path) -> dict[str, Any]:
    """For each phase the host's share, the median step and the number of measured steps."""
    record = json.loads((trial / "record.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (trial / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for phase in record["phases"]:
        own = [line["duration_s"] for line in lines if (line["phase"], line["part"]) == (phase["phase"], "measured")]
        if own:
            share = 1 - sum(own) / phase["measured_duration_s"]
            found[phase["phase"]] = {"host_share": share, "step_s": statistics.median(own), "steps": len(own)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--demo", action="store_true", help="the demo's model and data at rank 4, as it chooses")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if asked.demo:
            found = {"demo": shares(swept(folder / "demo", "demo", "--ranks", "4", "--baselines", "none"))}
        else:
            settings = make_inputs(folder, asked.steps)
            found = {name: shares(swept(folder / name, str(settings), *chosen(name))) for name in BATCHES}
    for name, phases in found.items():
        for phase, seen in phases.items():
            words = f"{seen['step_s'] * 1e3:8.2f} ms a step, {seen['steps']:4} steps"
            print(f"{name:8} {phase:10} {seen['host_share']:8.3%} between steps, {words}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
