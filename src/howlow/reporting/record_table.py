"""Every record's numbers for the page's sortable table, which `browser/records.js` draws."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from howlow.analysis.column import Column, Unit
from howlow.analysis.columns import KIND, RANK, SEED, STATUS, TRAIN_BATCH_SIZE, TRIAL, tabulated
from howlow.analysis.rows import Results
from howlow.reporting import formatting
from howlow.reporting.summary import WarningNote

_STAGES = {"train": "training ", "inference": "inference "}
_UNITS: Mapping[Unit, str] = {"per_second": "per second", "nats": "nats"}
"""The units that stand in the heading, because the cells do not name them."""


def records_document(results: Results, warnings: Sequence[WarningNote]) -> dict[str, Any]:
    """The table: columns that any record has, groups of them to choose from, rows, and the warnings of each row."""
    columns = [column for column in results.columns if any(row[column.name] is not None for row in results.rows)]
    places = {column.name: place for place, column in enumerate(columns)}
    own = [note for note in warnings if not note.is_general]
    return {
        "columns": [_column(column) for column in columns],
        "groups": [{"name": name, "columns": [places[one.name] for one in own]} for name, own in _groups(columns)],
        "rows": [[_value(row[column.name]) for column in columns] for row in results.rows],
        "notes": [[note.number for note in own if record.trial in note.trials] for record in results.records],
        "touched": {note.number: [places[name] for name in note.columns if name in places] for note in own},
    }


def _column(column: Column) -> dict[str, str | None]:
    return {
        "name": column.name,
        "label": _STAGES.get(column.stage or "", "") + column.label,
        "unit": column.unit,
        "shownUnit": _UNITS.get(column.unit),
        "meaning": column.meaning,
        "better": column.better,
    }


def _groups(columns: Sequence[Column]) -> Iterator[tuple[str, list[Column]]]:
    """What can be chosen to be shown; each begins with the trial's name."""
    known = {column.name for column in tabulated() if column.table is not None and column.table.in_terminal}
    known |= {column.name for column in (KIND, RANK, SEED, STATUS, TRAIN_BATCH_SIZE)}
    chosen = {
        "overview": [column for column in columns if column.name in known],
        "fine-tuning": [column for column in columns if column.stage == "train"],
        "inference": [column for column in columns if column.stage == "inference"],
        "quality": [column for column in columns if column.is_quality],
        "trial and meters": [column for column in columns if column.stage is None and not column.is_quality],
        "all": list(columns),
    }
    for name, own in chosen.items():
        yield name, [TRIAL, *(column for column in own if column is not TRIAL)]


def _value(value: Any) -> float | str | None:
    """Numbers to six digits: results.csv has all of them."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    is_plain = value is None or (isinstance(value, int | str) and not isinstance(value, bool))
    return value if is_plain else formatting.plain(value)
