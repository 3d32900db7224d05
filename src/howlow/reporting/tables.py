"""The table on the terminal: one where the width allows it, else fine-tuning above inference.

Every text that comes from outside is a rich `Text`, so that brackets in it stay brackets.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from howlow.analysis.column import TableSection
from howlow.analysis.columns import RANK, STATUS
from howlow.reporting import formatting
from howlow.reporting.summary import Cell, Failure, Heading, Summary, TableRow, WarningNote

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_SECTIONS: Mapping[TableSection, str] = {
    "fine-tuning": "train",
    "inference": "infer",
    "quality": "test",
    "adapter": "",
}
_GAP = 2
_MOST = 10
_MOST_TRIALS = 4
_MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵝᵞᵟᶿᵠᵡ†‡§¶*#@%&+=~^¹²³⁴⁵⁶⁷⁸⁹"
"""One character a kind of warning, because one number may carry several; digits, which look like powers, come last."""


def terminal_table(summary: Summary, width: int = 100, sections: Sequence[str] = ()) -> "RenderableType":
    """The table with its notes and warnings, for a terminal of that width; `sections`: lines below its notes."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    marks = _marks(summary.warnings)
    for chunk in _chunks(summary, width, marks):
        parts += [_table(summary, chunk, marks), Text("")]
    notes = [Text(note) for note in (*_notes(summary), *sections)]
    notes += [Text(line, style="red") for line in _failure_lines(summary.failures)]
    notes += [Text(line, style="yellow") for line in warning_lines(summary.warnings)]
    return Group(*parts, *notes)


def _notes(summary: Summary) -> Iterator[str]:
    yield from summary.apart
    yield from summary.references
    yield from summary.errors
    yield from (f"absent: {absence}" for absence in summary.absences)
    yield from summary.agreements


def _failure_lines(failures: Sequence[Failure]) -> Iterator[str]:
    yield from (f"{failure.trials}: {failure.status}: {failure.error}" for failure in failures[:_MOST])
    if len(failures) > _MOST:
        yield f"... and {len(failures) - _MOST} more kinds of failure, see the page"


def terminal_text(table: "RenderableType", width: int = 100) -> str:
    """A table as plain text."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, force_terminal=False, color_system=None, legacy_windows=False, _environ={}
    )
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def warning_lines(warnings: Sequence[WarningNote]) -> list[str]:
    """One line a kind: what it is about, which trials it touches, and the remedy."""
    lines = []
    notes_of = {kind: list(notes) for kind, notes in groupby(warnings, key=lambda note: note.kind)}
    marks = _marks(warnings)
    for kind, notes in notes_of.items():
        trials = list(dict.fromkeys(trial for note in notes for trial in note.trials))
        others = f" (and {len(notes) - 1} more like it)" if len(notes) > 1 else ""
        touched = f"{formatting.counted(len(trials), 'trial')} ({formatting.listed(trials, _MOST_TRIALS)})"
        if all(note.is_general for note in notes):
            touched = "all adapters"
        mark = f"{marks[notes[0].number]} " if notes[0].number in marks else ""
        lines.append(f"{mark}warning: {kind}, {touched}: {notes[0].detail}{others}; {notes[0].remedy}")
    return lines


def _marks(warnings: Sequence[WarningNote]) -> dict[int, str]:
    """The mark of every warning that a row or a cell may carry, by its number."""
    kinds = list(dict.fromkeys(note.kind for note in warnings if not note.is_general))
    return {note.number: _MARKS[kinds.index(note.kind)] for note in warnings if note.kind in kinds}


def _label(row: TableRow, marks: Mapping[int, str]) -> str:
    """The rank with the marks of what touches the whole trial, without those that its cells show already."""
    shown = {marks[note] for cell in row.cells for note in cell.notes}
    return _marked(row.label, [note for note in row.notes if marks[note] not in shown], marks)


def _marked(text: str, notes: Iterable[int], marks: Mapping[int, str]) -> str:
    return text + "".join(dict.fromkeys(marks[note] for note in notes))


# -- widths ---------------------------------------------------------------------------------------------------------


def _chunks(summary: Summary, width: int, marks: Mapping[int, str]) -> list[list[int]]:
    """The columns of each table: one table for all, else one for fine-tuning and one for the rest, else what fits."""
    cells = [[row.cells[index] for row in summary.rows] for index in range(len(summary.headings))]
    widths = [_width(*pair, marks) for pair in zip(summary.headings, cells, strict=True)]
    fixed = _fixed_width(summary, marks)
    everything = list(range(len(widths)))
    if not everything or fixed + sum(widths) <= width:
        return [everything]
    training = [index for index in everything if summary.headings[index].section == "fine-tuning"]
    others = [index for index in everything if index not in training]
    return [chunk for section in (training, others) for chunk in _filled(section, widths, width - fixed)]


def _filled(section: Sequence[int], widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns of a section, as many in one table as there is room for."""
    chunks: list[list[int]] = []
    left = 0
    for index in section:
        if left < widths[index] or not chunks:
            chunks.append([])
            left = room
        chunks[-1].append(index)
        left -= widths[index]
    return chunks


def _width(heading: Heading, cells: Sequence[Cell], marks: Mapping[int, str]) -> int:
    texts = [text for cell in cells for text in (_marked(cell.value, cell.notes, marks), cell.relative or "")]
    return max(map(len, [*_header(heading).splitlines(), *texts])) + _GAP


def _fixed_width(summary: Summary, marks: Mapping[int, str]) -> int:
    statuses = [part for row in summary.rows for part in _status(row.status).splitlines()]
    labels = [_label(row, marks) for row in summary.rows]
    width = max(map(len, [RANK.label, *labels])) + max(map(len, [STATUS.label, *statuses])) + _GAP
    for index, axis in enumerate(summary.axes):
        width += max(map(len, [*_axis(axis).splitlines(), *(row.axes[index] for row in summary.rows)])) + _GAP
    return width + sum(len(heading) + _GAP for heading, _ in _runs(summary))


def _runs(summary: Summary) -> list[tuple[str, Callable[[TableRow], int]]]:
    """The columns that say how many trials a row stands for, where it stands for several."""
    seeds = ("seeds", lambda row: row.seeds) if summary.has_seeds else None
    repeats = ("repeats", lambda row: row.repeats) if summary.has_repeats else None
    return [column for column in (seeds, repeats) if column is not None]


def _header(heading: Heading) -> str:
    label = heading.label if heading.label == "samples/s" else heading.label.replace("/", "/\n")
    return f"{_SECTIONS[heading.section]}\n{label.replace(' ', chr(10))}"


def _axis(axis: str) -> str:
    return axis.replace(".", ".\n")


def _status(status: str) -> str:
    return status.replace("out_of_memory", "out_of_\nmemory").replace(", ", ",\n")


def _table(summary: Summary, chunk: Sequence[int], marks: Mapping[int, str]) -> "RenderableType":
    table = _empty_table(summary, chunk)
    for row in summary.rows:
        # The base model was not fine-tuned: it has no row in a table of fine-tuning alone.
        has_nothing = all(row.cells[index].value == formatting.ABSENT for index in chunk)
        if row.status != "done" or not has_nothing:
            table.add_row(*_cells(summary, row, chunk, marks))
    return table


def _empty_table(summary: Summary, chunk: Sequence[int]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.header_style = "bold"
    table.add_column(Text(RANK.label), justify="right", no_wrap=True)
    table.add_column(Text(STATUS.label), no_wrap=True)
    for axis in summary.axes:
        table.add_column(Text(_axis(axis)), justify="right", no_wrap=True)
    for heading, _ in _runs(summary):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for index in chunk:
        table.add_column(Text(_header(summary.headings[index])), justify="right", no_wrap=True)
    return table


def _cells(summary: Summary, row: TableRow, chunk: Sequence[int], marks: Mapping[int, str]) -> "list[RenderableType]":
    from rich.text import Text

    label = Text(_label(row, marks), style="bold" if row.is_reference else "")
    status = Text(_status(row.status), style="" if row.status == "done" else "red")
    runs = [Text(str(number(row))) for _, number in _runs(summary)]
    return [label, status, *map(Text, row.axes), *runs, *(_text(row.cells[index], marks) for index in chunk)]


def _text(cell: Cell, marks: Mapping[int, str]) -> "RenderableType":
    from rich.text import Text

    value = _marked(cell.value, cell.notes, marks)
    if cell.relative is None:
        return Text(value, style="dim" if cell.value == formatting.ABSENT else "")
    return Text.assemble(value, "\n", (cell.relative, "dim"))
