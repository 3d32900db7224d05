"""Does any content of a user's file end in a traceback? Every reader, fed damaged files for ten minutes.

    python benchmarks/fuzz.py [--minutes N] [--seed N] [--reader NAME ...]

The law: a reader returns a right result or raises `UserError` with one line. Hypothesis damages valid inputs (a byte, a
piece cut out or written twice, a value of a JSON document replaced or removed) and makes up others. Where a table's
rows were not damaged, they must be read as they are (`rows as they were`).

A finding is what else a reader raised, or more than 20 seconds; findings are told apart by their type and the place
that raised them, each with the content that caused it. The readers take turns until the time is over. The last line is
one JSON document. Exit status 1 says that there are findings.
"""

import argparse
import base64
import contextlib
import copy
import gzip
import io
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from bad_inputs import run_directory
from fuzz_readers import Reader, Readers
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from valid_inputs import ROWS, TEXTS, squad, squad_rows, write_data, write_model

from howlow.errors import UserError

_LONGEST_S = 20
_EXAMPLES_A_TURN = 25


@dataclass(frozen=True)
class Target:
    """A reader and the inputs that it is given."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Reader


@dataclass
class Findings:
    """What readers raised that is no `UserError`, by type and place."""

    seen: dict[str, str] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def watch(self, target: Target, content: Any) -> None:
        """Give one input to a reader."""
        self.runs[target.name] = self.runs.get(target.name, 0) + 1
        try:
            with _time_limit():
                target.read(content)
        except UserError:
            self.refused[target.name] = self.refused.get(target.name, 0) + 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also the panics of libraries that are written in Rust
            self._note(target, content, error)

    def _note(self, target: Target, content: Any, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/howlow/" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"
        key = f"{target.name} | {type(error).__name__} | {place}"
        if key not in self.seen:
            self.seen[key] = f"{str(error).splitlines()[0][:200] if str(error) else ''} | {_shown(content)}"
            print(f"FINDING | {key} | {self.seen[key]}", flush=True)


class SlowError(Exception):
    """A reader took too long."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def over(number: int, frame: FrameType | None) -> None:
        raise SlowError

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(_LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _shown(content: Any) -> str:
    text = content if isinstance(content, bytes) else repr(content).encode("utf-8", "backslashreplace")
    if len(text) > 1500:
        return f"{len(text)} bytes, gzip base64: {base64.b64encode(gzip.compress(text))[:600].decode()}"
    return repr(text)[2:-1]


# -- inputs ---------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["\ud800", 2**70]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
_SIGNS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"{", b"[", b"}", b"]", b",", b"=", b"-", b"\x85"]
_WORDS = [
    b"\\ud800",
    b"\\u0000",
    b"\xe2\x80\xa8",
    b"1e999",
    b"NaN",
    b"null",
    b"\x1f\x8b",
    b"PAR1",
    b"9" * 5000,
    b"[" * 3000,
]
PIECES = st.sampled_from([*_SIGNS, *_WORDS])


@st.composite
def damaged_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with up to three changes."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        first, length = draw(st.integers(0, len(data))), draw(st.integers(0, 20))
        change = draw(st.sampled_from(["cut", "end", "insert", "flip", "twice"]))
        if change == "cut":
            del data[first : first + length]
        elif change == "end":
            del data[first:]
        elif change == "insert":
            data[first:first] = draw(PIECES)
        elif change == "flip" and first < len(data):
            data[first] = draw(st.integers(0, 255))
        else:
            data[first:first] = data[first : first + length]
    return bytes(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from _places(inner, (*path, key))


@st.composite
def damaged_json(draw: st.DrawFn, valid: Any) -> bytes:
    """A JSON document with up to two values replaced or removed."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(_places(document))))
        if not path:
            document = draw(JSON) if draw(st.integers(0, 9)) == 0 else document
            continue
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        if draw(st.booleans()):
            owner[path[-1]] = draw(JSON)
        else:
            del owner[path[-1]]
    return json.dumps(document).encode()


def damaged(valid: Any) -> st.SearchStrategy[bytes]:
    """Damages of a JSON document, of its values or of its text."""
    return damaged_json(valid) | damaged_bytes(json.dumps(valid).encode())


def lines(rows: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Damages of JSONL."""
    valid = "".join(json.dumps(row) + "\n" for row in rows).encode()
    joined = st.lists(damaged_json(rows[0]), min_size=1, max_size=3).map(b"\n".join)
    return joined | damaged_bytes(valid) | damaged_bytes(gzip.compress(valid)) | st.binary(max_size=40)


# -- readers ----------------------------------------------------------------------------------------------------------


def targets(readers: Readers) -> list[Target]:
    """Every reader with its inputs."""
    of_model = {path.name: path.read_bytes() for path in readers.model.iterdir()}
    of_run = {str(path.relative_to(readers.run)): path for path in readers.run.rglob("*") if path.is_file()}
    toml = (readers.run / "sweep.toml").read_bytes()
    text = st.text(alphabet=st.characters(), max_size=30)
    row = st.fixed_dictionaries({"prompt": st.text(max_size=20), "completion": st.text(min_size=1, max_size=20)})
    whole = row.filter(lambda found: found["completion"].strip() and _is_whole(found["prompt"] + found["completion"]))
    names = st.sampled_from(["a.txt", "b.TXT", "c.md", ".h/x.txt", "d/e.txt", "d/f.txt.gz", "g.jsonl"])
    keys = (
        st.sampled_from(["seed", "lora.rank", "task", "grid", "task.template", "lora.alpha", "training.betas"]) | text
    )
    assignment = st.tuples(keys, text | JSON.map(json.dumps)).map("=".join)
    number = st.from_regex(r"[-+]?[0-9_ .,x]{0,12}(\.\.)?[0-9]{0,12}", fullmatch=True) | text
    found = [
        Target("rows as they were", st.lists(whole, min_size=1, max_size=4), readers.tables),
        Target("settings TOML", damaged_bytes(toml) | st.binary(max_size=60), readers.settings_file),
        Target("--set", st.lists(assignment, min_size=1, max_size=2), readers.assignments),
        Target("--ranks, --seeds", number, readers.numbers),
        Target("JSONL", lines(ROWS), readers.load("completion", "d.jsonl")),
        Target("JSON rows", damaged(ROWS), readers.load("completion", "d.json")),
        Target("CSV", damaged_bytes((readers.data / "rows.csv").read_bytes()), readers.load("completion", "d.csv")),
        Target("SQuAD JSON", damaged(squad()), readers.load("question_answering", "d.json")),
        Target("SQuAD rows", lines(squad_rows()), readers.load("question_answering", "d.jsonl")),
        Target("text rows", lines(TEXTS), readers.load("language_modeling", "d.jsonl", "window")),
        Target("text", damaged_bytes((readers.data / "text.txt").read_bytes()), readers.load("language_modeling", "d")),
        Target(
            "text folder",
            st.dictionaries(names, text.filter(_is_whole).map(str.encode) | st.binary(max_size=9), min_size=1),
            readers.texts,
        ),
        Target("predictions", damaged({"b0": "2", "b1": "5", "b2": ""}), readers.predictions),
        Target(
            "Parquet",
            damaged_bytes((readers.data / "rows.parquet").read_bytes()),
            readers.load("completion", "d.parquet"),
        ),
    ]
    for path in sorted((readers.data / "saved").iterdir()):
        found.append(Target(f"saved {path.suffix}", damaged_bytes(path.read_bytes()), readers.saved(path.name)))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        found.append(Target(name, damaged(json.loads(of_model[name])), readers.model_file(name)))
    template = of_model["chat_template.jinja"]
    found.append(Target("chat template", damaged_bytes(template), readers.model_file("chat_template.jinja", chat=True)))
    weights = of_model["model.safetensors"]
    header = damaged_bytes(weights[:600]).map(lambda start: start + weights[600:])
    found.append(Target("safetensors", header, readers.model_file("model.safetensors")))
    for name, path in sorted(of_run.items()):
        if path.suffix in (".json", ".jsonl"):
            document = damaged_bytes(path.read_bytes())
            inputs = document | damaged(json.loads(path.read_bytes())) if path.suffix == ".json" else document
            found.append(Target(f"run: {path.name}", inputs, readers.run_file(name)))
    for name in ("board.json", "owner.json"):
        found.append(Target(f"run: {name}", JSON.map(json.dumps).map(str.encode), readers.run_file(f".howlow/{name}")))
    return found


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


# -- the run --------------------------------------------------------------------------------------------------------


def turn(target: Target, findings: Findings, number: int) -> None:
    """Some inputs for one reader."""

    @seed(number)
    @settings(
        max_examples=_EXAMPLES_A_TURN,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def give(content: Any) -> None:
        findings.watch(target, content)

    give()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only readers whose name holds this")
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    findings, numbers = Findings(), random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = Path(scratch)
        model, data = write_model(folder / "valid-model"), write_data(folder / "valid-data")
        run = run_directory(folder / "valid-run", model, data)
        (folder / "scratch").mkdir()
        found = targets(Readers(folder / "scratch", model, data, run))
        chosen = [one for one in found if not asked.reader or any(part in one.name for part in asked.reader)]
        end = time.monotonic() + 60 * asked.minutes
        while time.monotonic() < end:
            for target in chosen:
                if time.monotonic() < end:
                    with contextlib.redirect_stderr(io.StringIO()):
                        turn(target, findings, numbers.getrandbits(32))
    print("\n| reader | inputs | refused in one line | read | findings |\n| --- | --- | --- | --- | --- |")
    for name, runs in findings.runs.items():
        problems = sum(key.startswith(f"{name} |") for key in findings.seen)
        refused = findings.refused.get(name, 0)
        print(f"| {name} | {runs} | {refused} | {runs - refused} | {problems} |")
    print(json.dumps({"inputs": sum(findings.runs.values()), "findings": findings.seen}))
    sys.exit(bool(findings.seen))


if __name__ == "__main__":
    main()
