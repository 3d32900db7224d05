"""The named bad inputs of `bad_inputs.py`: what `bad_contents` holds, each with the command that reads it."""

import bz2
import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_contents import (
    CONFIG_CHANGES,
    CONFIGS,
    CSV,
    FLAGS,
    GENERATION_CHANGES,
    JSONL,
    PREDICTIONS,
    SAFETENSORS,
    SQUAD,
    TABLES,
    TEMPLATES,
    TEXT,
    TOKENIZERS,
    TOML,
    Content,
    rows,
)
from valid_inputs import CHAT_TEMPLATE, ROWS, settings_table


@dataclass(frozen=True)
class Place:
    """A scratch folder of one case, with the valid inputs at hand."""

    folder: Path
    model: Path
    data: Path
    run: Path
    """a run directory with one trial that is done"""

    def file(self, name: str, content: Content) -> str:
        """A file in the scratch folder."""
        path = self.folder / os.fsencode(name).decode("utf-8", "surrogateescape")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        return str(path)

    def sweep(self, *more: str, **changes: str) -> list[str]:
        """The command that looks at everything before the first trial; flags by name change it."""
        flags: dict[str, str] = {
            "model": str(self.model),
            "task": "completion",
            "train": str(self.data / "rows.jsonl"),
            "test": str(self.data / "other.jsonl"),
            "ranks": "1",
            "baselines": "none",
        }
        flags |= changes
        given = [part for name, value in flags.items() for part in (f"--{name}", value)]
        settings = ["training.sequence_length=128", "inference.max_new_tokens=4", "run.device=cpu"]
        return ["sweep", "--dry-run", *given, *(part for one in settings for part in ("--set", one)), *more]


@dataclass(frozen=True)
class Case:
    """A named input and the command that reads it."""

    group: str
    name: str
    command: Callable[[Place], list[str]]
    is_bad: bool = True
    """False: odd, and yet right; the command ends with exit code 0"""
    needs_permission: bool = False
    """run in a process of its own that may not read everything, even for root"""


def of_files(group: str, suffix: str, contents: Mapping[str, Content], task: str = "completion") -> Iterator[Case]:
    """Each content as the training data, in a file with this ending (none: the case's own name is the file's)."""

    def command(content: Content, name: str) -> Callable[[Place], list[str]]:
        test = {"completion": "other.jsonl", "question_answering": "squad-b.json", "language_modeling": "other.txt"}
        return lambda place: place.sweep(train=place.file(name, content), test=str(place.data / test[task]), task=task)

    for name, content in contents.items():
        yield Case(group, name, command(content, f"train{suffix}" if suffix else name))


def of_predictions() -> Iterator[Case]:
    def command(content: Content) -> Callable[[Place], list[str]]:
        return lambda place: [
            *("score", "question_answering", "--data", str(place.data / "squad-b.json")),
            *("--predictions", place.file("predictions.json", content)),
        ]

    for name, content in PREDICTIONS.items():
        yield Case("predictions", name, command(content))


# -- settings and flags ---------------------------------------------------------------------------------------------


def of_settings() -> Iterator[Case]:
    def command(content: Content) -> Callable[[Place], list[str]]:
        return lambda place: ["sweep", "--dry-run", place.file("sweep.toml", completed(place, content))]

    for name, content in TOML.items():
        yield Case("settings file", name, command(content))
    for name, flags in FLAGS.items():
        yield Case("flag", name, lambda place, flags=flags: place.sweep(*flags))
    yield Case("settings file", "a missing file", lambda place: place.sweep("missing.toml"))
    yield Case("settings file", "a folder", lambda place: place.sweep(str(place.data)))
    yield Case("settings file", "no preset of this name", lambda place: place.sweep("demmo"))
    yield Case("settings file", "a name of 5,000 letters", lambda place: place.sweep("x" * 5000))
    yield Case("settings file", "a byte order mark", with_mark, is_bad=False)


def completed(place: Place, content: Content) -> Content:
    """The file with the model and the task that it does not speak of, so that nothing else is wrong with it."""
    if isinstance(content, bytes):
        return content
    table = settings_table(place.model, place.data)
    has_model = content.startswith(("model", "[model"))
    model = "" if has_model else f"model = {json.dumps(table['model'])}\n"
    task = "".join(f"task.{key} = {json.dumps(value)}\n" for key, value in table["task"].items())
    return model + ("" if "task" in content else task) + content


def with_mark(place: Place) -> list[str]:
    table = settings_table(place.model, place.data)
    content = f"\ufeffmodel = {json.dumps(table['model'])}\n"
    return place.sweep(place.file("sweep.toml", content))


# -- models ---------------------------------------------------------------------------------------------------------


def changed_model(name: str, content: Content | None, *more: str) -> Callable[[Place], list[str]]:
    """The valid model with one file changed (None: removed), in a completion task or with further flags."""

    def command(place: Place) -> list[str]:
        folder = place.folder / "model"
        shutil.copytree(place.model, folder)
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return place.sweep(*more, model=str(folder))

    return command


def changed_config(**changes: Any) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        config = json.loads((place.model / "config.json").read_text(encoding="utf-8")) | changes
        whole = {key: value for key, value in config.items() if value is not None}
        return changed_model("config.json", json.dumps(whole))(place)

    return command


def changed_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        document = json.loads((place.model / "tokenizer.json").read_text(encoding="utf-8"))
        return changed_model("tokenizer.json", json.dumps(change(document)))(place)

    return command


def only_tokenizer_model(content: bytes) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        found = changed_model("tokenizer.model", content)(place)
        (place.folder / "model" / "tokenizer.json").unlink()
        return found

    return command


def with_weight(value: float) -> Callable[[Place], list[str]]:
    """The valid model with one value of one tensor changed."""

    def command(place: Place) -> list[str]:
        from safetensors.torch import load_file, save

        tensors = load_file(place.model / "model.safetensors")
        tensors[max(tensors)].view(-1)[0] = value
        return changed_model("model.safetensors", save(tensors, {"format": "pt"}))(place)

    return command


def of_models() -> Iterator[Case]:
    for name, content in CONFIGS.items():
        yield Case("config.json", name, changed_model("config.json", content))
    for name, changes in CONFIG_CHANGES.items():
        yield Case("config.json", name, changed_config(**changes))
    yield Case("generation_config.json", "nested too deeply", changed_model("generation_config.json", "[" * 100_000))
    for name, found in GENERATION_CHANGES.items():
        yield Case("generation_config.json", name, changed_model("generation_config.json", json.dumps(found)))
    for name, content in SAFETENSORS.items():
        yield Case("model.safetensors", name, changed_model("model.safetensors", content))
    for value in ("nan", "inf"):
        yield Case("model.safetensors", f"{value} in the last layer", with_weight(float(value)))
    for name, content in TOKENIZERS.items():
        yield Case("tokenizer.json", name, changed_model("tokenizer.json", content))
    without = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    yield Case("tokenizer.json", "no vocabulary", changed_tokenizer(lambda found: found | without))
    yield Case("tokenizer.json", "an unknown kind", changed_tokenizer(lambda found: found | {"model": {"type": "X"}}))
    yield Case("tokenizer.json", "vocabulary is a list", changed_tokenizer(lambda found: found | {"model": []}))
    yield Case(
        "tokenizer", "only a SentencePiece model", only_tokenizer_model(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    )
    yield Case("tokenizer", "only tiktoken's file", only_tokenizer_model(b"IQ== 0\nIg== 1\n"))
    yield Case("tokenizer", "only an empty tokenizer.model", only_tokenizer_model(b""))
    no_end = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"})
    yield Case("tokenizer", "no end-of-sequence token", changed_model("tokenizer_config.json", no_end))
    no_length = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "model_max_length": {}})
    yield Case("tokenizer", "a length that is an object", changed_model("tokenizer_config.json", no_length))
    yield Case("tokenizer", "config is a list", changed_model("tokenizer_config.json", "[]"))
    yield Case("tokenizer", "an unknown class", changed_model("tokenizer_config.json", '{"tokenizer_class": "X"}'))
    for name, content in TEMPLATES.items():
        chat = ("--set", "task.template=chat")
        yield Case("chat template", name, changed_model("chat_template.jinja", content, *chat))
    yield Case("chat template", "none", changed_model("chat_template.jinja", None, "--set", "task.template=chat"))
    yield Case("model", "a text file", lambda place: place.sweep(model=place.file("model.bin", "x")))
    yield Case("model", "GGUF that is text", lambda place: place.sweep(model=place.file("model.gguf", "GGUF?")))
    yield Case("model", "an empty GGUF", lambda place: place.sweep(model=place.file("model.gguf", b"")))
    yield Case("model", "an empty folder", lambda place: place.sweep(model=str(Path(place.file("m/x", "")).parent)))


# -- run directories, folders, permissions --------------------------------------------------------------------------


def report(change: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    """The report of a run directory after a change."""

    def command(place: Place) -> list[str]:
        folder = place.folder / "run"
        shutil.copytree(place.run, folder)
        change(folder)
        return ["report", str(folder)]

    return command


def record(content: Content) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "trials/r0001-s0/record.json").write_bytes(data)


def record_field(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "trials/r0001-s0/record.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def of_runs() -> Iterator[Case]:
    changes: dict[str, Callable[[Path], object]] = {
        "record is empty": record(""),
        "record is no JSON": record("{"),
        "record is a list": record("[]"),
        "record is null": record("null"),
        "record is Latin-1": record(b'{"a": "\xe9"}'),
        "record nested too deeply": record("[" * 100_000),
        "record of version 99": record_field(schema_version=99),
        "record of version '2'": record_field(schema_version=[2]),
        "record with an unknown status": record_field(status="fine"),
        "record with an unknown field": record_field(colour="red"),
        "record of another trial": record_field(trial="r0002-s0"),
        "record with settings of another kind": record_field(settings=3),
        "record is a folder": lambda folder: (
            (folder / "trials/r0001-s0/record.json").unlink(),
            (folder / "trials/r0001-s0/record.json").mkdir(),
        ),
        "steps are no JSON": lambda folder: (folder / "trials/r0001-s0/steps.jsonl").write_text("x\n"),
        "steps are Latin-1": lambda folder: (folder / "trials/r0001-s0/steps.jsonl").write_bytes(b'{"a": "\xe9"}\n'),
        "a step is a number": lambda folder: (folder / "trials/r0001-s0/steps.jsonl").write_text("3\n"),
        "timeline is no JSON": lambda folder: (folder / "trials/r0001-s0/timeline.jsonl").write_text("{\n"),
        "trials is a file": lambda folder: (shutil.rmtree(folder / "trials"), (folder / "trials").write_text("")),
        "no trials folder": lambda folder: shutil.rmtree(folder / "trials"),
    }
    for name, change in changes.items():
        yield Case("run directory", name, report(change))
    yield Case("run directory", "missing", lambda place: ["report", str(place.folder / "missing")])
    yield Case("run directory", "a file", lambda place: ["report", place.file("x", "")])
    yield Case("run directory", "worker: missing", lambda place: ["worker", str(place.folder / "missing")])
    yield Case("run directory", "worker: board is no JSON", board("{"))
    yield Case("run directory", "worker: board is a list", board("[]"))
    yield Case("run directory", "--out holds other files", lambda place: place.sweep("--out", str(place.data)))
    yield Case("run directory", "--out is a file", lambda place: place.sweep("--out", place.file("x", "")))
    yield Case("run directory", "--out is empty", lambda place: place.sweep("--out", " "))
    yield Case("run directory", "--out holds a sweep.toml that is no TOML", out_with("sweep.toml", "x"))


def board(content: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        folder = place.folder / "run"
        shutil.copytree(place.run, folder)
        (folder / ".howlow").mkdir(exist_ok=True)
        (folder / ".howlow/board.json").write_text(content, encoding="utf-8")
        return ["worker", str(folder)]

    return command


def out_with(name: str, content: str) -> Callable[[Place], list[str]]:
    return lambda place: place.sweep("--out", str(Path(place.file(f"out/{name}", content)).parent))


def locked(path: str, mode: int = 0) -> Callable[[Place], str]:
    """A copy of the valid inputs in which a path has no permission."""

    def lock(place: Place) -> str:
        for name in ("model", "data"):
            shutil.copytree(getattr(place, name), place.folder / name)
        (place.folder / "corpus/inner").mkdir(parents=True)
        for name in ("a.txt", "inner/b.txt"):
            (place.folder / "corpus" / name).write_text("text\n", encoding="utf-8")
        (place.folder / path).chmod(mode)
        return str(place.folder / path)

    return lock


def of_permissions() -> Iterator[Case]:
    def text(place: Place, source: Path) -> list[str]:
        return place.sweep(task="language_modeling", train=str(source), test=str(place.data / "other.txt"))

    commands: dict[str, tuple[str, Callable[[Place], list[str]]]] = {
        "data file": ("data/rows.jsonl", lambda place: place.sweep(train=str(place.folder / "data/rows.jsonl"))),
        "the data's folder": ("data", lambda place: place.sweep(train=str(place.folder / "data/rows.jsonl"))),
        "Parquet file": ("data/rows.parquet", lambda place: place.sweep(train=str(place.folder / "data/rows.parquet"))),
        "text in a folder": ("corpus/a.txt", lambda place: text(place, place.folder / "corpus")),
        "folder in a folder": ("corpus/inner", lambda place: text(place, place.folder / "corpus")),
        "tokenizer.json": ("model/tokenizer.json", lambda place: place.sweep(model=str(place.folder / "model"))),
        "config.json": ("model/config.json", lambda place: place.sweep(model=str(place.folder / "model"))),
        "weights": ("model/model.safetensors", lambda place: place.sweep(model=str(place.folder / "model"))),
        "the model's folder": ("model", lambda place: place.sweep(model=str(place.folder / "model"))),
    }
    for name, (path, command) in commands.items():
        yield Case("permission", name, after(locked(path), command), needs_permission=True)


def after(first: Callable[[Place], str], command: Callable[[Place], list[str]]) -> Callable[[Place], list[str]]:
    def both(place: Place) -> list[str]:
        first(place)
        return command(place)

    return both


def of_right_ones() -> Iterator[Case]:
    """Odd inputs that are right."""
    text = rows(*ROWS)
    contents: dict[str, Content] = {
        "rows.jsonl.gz": gzip.compress(text.encode()),
        "rows.jsonl.bz2": bz2.compress(text.encode()),
        "rows.jsonl.xz": lzma.compress(text.encode()),
        "rows.jsonl": gzip.compress(text.encode()),
        "rows.json": json.dumps(ROWS, indent=2),
        "rows.ndjson": "\ufeff" + text.replace("\n", "\r\n"),
        "rows.data": text,
        "rows.TSV": "prompt\tcompletion\n" + "".join(f"{row['prompt']}\t{row['completion']}\n" for row in ROWS),
        "blank-prompts.jsonl": rows(*(row | {"prompt": ""} for row in ROWS)),
        "whole-number-ids.jsonl": rows(*(row | {"id": number} for number, row in enumerate(ROWS))),
    }
    for name, content in contents.items():
        yield Case("odd and right", name, lambda place, n=name, c=content: place.sweep(train=place.file(n, c)), False)
    parts = CHAT_TEMPLATE.replace("message.content", "message.content[0].text")
    command = changed_model("chat_template.jinja", parts, "--set", "task.template=chat")
    yield Case("odd and right", "a chat template that reads a list of parts", command, False)
    for name in ("rows.parquet", "saved", "rows.csv"):
        yield Case("odd and right", name, lambda place, n=name: place.sweep(train=str(place.data / n)), False)


def cases() -> list[Case]:
    """All cases."""
    return [
        *of_settings(),
        *of_files("JSONL", ".jsonl", JSONL),
        *of_files("CSV", ".csv", CSV),
        *of_files("table", "", TABLES),
        *of_files("SQuAD", ".json", {name: json.dumps(value) for name, value in SQUAD.items()}, "question_answering"),
        *of_files("text", "", TEXT, "language_modeling"),
        *of_predictions(),
        *of_models(),
        *of_runs(),
        *of_permissions(),
        *of_right_ones(),
    ]
