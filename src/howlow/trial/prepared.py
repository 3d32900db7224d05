"""The folder of prepared examples: what a sweep tokenised once, for all of its trials to read.

prepared.safetensors    token ids of all examples, end to end, and their lengths
prepared.json           ids, groups, references, counts, warnings
"""

import json
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from howlow.engine.tokens import TokenizedExample
from howlow.records import DataRecord, RecordWarning, write_atomically
from howlow.tasks import Example


@dataclass(frozen=True)
class Prepared:
    """The examples of a trial: the tokens of each side, the texts and references of those that are scored, and the
    windows of the general text."""

    train: list[TokenizedExample]
    test: list[TokenizedExample]
    test_examples: list[Example]
    data: DataRecord
    warnings: list[RecordWarning]
    tokenizer_name: str
    general: list[TokenizedExample] = field(default_factory=list)
    validation: list[TokenizedExample] = field(default_factory=list)
    validation_examples: list[Example] = field(default_factory=list)

    @property
    def everything(self) -> list[TokenizedExample]:
        """The tokens of all sides, in the order of the file."""
        return [*self.train, *self.test, *self.general, *self.validation]


def stored(folder: Path, content: str | None) -> Prepared | None:
    """What an earlier start prepared from the same content; None where there is nothing to use."""
    try:
        document = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
        return read_prepared(folder) if content is not None and document.get("content") == content else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None  # a start that was killed while it wrote


def write_prepared(prepared: Prepared, folder: Path, content: str | None) -> None:
    """Write the folder; `content` is a hash of all that the examples follow from, None where it is not known."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prepared.json").unlink(missing_ok=True)  # it vouches for the tokens, which are about to change
    everything = prepared.everything
    flat = [token for example in everything for token in example.prompt + example.completion]
    lengths = [[len(example.prompt), len(example.completion)] for example in everything]
    tensors = {"ids": torch.tensor(flat, dtype=torch.int32), "lengths": torch.tensor(lengths, dtype=torch.int32)}
    save_file(tensors, folder / "prepared.safetensors")
    document = {
        "sizes": [len(side) for side in (prepared.train, prepared.test, prepared.general, prepared.validation)],
        "examples": [[e.id, e.group, e.words, e.bytes, e.cut, e.repeated] for e in everything],
        "test_examples": [asdict(example) for example in prepared.test_examples],
        "validation_examples": [asdict(example) for example in prepared.validation_examples],
        "data": prepared.data.model_dump(),
        "warnings": [warning.model_dump(mode="json") for warning in prepared.warnings],
        "tokenizer": prepared.tokenizer_name,
        "content": content,
    }
    write_atomically(folder / "prepared.json", json.dumps(document))


def read_prepared(folder: Path) -> Prepared:
    """What `write_prepared` wrote."""
    document = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "prepared.safetensors")
    flat, everything, start = tensors["ids"].tolist(), [], 0
    for (name, group, words, size, cut, repeated), (prompt, completion) in zip(
        document["examples"], tensors["lengths"].tolist(), strict=True
    ):
        middle, end = start + prompt, start + prompt + completion
        ids = tuple(flat[start:middle]), tuple(flat[middle:end])
        everything.append(TokenizedExample(name, group, *ids, words=words, bytes=size, cut=cut, repeated=repeated))
        start = end
    tokens_in_order = iter(everything)
    train, test, general, validation = (list(islice(tokens_in_order, size)) for size in document["sizes"])
    return Prepared(
        train=train,
        test=test,
        general=general,
        validation=validation,
        test_examples=[_example(example) for example in document["test_examples"]],
        validation_examples=[_example(example) for example in document["validation_examples"]],
        data=DataRecord(**document["data"]),
        warnings=[RecordWarning(**warning) for warning in document["warnings"]],
        tokenizer_name=document["tokenizer"],
    )


def _example(fields: dict[str, Any]) -> Example:
    lists = {key: tuple(fields[key]) for key in ("references", "overlap_keys")}
    return Example(**{**fields, **lists})
