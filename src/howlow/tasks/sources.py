"""Where data comes from: text files, JSON, JSONL, CSV, folders, and hub data as `owner/name[:config[:split]]`.

Whatever is wrong with a user's file is found here and reported in one line: the file, the place in it and what was
expected. Files are UTF-8, with or without a byte order mark.

Hub data is loaded by `datasets.load_dataset`, which runs no code of the data set. A source that exists on the disk is
never looked up on the hub. Nor is one that is written like a path: a mistyped file name must not become a download.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow import hub
from howlow.errors import UserError
from howlow.tasks.examples import Purpose

HUB_FORM = "owner/name[:config[:split]]"
_HUB_DATA = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:]*)(:(?P<split>[^:]+))?)?")
_FILE_SUFFIX = re.compile(
    r"\.(jsonl?|ndjson|csv|tsv|txt|text|md|raw|tokens|parquet|arrow|gz|bz2|xz|zst|zip|tar)$", re.IGNORECASE
)


@dataclass(frozen=True)
class DataRow:
    """One line of JSONL, one row of CSV or one row of hub data."""

    place: str
    """for messages: `FILE line 3`"""
    name: str
    """for ids: `FILENAME:3`"""
    values: Mapping[str, Any]

    def text(self, field: str) -> str:
        """The string in a field.

        Raises:
            UserError: there is no such field, or no string in it.
        """
        if field not in self.values:
            fields = ", ".join(map(str, self.values)) or "nothing"
            raise UserError(f"{self.place}: {field!r} is missing; it has: {fields}")
        return whole_text(self.values[field], f"{self.place}: {field!r}")


def kind_of(value: Any) -> str:
    """A JSON value's type in words, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def whole_text(value: Any, place: str) -> str:
    r"""The value as a string that can be written again; one with half of a surrogate pair (`"\ud83d"`) cannot.

    Raises:
        UserError: it is no such string; `place` says where it is.
    """
    if not isinstance(value, str):
        raise UserError(f"{place} must be a string, not {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place} holds half of a surrogate pair at character {error.start}; write it whole") from None
    return value


# -- files ----------------------------------------------------------------------------------------------------------


def is_local(source: str) -> bool:
    """Whether a source is a file or folder, existing or missing, rather than hub data."""
    written_as_path = source.startswith(("/", ".", "~", "\\")) or _FILE_SUFFIX.search(source)
    if written_as_path or _HUB_DATA.fullmatch(source) is None:
        return True
    try:
        return Path(source).exists()
    except OSError:  # it exists, in a folder that this user may not read
        return True


def is_folder(path: Path) -> bool:
    """Whether it is a folder that can be read; for anything else `read_text` says what is wrong."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: str | Path) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        UserError: it is missing, a folder, empty, not readable or no UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        hint = "" if _FILE_SUFFIX.search(str(path)) else f" (hub data is written {HUB_FORM})"
        raise UserError(f"{path}: no such file; give an existing one{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a file is expected") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the file's name
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not text.strip():
        raise UserError(f"{path}: is empty; give a file with data in it")
    return text


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice would silently lose its first value."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return table


def _parse_json(text: str, place: str, line_offset: int = 0) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno + line_offset} column {error.colno}"
        reason = "the text ends in the middle" if error.pos >= len(text.rstrip()) else error.msg
    except RecursionError:
        where, reason = f"line {1 + line_offset}", "it is nested too deeply"
    except ValueError as error:
        where, reason = f"line {1 + line_offset}" if line_offset else "the document", str(error)
    raise UserError(f"{place}: not valid JSON at {where}: {reason}; complete JSON is expected") from None


def read_json(path: str | Path) -> Any:
    """The JSON document in a file.

    Raises:
        UserError: no file, or no JSON; names line and column.
    """
    return _parse_json(read_text(path), str(path))


def read_jsonl(path: str | Path) -> list[DataRow]:
    """The objects of a JSONL file, one a line; blank lines are skipped.

    Raises:
        UserError: no file, or a line without a JSON object; names the line.
    """
    rows = []
    # Not `splitlines`: JSON strings may hold the separators U+2028 and U+0085 as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        value = _parse_json(line, f"{path}", line_offset=number - 1)
        if not isinstance(value, dict):
            raise UserError(f"{path} line {number}: one JSON object a line is expected, not {kind_of(value)}")
        rows.append(DataRow(f"{path} line {number}", f"{Path(path).name}:{number}", value))
    return rows


def read_csv(path: str | Path, columns: tuple[str, ...]) -> list[DataRow]:
    """The rows of a CSV file with a header line; a row's number is the line that it begins on.

    Raises:
        UserError: no file, no such columns, or a row that does not fit the header; names the line.
    """
    text = read_text(path)
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} line {number}: holds a NUL; CSV text is expected")
    csv.field_size_limit(2**31 - 1)  # the module's own limit of 128 KiB is shorter than some articles
    lines = _csv_lines(path, text)
    _, header = next(lines)
    missing = [column for column in columns if header.count(column) != 1]
    if missing:
        raise UserError(f"{path}: exactly one column {missing[0]!r} is expected; its columns are: {', '.join(header)}")
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            has = f"{len(cells)} columns, the header has {len(header)}"
            raise UserError(f"{path} line {number}: has {has}; check the commas and quotes of this row")
        rows.append(
            DataRow(f"{path} line {number}", f"{Path(path).name}:{number}", dict(zip(header, cells, strict=True)))
        )
    return rows


def _csv_lines(path: str | Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path} line {number}: not valid CSV: {error}; check the quotes of this row") from None
        if cells:
            yield number, cells


def text_files(folder: Path) -> list[Path]:
    """All `*.txt` below a folder, sorted.

    Raises:
        UserError: there is none.
    """
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not files:
        raise UserError(f"{folder}: holds no .txt file; give a folder with text files, or one file")
    return files


# -- the hub --------------------------------------------------------------------------------------------------------


def read_hub(source: str, purpose: Purpose, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[DataRow]:
    """These columns of hub data, and those of the optional ones that it has.

    Without a split in `source` the training data are `train`, and the test data `test` or else `validation`.

    Raises:
        UserError: it cannot be loaded, or has no such split or columns.
    """
    parts = _HUB_DATA.fullmatch(source)
    assert parts is not None, "is_local() comes first"
    name, config = parts["name"], parts["config"] or None
    split, table = _load_hub(source, name, config, parts["split"], purpose)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        has = ", ".join(table.column_names)
        raise UserError(f"hub data {source}: has no column {missing[0]!r}; its columns are: {has}")
    taken = [*columns, *(column for column in optional if column in table.column_names)]
    rows = enumerate(table.select_columns(taken), start=1)
    return [DataRow(f"hub data {source} {split} row {number}", f"{split}:{number}", row) for number, row in rows]


def _load_hub(source: str, name: str, config: str | None, split: str | None, purpose: Purpose) -> tuple[str, Any]:
    """The split's name and its table."""
    if not hub.is_reachable() and not os.environ.get("HF_HUB_OFFLINE"):
        raise UserError(
            f"task.{purpose} {source}: no such file, and the hub cannot be reached; give a local file (or set "
            "HF_HUB_OFFLINE=1 if the data is in the hub's cache here)"
        )
    import datasets  # takes seconds, and most runs read local files
    from datasets.exceptions import DatasetsError

    try:
        split = split or _default_split(datasets.get_dataset_split_names(name, config), purpose, source)
        return split, datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, DatasetsError) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise UserError(
            f"task.{purpose} {source}: no such file, and it cannot be loaded as hub data: {reason}; "
            "give a local file instead"
        ) from None


def _default_split(splits: list[str], purpose: Purpose, source: str) -> str:
    wanted = ("train",) if purpose == "train" else ("test", "validation")
    for split in wanted:
        if split in splits:
            return split
    raise UserError(
        f"hub data {source}: has no split {' or '.join(wanted)}; name one of {', '.join(splits)} as {HUB_FORM}"
    )
