"""Tables for a paper: one row a rank, each figure in one unit a column, with its error and the marks of its warnings.

`latex` and `markdown` write them. The ± of a figure reaches the farther end of its interval (`howlow.analysis.ratios`),
and both are rounded to two digits of the error. Of a wide interval both ends are
written instead. Figures without a known error stand alone.
"""

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from howlow.analysis.column import TableSection
from howlow.analysis.comparison import Comparison, Group
from howlow.reporting import formatting
from howlow.reporting.evidence import averaged_over, level
from howlow.reporting.summary import Heading, Summary, TableRow, WarningNote, summarize

_MOST_COLUMNS = 7
_MOST_DECIMALS = 6
_MOST_TRIALS = 4
_WIDE = 0.25
"""Of a wider interval, relative to its figure, both ends are written: it is far from symmetric."""
_TITLES: Mapping[TableSection, str] = {
    "quality": "Quality",
    "adapter": "Size of the adapter",
    "fine-tuning": "Fine-tuning",
    "inference": "Inference",
}
_WINDOW = (
    "Throughput, time, energy and power are of the measured window, from the first measured step's start to the last "
    "one's end, without burn-in steps and pauses."
)


@dataclass(frozen=True)
class ColumnHead:
    """A column's head: what it is, and its unit, empty where it has none or the label holds it."""

    label: str
    unit: str = ""


@dataclass(frozen=True)
class PaperCell:
    """A figure as text, its error, and the marks of the warnings that touch it."""

    value: str
    error: str | None = None
    marks: str = ""


@dataclass(frozen=True)
class PaperTable:
    """One table. name: for references to it."""

    name: str
    caption: str
    heads: tuple[ColumnHead, ...]
    rows: tuple[tuple[PaperCell, ...], ...]
    notes: tuple[str, ...]


def paper_tables(comparison: Comparison) -> list[PaperTable]:
    """The tables of a report: quality, the adapter, fine-tuning and inference; wide ones in several parts."""
    summary = summarize(comparison, for_page=True)
    marks = _marks(summary.warnings)
    tables = []
    for section, headings in groupby(enumerate(summary.headings), key=lambda pair: pair[1].section):
        columns = list(headings)
        parts = [columns[start : start + _MOST_COLUMNS] for start in range(0, len(columns), _MOST_COLUMNS)]
        for number, part in enumerate(parts, 1):
            name = section if len(parts) == 1 else f"{section}-{number}"
            caption = _caption(comparison, section, f" (part {number} of {len(parts)})" if len(parts) > 1 else "")
            tables.append(_table(comparison, summary, part, marks, name, caption))
    return tables


def _table(
    comparison: Comparison,
    summary: Summary,
    columns: Sequence[tuple[int, Heading]],
    marks: Mapping[int, str],
    name: str,
    caption: str,
) -> PaperTable:
    first = [
        ColumnHead("rank"),
        *map(ColumnHead, summary.axes),
        *([ColumnHead("seeds")] if summary.has_seeds else []),
        ColumnHead("status"),
    ]
    figures = [_Figures.of(comparison, heading) for _, heading in columns]
    rows = []
    for group, row in zip(comparison.groups, summary.rows, strict=True):
        shown = [_marked(row.cells[index].notes, marks) for index, _ in columns]
        cells = [one.cell(group, own) for one, own in zip(figures, shown, strict=True)]
        rows.append((*_first_cells(summary, row, marks), *cells))
    used = {mark for cells in rows for cell in cells for mark in cell.marks.split(",") if mark}
    notes = (*summary.apart, *_warning_lines(summary.warnings, marks, used))
    return PaperTable(name, caption, (*first, *(one.head for one in figures)), tuple(rows), notes)


def _first_cells(summary: Summary, row: TableRow, marks: Mapping[int, str]) -> Iterator[PaperCell]:
    yield PaperCell(row.label, marks=_marked(row.notes, marks))
    yield from map(PaperCell, row.axes)
    if summary.has_seeds:
        yield PaperCell(str(row.seeds))
    yield PaperCell(row.status.replace("_", " "))


# -- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figures:
    """A column in the unit of its largest value."""

    heading: Heading
    head: ColumnHead
    factor: float

    @classmethod
    def of(cls, comparison: Comparison, heading: Heading) -> "_Figures":
        means = [group.mean(heading.column) for group in comparison.groups]
        largest = max((mean for mean in means if mean is not None), key=abs, default=0.0)
        unit, factor = formatting.unit_and_factor(largest, heading.column.unit)
        return cls(heading, ColumnHead(heading.label, unit), factor)

    def cell(self, group: Group, marks: str) -> PaperCell:
        """The mean over a group's trials with its error."""
        column = self.heading.column
        mean = group.mean(column)
        if mean is None:
            return PaperCell(formatting.ABSENT, marks=marks)
        ends = group.interval(column)
        error = 0.0 if ends.low is None or ends.high is None else max(ends.high - mean, mean - ends.low)
        if column.unit == "count" and not error:
            return PaperCell(f"{mean:,.0f}", marks=marks)
        if ends.low is not None and ends.high is not None and error > _WIDE * abs(mean):
            low, high = (formatting.significant(end * self.factor) for end in (ends.low, ends.high))
            return PaperCell(f"{formatting.significant(mean * self.factor)} ({low} to {high})", marks=marks)
        return with_error(mean * self.factor, error * self.factor, marks)


def with_error(value: float, error: float, marks: str = "") -> PaperCell:
    """A value and its error, both to two digits of the error; four digits of a value without an error worth a word."""
    if error <= 1e-6 * abs(value):
        return PaperCell(formatting.significant(value, 4), marks=marks)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > _MOST_DECIMALS:
        return PaperCell(f"{value:.4g}", f"{error:.2g}", marks)
    return PaperCell(f"{value:,.{decimals}f}", f"{error:,.{decimals}f}", marks)


# -- words ----------------------------------------------------------------------------------------------------------


def _caption(comparison: Comparison, section: TableSection, part: str) -> str:
    """What is measured, of what, on what, and what ± means."""
    records = comparison.results.records
    settings = records[0].settings
    model, task = settings.model.rstrip("/").rpartition("/")[2], settings.task.name.replace("_", " ")
    devices = dict.fromkeys(record.environment.device_name for record in records if record.environment is not None)
    where = f", on {formatting.enumerated(list(devices))}" if devices else ""
    over = averaged_over(comparison)
    interval = f"{level()} interval{f' of the mean over {over}' if over else ''}"
    errors = f"± reaches the farther end of the {interval}; where it is wide, its ends are in brackets. "
    errors += "A figure alone has no known interval."
    return f"{_TITLES[section]} of {model} on {task}{where}{part}. {_measured(comparison, section)}{errors}"


def _measured(comparison: Comparison, section: TableSection) -> str:
    if section in ("fine-tuning", "inference"):
        return f"{_WINDOW} "
    data = next((record.data for record in comparison.results.records if record.data is not None), None)
    return f"Scores are of {data.test_examples:,} test examples. " if data is not None and section == "quality" else ""


def _marks(warnings: Sequence[WarningNote]) -> dict[int, str]:
    """A mark for each kind of warning, by the warning's number: a to z, then aa."""
    kinds = list(dict.fromkeys(note.kind for note in warnings))
    letters = [*string.ascii_lowercase, *(2 * letter for letter in string.ascii_lowercase)]
    letters += [3 * letter for letter in string.ascii_lowercase]
    return {note.number: letters[kinds.index(note.kind)] for note in warnings}


def _marked(notes: Sequence[int], marks: Mapping[int, str]) -> str:
    return ",".join(dict.fromkeys(marks[number] for number in notes))


def _warning_lines(warnings: Sequence[WarningNote], marks: Mapping[int, str], used: set[str]) -> Iterator[str]:
    for mark, notes in groupby(warnings, key=lambda note: marks[note.number]):
        if mark in used:
            alike = list(notes)
            trials = list(dict.fromkeys(trial for note in alike for trial in note.trials))
            others = f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else ""
            kind = alike[0].kind.replace("_", " ")
            yield f"{mark}: {kind} ({formatting.listed(trials, _MOST_TRIALS)}): {alike[0].detail}{others}"
