"""The readers that `fuzz.py` feeds, each as a function of a file's content."""

import contextlib
import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valid_inputs import settings_table

from howlow import load_settings
from howlow.errors import UserError
from howlow.settings import TaskSettings, completed, parse_assignment, parse_integers, parse_ranks
from howlow.tasks import score_predictions, task_named

Reader = Callable[[Any], None]


@dataclass(frozen=True)
class Readers:
    """The readers of everything that a user's file can hold, in a scratch folder."""

    folder: Path
    model: Path
    data: Path
    run: Path

    def load(self, task: str, name: str, unit: str | None = None) -> Reader:
        """Examples from a data file."""

        def read(content: bytes) -> None:
            path = self._written(name, content)
            asked = TaskSettings(name=task, train=path, test=path, unit=unit)
            task_named(task).load(path, completed(asked, task_named(task).rules), "train")

        return read

    def settings_file(self, content: bytes) -> None:
        """Settings from TOML."""
        load_settings(self._written("s.toml", content), [])

    def assignments(self, texts: list[str]) -> None:
        """Settings from `--set`."""
        load_settings(None, [settings_table(self.model, self.data), *map(parse_assignment, texts)])

    def numbers(self, text: str) -> None:
        """`--ranks` and `--seeds`."""
        for parse in (parse_ranks, lambda text: parse_integers("--seeds", text)):
            with contextlib.suppress(UserError):
                found = parse(text)
                load_settings(None, [settings_table(self.model, self.data), {"grid": {"lora.rank": found}}])

    def predictions(self, content: bytes) -> None:
        """A file of predictions."""
        path = self._written("p.json", content)
        score_predictions("question_answering", str(self.data / "squad-b.json"), path)

    def saved(self, name: str) -> Reader:
        """A file of a saved data set."""

        def read(content: bytes) -> None:
            folder = self._copied(self.data / "saved", "saved")
            (folder / name).write_bytes(content)
            task_named("completion").load(str(folder), TaskSettings(name="completion", train="a", test="b"), "train")

        return read

    def texts(self, files: dict[str, bytes]) -> None:
        """A folder of text."""
        folder = self.folder / "corpus"
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)
        asked = TaskSettings(name="language_modeling", train="a", test="b", unit="paragraph")
        task_named("language_modeling").load(str(folder), asked, "train")

    def model_file(self, name: str, *, chat: bool = False) -> Reader:
        """A file of a model's folder, through everything that is checked before the first trial."""
        from howlow.engine.references import locate
        from howlow.trial.preparation import prepare

        def read(content: bytes) -> None:
            folder = self._copied(self.model, "model")
            (folder / name).write_bytes(content)
            table = settings_table(folder, self.data)
            table["task"] |= {"template": "chat"} if chat else {}
            asked = load_settings(None, [table])
            locate.cache_clear()
            prepare(asked, [(1, ("q_proj",))], self.folder / "prepared")

        return read

    def run_file(self, name: str) -> Reader:
        """A file of a run directory, through the report's rows."""
        from howlow.records import read_records, read_steps, read_timeline
        from howlow.worker.board import may_be_preparing, owner_name, read_board

        def read(content: bytes) -> None:
            folder = self._copied(self.run, "run")
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            read_board(folder)
            owner_name(folder)
            may_be_preparing(folder)
            for record in read_records(folder):
                read_steps(folder / "trials" / record.trial)
                read_timeline(folder / "trials" / record.trial)
            load_settings(str(folder / "sweep.toml"), [])

        return read

    def tables(self, rows: list[dict[str, Any]]) -> None:
        """Rows as they were, whatever the format."""
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), self.folder / "t.parquet")
        Path(self._written("t.json", b"")).write_text(json.dumps(rows, indent=1), encoding="utf-8")
        Path(self._written("t.jsonl", b"")).write_text(_jsonl(rows), encoding="utf-8")
        Path(self._written("t.jsonl.gz", b"")).write_bytes(gzip.compress(_jsonl(rows).encode()))
        asked = TaskSettings(name="completion", train="a", test="b")
        found = []
        for name in ("t.jsonl", "t.json", "t.jsonl.gz", "t.parquet"):
            examples = task_named("completion").load(str(self.folder / name), asked, "train")
            found.append([(one.prompt, one.completion, one.references) for one in examples])
        assert found[0] == [(row["prompt"], row["completion"], (row["completion"].strip(),)) for row in rows], found
        assert found.count(found[0]) == len(found), found

    def _written(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def _copied(self, source: Path, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
