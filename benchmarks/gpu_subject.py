"""What the checks of `gpu.py` run on: a model with random weights on the device, and the questions that it is given."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
from peers import BATCH_SIZE, LENGTH, STEP_SIZE, Reply

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = "HOWLOW_BENCHMARK_TOKENIZER"
SMALL, LARGE = "llama-3.2-1b", "llama-3.1-8b"
FORMS: dict[str, Reply] = {
    "plain": {},
    "recorded": {"joins_adapters": True, "graphs": True},
    "compiled": {"joins_adapters": True, "compiles": True},
    "graphed": {"joins_adapters": True, "compiles": True, "graphs": True},
}
"""How a step runs. `recorded`: as CUDA graphs, not compiled; `graphed`: compiled and as CUDA graphs, as trials do."""


@dataclass(frozen=True)
class Subject:
    """The base model, its tokenizer, and its tokenised questions; a model of this kind is on the device once."""

    base: Any
    tokenizer: Any
    train: list[Any]
    test: list[Any]
    device: Any


def questions(work: Path) -> tuple[str, str, str]:
    """Return the training file, the test file, and where they come from."""
    folder = peers.data_folder() / "squad"
    train, test = folder / "dev-v1.1.json", folder / "dev-v2.0.json"
    if train.exists() and test.exists():
        return str(train), str(test), "SQuAD's development sets"
    made = work / "questions.json"
    paragraphs = [_paragraph(number) for number in range(200)]
    made.write_text(json.dumps({"version": "1.1", "data": [{"title": "made up", "paragraphs": paragraphs}]}))
    return str(made), str(made), "made-up questions, five to a paragraph of 120 words"


def _paragraph(number: int) -> Reply:
    rooms = [f"Room {number}-{room} holds {room + 2} red balls and {number + room} blue cubes." for room in range(12)]
    context = " ".join(rooms)
    asked = [(f"How many red balls are in room {number}-{room}?", str(room + 2)) for room in range(5)]
    qas = [
        {
            "id": f"{number}-{index}",
            "question": question,
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for index, (question, answer) in enumerate(asked)
    ]
    return {"context": context, "qas": qas}


def model_name(name: str, work: Path, is_dry: bool) -> str:
    """Return the known architecture's name or, in a dry run, the config of a tiny one of the same kind."""
    if not is_dry:
        return name
    config = json.loads((ROOT / "src/howlow/model_configs" / f"{name}.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 49152}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    path = work / f"tiny-{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def tokenizer_setting() -> Reply:
    """The setting that names the tokenizer, where the packaged model is not installed."""
    return {"tokenizer": os.environ[TOKENIZER]} if TOKENIZER in os.environ else {}


def loaded(work: Path, name: str, *, train: int, test: int, dtype: str = "bfloat16") -> Subject:
    """Put the frozen base model on the device, and tokenise so many questions for it."""
    import torch

    from howlow import load_settings
    from howlow.engine import model as models
    from howlow.engine.references import locate
    from howlow.trial import preparation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_file, test_file, _ = questions(work)
    task = {"name": "question_answering", "train": train_file, "test": test_file}
    task |= {"train_examples": train, "test_examples": test}
    asked = load_settings(None, [{"model": name, "random_weights": True, "task": task, **tokenizer_setting()}])
    reference = locate(name, True)
    config = models.load_config(reference, None, False)
    prepared = preparation.tokenized(asked, reference, config)
    tokenizer, _, _ = models.load_tokenizer(reference, os.environ.get(TOKENIZER), None, False)
    options: Reply = {"random_weights": True, "dtype": getattr(torch, dtype), "device": device}
    base = models.load_model(reference, config, revision=None, trust_remote_code=False, **options)
    return Subject(base.requires_grad_(False), tokenizer, prepared.train, prepared.test, device)


def attention_of(layout: str, device: Any) -> Any:
    """The kernel of a layout as trials choose it."""
    return "own" if layout == "padded" else "flex" if device.type == "cuda" else "sdpa"


def steps_of(
    examples: Sequence[Any], layout: Any, size: int, count: int, form: str, loss_on: Any = "completion"
) -> list[list[Any]]:
    """The micro-batches of the first steps of so many questions, filled up to few shapes in every form but `plain`."""
    from howlow.engine import buckets, order
    from howlow.engine import layouts as laying

    plan = order.steps([example.group for example in examples], "groups", 0, 1, size)[:count]
    together = {"padded": BATCH_SIZE, "packed": STEP_SIZE}.get(layout, size)  # `packed` has three times the tokens
    parts = [
        [[examples[row] for row in step[first : first + together]] for first in range(0, len(step), together)]
        for step in plan
    ]
    laid_out = [[laying.lay_out(part, layout, LENGTH, 0, loss_on) for part in step] for step in parts]
    if form == "plain":
        return laid_out
    sizes = [buckets.size_of(part, layout, LENGTH, loss_on) for step in parts for part in step]
    shapes = buckets.choose_shapes(sizes, fills_rows=layout != "padded")
    return [[_filled(batch, shapes) for batch in step] for step in laid_out]


def _filled(batch: Any, shapes: Any) -> Any:
    from howlow.engine import buckets

    bucket = shapes.of(buckets.size_of_batch(batch))
    assert bucket is not None, "the shapes were chosen for these batches"
    return buckets.fill(batch, bucket, 0).pinned()
