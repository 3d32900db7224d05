"""What `bad_inputs.py` and `fuzz.py` damage: a tiny model with its tokenizer, data of every format, a run directory."""

import csv
import json
from pathlib import Path
from typing import Any

ROWS = [{"id": f"r{number}", "prompt": f"{number}+1=", "completion": f" {number + 1}"} for number in range(6)]
TEXTS = [{"text": f"The line of number {number} is about as long as the others."} for number in range(6)]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def squad(name: str = "a") -> dict[str, Any]:
    """A document of SQuAD 2.0 with three questions, one of them without an answer."""
    context = f"Box {name} holds 2 red balls and 5 blue cubes."
    qas = [
        {"id": f"{name}0", "question": "How many balls?", "is_impossible": False, "answers": [{"text": "2"}]},
        {"id": f"{name}1", "question": "How many cubes?", "is_impossible": False, "answers": [{"text": "5"}]},
        {"id": f"{name}2", "question": "Who?", "is_impossible": True, "answers": []},
    ]
    return {"version": "v2.0", "data": [{"title": name, "paragraphs": [{"context": context, "qas": qas}]}]}


def squad_rows() -> list[dict[str, Any]]:
    """The same as rows of `squad_v2`."""
    (paragraph,) = squad()["data"][0]["paragraphs"]
    return [
        {"id": one["id"], "context": paragraph["context"], "question": one["question"], "answers": {"text": texts}}
        for one in paragraph["qas"]
        for texts in [[answer["text"] for answer in one["answers"]]]
    ]


def write_data(folder: Path) -> Path:
    """Data of every format in a folder."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    other = lines.replace("+1=", "+2=").replace('"r', '"s')
    (folder / "other.jsonl").write_text(other, encoding="utf-8")
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    for name in ("a", "b"):
        (folder / f"squad-{name}.json").write_text(json.dumps(squad(name)), encoding="utf-8")
    (folder / "predictions.json").write_text(json.dumps({"b0": "2", "b1": "5", "b2": ""}), encoding="utf-8")
    text = "\n".join(row["text"] for row in TEXTS) + "\n"
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "other.txt").write_text(text.replace("line", "row"), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder


def write_model(folder: Path) -> Path:
    """A random LLaMA of one layer with a byte-level tokenizer, its weights in one file."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    shape: dict[str, int] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads: dict[str, int] = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=258, bos_token_id=256, eos_token_id=257, **shape, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.chat_template = CHAT_TEMPLATE
    whole.save_pretrained(folder)
    return folder


def settings_table(model: Path, data: Path) -> dict[str, Any]:
    """Settings of a sweep over the data."""
    return {
        "model": str(model),
        "baselines": [],
        "task": {"name": "completion", "train": str(data / "rows.jsonl"), "test": str(data / "other.jsonl")},
        "training": {"sequence_length": 128, "batch_size": 2},
        "inference": {"max_new_tokens": 4},
        "run": {"device": "cpu"},
        "grid": {"lora.rank": [1, 2]},
    }
