"""Text files: decompressed, decoded, and parsed as JSON, JSONL or CSV.

Files are UTF-8, with or without a byte order mark, and may be compressed by gzip, bzip2 or xz. The content says whether
they are, not the name. What is wrong with a file is one line: the file, the place in it and what was expected.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from howlow.errors import UserError, reason
from howlow.tasks.rows import DataRow, kind_of, shown_name

COMPRESSED = (".gz", ".bz2", ".xz")
LONGEST_START = 10
"""Bytes of a file's beginning that say how it is compressed."""
_DECOMPRESSORS: Mapping[str, tuple[re.Pattern[bytes], Callable[[bytes], bytes]]] = {
    "gzip": (re.compile(rb"\x1f\x8b"), gzip.decompress),
    "bzip2": (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.decompress),  # a text may begin with BZh
    "xz": (re.compile(rb"\xfd7zXZ\0"), lzma.decompress),
}
_UTF_16, _UTF_32 = "UTF-16; save it as UTF-8", "UTF-32; save it as UTF-8"
_OTHER_KINDS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive (or an Office file); unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it, or compress it by gzip",
    b"PAR1": "Parquet; one data file of this kind is read, not compressed again and not among text files",
    b"ARROW1": "Arrow; one data file of this kind is read, not compressed again and not among text files",
    b"SQLite format 3": "a database; export its rows as JSONL or CSV",
    b"%PDF": "a PDF; save its text",
    b"\xff\xfe\0\0": _UTF_32,  # before UTF-16, whose mark it begins with
    b"\0\0\xfe\xff": _UTF_32,
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
}
_TAR = slice(257, 262), b"ustar"


def base_suffix(path: str | Path) -> str:
    """The ending of a file's name in lower case, without that of a compression: `.jsonl` of `a.JSONL.gz`."""
    name = Path(path)
    return Path(name.stem if name.suffix.lower() in COMPRESSED else name.name).suffix.lower()


def read_bytes(path: str | Path, hint: str = "") -> bytes:
    """The bytes of a regular file.

    Args:
        hint: what a message about a missing file adds.

    Raises:
        UserError: it is missing, a folder, a pipe or device, or not readable.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise UserError(f"{path}: is a pipe or a device, and data is read more than once; save it as a file")
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give an existing one{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a file is expected (or one that datasets' save_to_disk wrote)") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the file's name
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_text(path: str | Path, hint: str = "") -> str:
    """The text of a file, decompressed, its line ends as they are.

    Raises:
        UserError: it is missing, a folder, empty, not readable or no UTF-8.
    """
    data = _decompressed(path, read_bytes(path, hint))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = _other_kind(data)
        what = f"not text but {kind}" if kind else f"not UTF-8 at byte {error.start}; save it as UTF-8"
        raise UserError(f"{path}: {what}") from None
    if "\0" in text and (kind := _other_kind(data)):
        raise UserError(f"{path}: not text but {kind}")
    if not text.strip():
        raise UserError(f"{path}: is empty; give a file with data in it")
    return text


def compression_of(start: bytes) -> str | None:
    """How a file that begins so is compressed; None where it is not."""
    return next((name for name, (beginning, _) in _DECOMPRESSORS.items() if beginning.match(start)), None)


def _decompressed(path: str | Path, data: bytes) -> bytes:
    name = compression_of(data)
    if name is None:
        return data
    try:
        found = _DECOMPRESSORS[name][1](data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        problem = str(error) or "it is damaged"
        raise UserError(f"{path}: cannot be decompressed as {name}: {problem}; copy it again") from None
    if again := compression_of(found):
        raise UserError(f"{path}: is compressed twice ({again} within {name}); decompress it once")
    return found


def _other_kind(data: bytes) -> str | None:
    """What a file is that is no UTF-8 text, with what to do; None where nothing shows it."""
    place, mark = _TAR
    if data[place] == mark:
        return "a tar archive; unpack it"
    started = (kind for start, kind in _OTHER_KINDS.items() if data.startswith(start))
    return next(started, None) or _wide(data[:256])


def _wide(start: bytes) -> str | None:
    """UTF-16 and UTF-32 without a byte order mark: of Latin letters every second byte is 0, or three of four."""
    zero = tuple(len(start) > place and not any(start[place::4]) for place in range(4))
    if sum(zero) == 3:
        return _UTF_32
    return _UTF_16 if zero in ((True, False, True, False), (False, True, False, True)) else None


# -- JSON -----------------------------------------------------------------------------------------------------------


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice would silently lose its first value."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object; give it once")
    return table


_ENDS = "the text ends in the middle"
_SEVERAL_LINES = (
    "it goes on over several lines, but JSONL has one whole object a line (one array of objects is read from a file "
    "whose name ends in .json)"
)


def _parse_json(text: str, path: str | Path, line: int | None = None, at_end: str = _ENDS) -> Any:
    """The value.

    line: the one that the text is in its file; None where it is the whole file.
    at_end: the reason that is given where the text ends too early.
    """
    where = "" if line is None else f" at line {line}"
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        where = f" at line {error.lineno + (line or 1) - 1} column {error.colno}"
        problem = at_end if error.pos >= len(text.rstrip()) else error.msg
        if error.msg == "Extra data" and error.lineno > 1:
            problem += " (a file with one object a line is JSONL, and its name ends in .jsonl)"
        problem += "; complete JSON is expected"
    except RecursionError:
        problem = "it is nested too deeply; give data with a few levels"
    except ValueError as error:  # a key given twice, or a number without end
        problem = reason(error)
    raise UserError(f"{path}: not valid JSON{where}: {problem}") from None


def read_json(path: str | Path, hint: str = "") -> Any:
    """The JSON document in a file.

    Raises:
        UserError: no file, or no JSON; names line and column.
    """
    return _parse_json(read_text(path, hint), path)


def read_jsonl(path: str | Path, hint: str = "") -> list[DataRow]:
    """The objects of a JSONL file, one a line; blank lines are skipped. A `.json` file may hold one array of objects.

    Raises:
        UserError: no file, or a line without a JSON object; names the line.
    """
    text = read_text(path, hint)
    if base_suffix(path) == ".json" and text.lstrip().startswith("["):
        return _objects_of_array(path, text)
    # Not `splitlines`: JSON strings may hold the separators U+2028 and U+0085 as they are.
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        goes_on = any(following.strip() for following in lines[number:])
        value = _parse_json(line, path, number, _SEVERAL_LINES if goes_on else _ENDS)
        if not isinstance(value, dict):
            raise UserError(f"{path} line {number}: one JSON object a line is expected, not {kind_of(value)}")
        rows.append(_row(path, "line", number, value))
    return rows


def _objects_of_array(path: str | Path, text: str) -> list[DataRow]:
    values = _parse_json(text, path)
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UserError(f"{path} entry {number}: an object is expected, not {kind_of(value)}")
    return [_row(path, "entry", number, value) for number, value in enumerate(values, start=1)]


def _row(path: str | Path, unit: str, number: int, values: Mapping[str, Any]) -> DataRow:
    return DataRow(f"{path} {unit} {number}", f"{shown_name(Path(path).name)}:{number}", values)


# -- CSV ------------------------------------------------------------------------------------------------------------


def read_csv(path: str | Path, columns: tuple[str, ...]) -> list[DataRow]:
    """The rows of a CSV file with a header line (`.tsv`: with tabs); a row's number is the line that it begins on.

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
        rows.append(_row(path, "line", number, dict(zip(header, cells, strict=True))))
    return rows


def _csv_lines(path: str | Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of its first line."""
    delimiter = "\t" if base_suffix(path) == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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
