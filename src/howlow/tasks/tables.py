"""Tables: Parquet and Arrow files, folders that `save_to_disk` of `datasets` wrote, and hub data; all become rows."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from howlow import hub
from howlow.errors import UserError, lacks_access
from howlow.places import of_cache, told
from howlow.tasks.examples import Purpose
from howlow.tasks.rows import DataRow, shown_name
from howlow.tasks.text_files import LONGEST_START, compression_of

HUB_FORM = "owner/name[:config[:split]]"
_PROBLEMS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, MemoryError)


def read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[DataRow]:
    """These columns of a Parquet or Arrow file or of a saved data set, and those of the optional ones that it has.

    Raises:
        UserError: it cannot be read as a table, or has no such columns.
    """
    from pyarrow import ArrowException

    try:
        table = _saved(path) if path.is_dir() else _file(path)
        used = [column for column in (*columns, *optional) if column in table.column_names]
        table.select_columns(used).data.validate(full=True)  # damaged offsets would be followed anywhere
        return _rows(table, str(path), shown_name(path.name), columns, optional)
    except (*_PROBLEMS, ArrowException) as error:
        if lacks_access(error):
            raise UserError(told(error)) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(f"{path}: cannot be read as a table: {reason}; copy it again, or write it anew") from None


def _saved(folder: Path) -> Any:
    import datasets  # takes seconds, and most runs read text files

    return datasets.Dataset.load_from_disk(str(folder)).with_format(None)


def _file(path: Path) -> Any:
    import datasets
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        start = file.read(LONGEST_START)
    if compressed := compression_of(start):
        raise UserError(
            f"{path}: is a table compressed by {compressed}; decompress it (Parquet compresses its columns)"
        )
    if start[:4] == b"PAR1" or path.suffix.lower() == ".parquet":
        return datasets.Dataset(parquet.ParquetFile(path).read())
    read = pyarrow.ipc.open_file if start.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    with pyarrow.OSFile(str(path)) as source:
        return datasets.Dataset(read(source).read_all())


def _rows(table: Any, place: str, name: str, columns: Iterable[str], optional: Iterable[str]) -> list[DataRow]:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        has = ", ".join(table.column_names)
        raise UserError(f"{place}: has no column {missing[0]!r}; its columns are: {has}")
    taken = [*columns, *(column for column in optional if column in table.column_names)]
    rows = enumerate(table.select_columns(taken), start=1)
    return [DataRow(f"{place} row {number}", f"{name}:{number}", row) for number, row in rows]


# -- the hub --------------------------------------------------------------------------------------------------------


def read_hub(
    source: str,
    parts: tuple[str, str | None, str | None],
    purpose: Purpose,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> list[DataRow]:
    """These columns of hub data, and those of the optional ones that it has.

    Without a split in `parts` (name, config, split) the training data are `train`, and the test data `test` or else
    `validation`.

    Raises:
        UserError: it cannot be loaded, or has no such split or columns.
    """
    split, table = _load_hub(source, *parts, purpose)
    return _rows(table, f"hub data {source} {split}", split, columns, optional)


def _load_hub(source: str, name: str, config: str | None, split: str | None, purpose: Purpose) -> tuple[str, Any]:
    """The split's name and its table."""
    if not hub.is_reachable() and not os.environ.get("HF_HUB_OFFLINE"):
        raise UserError(
            f"task.{purpose} {source}: no such file, and the hub cannot be reached; give a local file (or set "
            "HF_HUB_OFFLINE=1 if the data is in the hub's cache here)"
        )
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        split = split or default_split(datasets.get_dataset_split_names(name, config), purpose, f"hub data {source}")
        return split, datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, DatasetsError) as error:
        if blamed := of_cache(error, "HF_DATASETS_CACHE"):
            raise UserError(f"task.{purpose} {source}: {blamed}") from None
        reason = f"{type(error).__name__}: {error}"[:300]
        raise UserError(
            f"task.{purpose} {source}: no such file, and it cannot be loaded as hub data: {reason}; "
            "give a local file instead"
        ) from None


def default_split(splits: list[str], purpose: Purpose, place: str, form: str = HUB_FORM) -> str:
    """The split that serves a purpose where none is named.

    Raises:
        UserError: there is none of that name; `form` says how one is named.
    """
    wanted = ("train",) if purpose == "train" else ("test", "validation")
    for split in wanted:
        if split in splits:
            return split
    raise UserError(f"{place}: has no split {' or '.join(wanted)}; name one of {', '.join(splits)} as {form}")
