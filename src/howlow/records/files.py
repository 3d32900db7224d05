"""A trial's files: written whole or line by line, cut back, read and checked."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from howlow.errors import UserError, naming
from howlow.records.schema import SCHEMA_VERSION, Reading, Record, Step
from howlow.records.schema_1 import as_schema_2

T = TypeVar("T", bound=BaseModel)


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, flush to the disk and rename: the file is whole or it is not there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(folder: Path) -> None:
    """Remove what a killed writer left under temporary names; only the holder of the folder's lock may call this."""
    for entry in folder.glob(".*.tmp"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_record(folder: Path, record: Record) -> None:
    """Write `record.json` into the trial's folder; from then on the trial is done."""
    write_atomically(folder / "record.json", record.model_dump_json(indent=1) + "\n")


class LineWriter:
    """Appends whole lines to a JSONL file, each flushed, so that a killed process leaves at most a torn last line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: str) -> None:
        """Write one line and hand it to the system."""
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a JSONL file back to its leading whole lines that satisfy `keep`; what stays keeps its bytes."""
    if not path.exists():
        return
    kept = 0
    for (_, raw), line in zip(_whole_lines(path), read_lines(path), strict=True):
        if not keep(line):
            break
        kept += len(raw) + 1
    if kept < path.stat().st_size:
        write_atomically(path, path.read_bytes()[:kept].decode("utf-8"))


def record_file(folder: Path) -> Path:
    """Where a trial's folder holds its record."""
    return folder / "record.json"


def read_record_beside(adapter: Path) -> Record | None:
    """The record of the trial that left an adapter, where its folder stands in the trial's.

    Raises:
        UserError: as `read_record`.
    """
    folder = adapter.resolve()
    return read_record(folder.parent) if folder.name == "adapter" else None


def has_record(run_directory: Path, trial: str) -> bool:
    """Whether a trial has ended."""
    return (run_directory / "trials" / trial / "record.json").exists()


def lists_record(run_directory: Path, trial: str) -> bool:
    """The same by the listing of the trial's folder.

    A network file system remembers for a while that a file was absent, but asks its server when a folder is opened.
    """
    try:
        with os.scandir(run_directory / "trials" / trial) as entries:
            return any(entry.name == "record.json" for entry in entries)
    except FileNotFoundError:
        return False


def read_record(folder: Path) -> Record | None:
    """The trial's record, or None where there is none yet.

    Raises:
        UserError: the file is no record, or a record of an unknown schema version.
    """
    path = folder / "record.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UserError(f"{path}: no record; remove the file to run this trial again") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read as a record ({error.strerror}); make it readable, or remove it"
        ) from None
    try:
        document = json.loads(text)
        version = document["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: no record; remove the file to run this trial again") from None
    if version not in (1, SCHEMA_VERSION):
        raise UserError(
            f"{path}: schema version {version}, this howlow reads versions 1 and {SCHEMA_VERSION}; "
            "use the howlow that wrote it, or another folder"
        )
    try:
        return Record.model_validate_json(text if version == SCHEMA_VERSION else json.dumps(as_schema_2(document)))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise _damaged_record(path, f" at {where}: {problem['msg']}") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _damaged_record(path, "") from None


def _damaged_record(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: damaged{problem}; remove the file to run it again")


def read_records(folder: Path) -> list[Record]:
    """All records of a run directory, in the order of their names.

    Raises:
        UserError: the folder is no run directory, or a record cannot be read.
    """
    trials = folder / "trials"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a sweep")
    if not trials.is_dir():
        raise UserError(f"{folder}: not a run directory (it has no trials/ folder); give the --out folder of a sweep")
    found = [(entry, read_record(entry)) for entry in sorted(trials.iterdir()) if entry.is_dir()]
    for entry, record in found:
        if record is not None and record.trial != entry.name:
            raise UserError(
                f"{entry} holds the record of {record.trial}, whose folder is {trials / record.trial}; a trial has one "
                "folder, of its own name: remove the copy, or give it its name back"
            )
    return [record for _, record in found if record is not None]


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a JSONL file; a last line without its end (a killed writer) is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    yield from enumerate(data.split(b"\n")[:-1], 1)


def _damaged(path: Path, number: int, problem: str) -> UserError:
    remedy = f"remove {path.parent} to run this trial again"
    return UserError(f"{path}, line {number}: damaged: {problem}; {remedy}")


def read_lines(path: Path, fields: Mapping[str, type | UnionType] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file.

    Raises:
        UserError: a line is no JSON object, or one of its `fields` is not of its type; names the file and the line.
    """
    for number, line in _whole_lines(path):
        try:
            found = _parsed(line)
        except (ValueError, RecursionError):
            raise _damaged(path, number, "no JSON") from None
        if not isinstance(found, dict):
            raise _damaged(path, number, "no JSON object")
        for name, kind in fields.items():
            if not isinstance(found.get(name), kind):
                raise _damaged(path, number, f"{name} is {found.get(name)!r}")
        yield found


def _parsed(line: bytes) -> Any:
    """What `json.loads` gives; a line that begins with its value and holds nothing else takes less time."""
    try:
        text = line.decode("utf-8")
        found, end = _DECODER.raw_decode(text)
    except ValueError:
        return json.loads(line)
    return found if end == len(text) else json.loads(line)


_DECODER = json.JSONDecoder()


def _read_models(path: Path, model: type[T]) -> list[T]:
    found = []
    for number, line in _whole_lines(path):
        try:
            found.append(model.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise _damaged(path, number, f"{where}: {problem['msg']}" if where else "no JSON object") from None
    return found


def read_steps(folder: Path) -> list[Step]:
    """The raw steps of a trial.

    Raises:
        UserError: a line is damaged; names the file and the line.
    """
    return _read_models(folder / "steps.jsonl", Step)


def read_timeline(folder: Path) -> list[Reading]:
    """The readings of a trial; a damaged line is refused as in `read_steps`."""
    return _read_models(folder / "timeline.jsonl", Reading)
