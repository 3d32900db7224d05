"""Measure LoRA fine-tuning with PEFT alone, without howlow: samples/s and losses to check howlow against.

    python examples/bare_loop.py MODEL_FOLDER TRAIN.json TEST.json --rank 8 --examples 80 --steps 20

It trains on SQuAD v1.1 JSON as `howlow sweep` does by default: the same examples in the same order, the same prompt,
loss on the answers, rows padded to the sequence length. So its losses must equal howlow's.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

BURN_IN = 2
"""Steps that are not measured."""


def paragraphs(path):
    for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
        yield from article["paragraphs"]


def select(train, test, limit):
    """Select up to `limit` questions of paragraphs not in the test data, in the order seeded by task.seed = 0."""
    seen = {" ".join(paragraph["context"].split()) for paragraph in paragraphs(test)}
    groups = {}
    for paragraph in paragraphs(train):
        for question in paragraph["qas"]:
            if not question.get("is_impossible"):
                groups.setdefault(paragraph["context"], []).append((paragraph["context"], question))
    ordered = list(groups.values())
    random.Random("0-train").shuffle(ordered)
    kept = [group for group in ordered if " ".join(group[0][0].split()) not in seen]
    return [example for group in kept for example in group][:limit]


def tokenize(tokenizer, context, question):
    """Tokenise prompt and completion separately; the completion ends with EOS."""
    prompt = f"{context}\n\nQuestion: {question['question']}\nAnswer:"
    completion = " " + question["answers"][0]["text"]
    return (
        tokenizer(prompt)["input_ids"],
        [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
    )


def schedule(examples, seed, batch_size):
    """Plan one epoch: shuffle the groups, join them, and cut the result into batches."""
    groups = {}
    for index, (context, _) in enumerate(examples):
        groups.setdefault(context, []).append(index)
    units = list(groups.values())
    random.Random(f"{seed}-0").shuffle(units)
    order = [index for unit in units for index in unit]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch(rows, length, pad_id):
    """Pad rows to `length`; return ids, and labels that are -100 where there is no loss."""
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), -100)
    for row, (prompt, completion) in enumerate(rows):
        both = torch.tensor(prompt + completion)
        ids[row, : len(both)] = both
        labels[row, len(prompt) : len(both)] = both[len(prompt) :]
    return ids, labels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train")
    parser.add_argument("test")
    for name, default in {"rank": 8, "examples": 80, "steps": 20, "batch_size": 4, "length": 256, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    asked = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32)
    torch.manual_seed(asked.seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=asked.rank, lora_alpha=32, target_modules=targets)
    model = get_peft_model(model, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=asked.learning_rate, weight_decay=0.0)

    examples = select(asked.train, asked.test, asked.examples)
    tokens = [tokenize(tokenizer, context, question) for context, question in examples]
    # Examples that are too long are dropped after the limit, as howlow does.
    fitting = [index for index, (prompt, completion) in enumerate(tokens) if len(prompt + completion) <= asked.length]
    examples, tokens = [examples[i] for i in fitting], [tokens[i] for i in fitting]
    chosen = schedule(examples, asked.seed, asked.batch_size)[: asked.steps]
    # Laid out before the measured window, which goes from the first measured step's start to the last one's end.
    batches = [batch([tokens[index] for index in step], asked.length, tokenizer.eos_token_id) for step in chosen]
    losses, start, end = [], 0.0, 0.0
    for step, (ids, labels) in enumerate(batches):
        if step == BURN_IN:
            start = time.perf_counter()
        loss = model(input_ids=ids, labels=labels).loss  # the mean over the batch's target tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        end = time.perf_counter()
    samples = sum(map(len, chosen[BURN_IN:]))
    rate = samples / (end - start) if samples else None
    print(json.dumps({"rank": asked.rank, "losses": losses, "samples_per_s": rate}))


if __name__ == "__main__":
    main()
