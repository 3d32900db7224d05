"""Where data comes from: text files, JSON, JSONL, CSV, Parquet, Arrow, folders, and `owner/name[:config[:split]]`.

A source that exists on the disk is never looked up on the hub. Nor is one that is written like a path: a mistyped file
name must not become a download.

`files_of` says which files a source is read from, and which of a folder's files are left out. The readers read exactly
those, and the record lists them. Hidden files and folders (`.ipynb_checkpoints`) are left out.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from howlow.errors import UserError
from howlow.tasks.examples import Purpose
from howlow.tasks.rows import DataRow, shown_name
from howlow.tasks.tables import HUB_FORM, default_split, read_hub, read_table
from howlow.tasks.text_files import base_suffix, read_csv, read_jsonl, read_text

Format = Literal["text", "json", "jsonl", "csv", "table", "saved data set", "folder", "hub data"]
_HUB_DATA = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:]*)(:(?P<split>[^:]+))?)?")
_FILE_SUFFIX = re.compile(
    r"\.(jsonl?|ndjson|csv|tsv|txt|text|md|raw|tokens|parquet|arrow|feather|gz|bz2|xz|zst|zip|tar)$", re.IGNORECASE
)
_BY_SUFFIX: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "table",
    ".arrow": "table",
    ".feather": "table",
}
_TABLE_STARTS = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")  # the last: Arrow's stream format, as `datasets` writes it


@dataclass(frozen=True)
class DataFiles:
    """What a source is read from."""

    format: Format
    place: Path
    """the file or folder; of a saved data set with several splits, the folder of the split"""
    files: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    """what a folder holds and is not read, by its path in the folder; a folder's ends in a slash"""

    @property
    def names(self) -> tuple[str, ...]:
        """The files by their path in the folder, or the one file's name."""
        root = self.place.parent if self.files == (self.place,) else self.place
        return tuple(shown_name(file.relative_to(root).as_posix()) for file in self.files)


def is_local(source: str) -> bool:
    """Whether a source is a file or folder, existing or missing, rather than hub data."""
    written_as_path = source.startswith(("/", ".", "~", "\\")) or _FILE_SUFFIX.search(source)
    if written_as_path or _HUB_DATA.fullmatch(source) is None:
        return True
    try:
        return Path(source).exists()
    except OSError:  # it exists, in a folder that this user may not read
        return True


def files_of(source: str, purpose: Purpose) -> DataFiles:
    """The format of a source and its files. Where a source is missing or not readable, its reader says so.

    Raises:
        UserError: a folder that cannot be listed, or a saved data set without a split for the purpose.
    """
    path = Path(source)
    if not is_local(source):
        return DataFiles("hub data", path)
    if not _is_folder(path):
        return DataFiles(_format_of_file(path), path, (path,))
    saved = _saved_split(path, purpose)
    if saved is not None:
        return DataFiles("saved data set", saved, _files_below(saved)[0])
    files, left_out = _files_below(path)
    texts = tuple(file for file in files if base_suffix(file) == ".txt")
    others = [shown_name(file.relative_to(path).as_posix()) for file in files if file not in set(texts)]
    return DataFiles("folder", path, texts, tuple(sorted([*others, *left_out])))


def read_rows(source: str, purpose: Purpose, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[DataRow]:
    """The rows of a source: JSONL unless it is something else. Tables are read in these columns only.

    Raises:
        UserError: it cannot be read, or what it holds is not what is expected; names the row.
    """
    found = files_of(source, purpose)
    if found.format == "hub data":
        parts = _HUB_DATA.fullmatch(source)
        assert parts is not None, "is_local() comes first"
        return read_hub(source, (parts["name"], parts["config"] or None, parts["split"]), purpose, columns, optional)
    if found.format in ("table", "saved data set"):
        return read_table(found.place, columns, optional)
    if found.format == "csv":
        return read_csv(source, columns)
    return read_jsonl(source, missing_hint(source))


def read_texts(found: DataFiles) -> list[tuple[str, str]]:
    """Name and text of each file of a folder, or of the one text file; line ends become those of Unix, as in `open`.

    Raises:
        UserError: there is no text file, or one that is no text.
    """
    if not found.files:
        holds = f" (it holds {', '.join(found.left_out[:3])})" if found.left_out else ""
        raise UserError(f"{found.place}: holds no .txt file{holds}; give a folder with text files, or one file")
    pairs = zip(found.names, found.files, strict=True)
    return [(name, _unix_text(file, missing_hint(str(file)))) for name, file in pairs]


def missing_hint(source: str) -> str:
    """What a message about a missing file adds where hub data may have been meant."""
    return "" if _FILE_SUFFIX.search(source) else f" (hub data is written {HUB_FORM})"


def _unix_text(file: Path, hint: str) -> str:
    text = read_text(file, hint)
    if "\0" in text:
        position = len(text[: text.index("\0")].encode())
        raise UserError(f"{file}: holds a NUL at byte {position}, so it is not text; give plain text as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _format_of_file(path: Path) -> Format:
    try:
        start = b""
        if path.is_file():  # opening a pipe would wait for a writer
            with path.open("rb") as file:
                start = file.read(6)
    except (OSError, ValueError):
        start = b""
    if start.startswith(_TABLE_STARTS):
        return "table"
    by_name = _BY_SUFFIX.get(base_suffix(path), "text")
    return "text" if by_name == "table" and not start else by_name


def _saved_split(folder: Path, purpose: Purpose) -> Path | None:
    """The folder of a data set that `save_to_disk` wrote; None where it wrote none."""
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return folder
    splits = folder / "dataset_dict.json"
    if not splits.is_file():
        return None
    try:
        names = list(map(str, json.loads(splits.read_text(encoding="utf-8"))["splits"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{splits}: cannot be read as a saved data set's list of splits; save it again") from None
    return folder / default_split(names, purpose, str(folder), f"{folder}/SPLIT")


def _files_below(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The files that are not hidden, sorted, and what is left out: hidden ones, and folders that are links."""

    def refuse(error: OSError) -> None:
        problem = f"cannot be read: {error.strerror}; give the permission, or move it away"
        raise UserError(f"{error.filename}: {problem}") from None

    found, left_out = list[Path](), list[str]()
    for root, folders, files in os.walk(folder, onerror=refuse):
        place = Path(root)
        skipped = [name for name in folders if name.startswith(".") or (place / name).is_symlink()]
        folders[:] = [name for name in folders if name not in skipped]
        hidden = [name for name in files if name.startswith(".")]
        found += [place / name for name in files if name not in hidden]
        left_out += [shown_name((place / name).relative_to(folder).as_posix()) + "/" for name in skipped]
        left_out += [shown_name((place / name).relative_to(folder).as_posix()) for name in hidden]
    return tuple(sorted(found)), left_out
