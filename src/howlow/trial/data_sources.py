"""What the examples were read from, for the record, and which files of a folder were not read."""

from collections.abc import Sequence

from howlow.records import DataRecord, DataSource
from howlow.tasks import Purpose, files_of

_LISTED_FILES = 1000


def source_read(side: Purpose, source: str) -> DataSource:
    """What one side was read from."""
    found = files_of(source, side)
    return DataSource(
        side=side,
        source=source,
        format=found.format,
        files_read=len(found.files),
        files=found.names[:_LISTED_FILES],
        files_left_out=len(found.left_out),
        left_out=found.left_out[:_LISTED_FILES],
    )


def left_out_of(data: DataRecord) -> list[str]:
    """What a person may take for a part of the text: the files that were left out and are not hidden."""
    return list(
        dict.fromkeys(
            f"{one.source}/{name}"
            for one in data.sources
            for name in one.left_out
            if not any(part.startswith(".") for part in name.split("/"))
        )
    )


def told_of(left_out: Sequence[str]) -> str:
    """The warning about them."""
    names = ", ".join(left_out[:3])
    return f"{len(left_out)} files or linked folders are not read; a folder's text is in its .txt files: {names}"
