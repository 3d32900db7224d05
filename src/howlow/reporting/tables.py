"""The table on the terminal: one where the width allows it, else fine-tuning above inference.

Every text that comes from outside is a `Text` or printed without markup, so that brackets in it stay brackets.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from howlow.reporting import formatting
from howlow.reporting.summary import Cell, Heading, Line, Summary, WarningNote

if TYPE_CHECKING:
    from rich.console import RenderableType

_SECTIONS = {"fine-tuning": "train", "inference": "infer", "quality": "test", "adapter": ""}
_GAP = 2
_MOST = 10
_MOST_TRIALS = 4
_MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ†‡¹²³⁴⁵⁶⁷⁸⁹"
"""One character a kind of warning, as several stand beside one number; digits, which look like powers, at last."""


def render(summary: Summary, width: int = 100) -> "RenderableType":
    """The table with its notes and warnings, for a terminal of that width."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    marks = _marks(summary.warnings)
    for chunk in _chunks(summary, width, marks):
        parts += [_table(summary, chunk, marks), Text("")]
    notes = [Text(note) for note in summary.references]
    if summary.has_seeds:
        notes.append(Text("means over seeds; ± is their standard deviation"))
    notes += [Text(f"absent: {absence}") for absence in summary.absences]
    notes += [Text(agreement) for agreement in summary.agreements]
    notes += [Text(f"{note.trials}: {note.status}: {note.error}", style="red") for note in summary.failures[:_MOST]]
    if len(summary.failures) > _MOST:
        notes.append(Text(f"... and {len(summary.failures) - _MOST} more ways to fail, see the page", style="red"))
    notes += [Text(line, style="yellow") for line in warning_lines(summary.warnings)]
    return Group(*parts, *notes)


def plain(summary: Summary, width: int = 100) -> str:
    """The same as plain text."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, force_terminal=False, color_system=None, legacy_windows=False, _environ={}
    )
    with console.capture() as capture:
        console.print(render(summary, width))
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
        lines.append(
            f"{marks[notes[0].number]} warning: {kind}, {touched}: {notes[0].detail}{others}; {notes[0].remedy}"
        )
    return lines


def _marks(warnings: Sequence[WarningNote]) -> dict[int, str]:
    """The mark of every warning, by its number."""
    kinds = list(dict.fromkeys(note.kind for note in warnings))
    return {note.number: _MARKS[kinds.index(note.kind)] for note in warnings}


def _label(line: Line, marks: Mapping[int, str]) -> str:
    """The rank with the marks of what touches the whole trial, less those that stand beside one of its figures."""
    beside = {marks[note] for cell in line.cells for note in cell.notes}
    return _marked(line.label, [note for note in line.notes if marks[note] not in beside], marks)


def _marked(text: str, notes: Iterable[int], marks: Mapping[int, str]) -> str:
    return text + "".join(dict.fromkeys(marks[note] for note in notes))


# -- widths ---------------------------------------------------------------------------------------------------------


def _chunks(summary: Summary, width: int, marks: Mapping[int, str]) -> list[list[int]]:
    """Which columns stand in one table: all, else one table for fine-tuning and one for the rest, else what fits."""
    cells = [[line.cells[index] for line in summary.lines] for index in range(len(summary.headings))]
    widths = [_width(*pair, marks) for pair in zip(summary.headings, cells, strict=True)]
    fixed = _fixed_width(summary, marks)
    everything = list(range(len(widths)))
    if not everything or fixed + sum(widths) <= width:
        return [everything]
    training = [index for index in everything if summary.headings[index].section == "fine-tuning"]
    chunks: list[list[int]] = []
    for section in (training, [index for index in everything if index not in training]):
        room = 0
        for index in section:
            if room < widths[index] or not chunks:
                chunks.append([])
                room = width - fixed
            chunks[-1].append(index)
            room -= widths[index]
    return chunks


def _width(heading: Heading, cells: Sequence[Cell], marks: Mapping[int, str]) -> int:
    texts = [text for cell in cells for text in (_marked(cell.value, cell.notes, marks), cell.relative or "")]
    return max(map(len, [*_header(heading).splitlines(), *texts])) + _GAP


def _fixed_width(summary: Summary, marks: Mapping[int, str]) -> int:
    statuses = [part for line in summary.lines for part in _status(line.status).splitlines()]
    labels = [_label(line, marks) for line in summary.lines]
    width = max(map(len, ["rank", *labels])) + max(map(len, ["status", *statuses])) + _GAP
    for index, axis in enumerate(summary.axes):
        width += max(map(len, [*_axis(axis).splitlines(), *(line.axes[index] for line in summary.lines)])) + _GAP
    return width + (len("seeds") + _GAP if summary.has_seeds else 0)


def _header(heading: Heading) -> str:
    label = heading.label if heading.label == "samples/s" else heading.label.replace("/", "/\n")
    return f"{_SECTIONS[heading.section]}\n{label.replace(' ', chr(10))}"


def _axis(axis: str) -> str:
    return axis.replace(".", ".\n")


def _status(status: str) -> str:
    return status.replace("out_of_memory", "out_of_\nmemory").replace(", ", ",\n")


def _table(summary: Summary, chunk: Sequence[int], marks: Mapping[int, str]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.header_style = "bold"
    table.add_column(Text("rank"), justify="right", no_wrap=True)
    table.add_column(Text("status"), no_wrap=True)
    for axis in summary.axes:
        table.add_column(Text(_axis(axis)), justify="right", no_wrap=True)
    if summary.has_seeds:
        table.add_column(Text("seeds"), justify="right", no_wrap=True)
    for index in chunk:
        table.add_column(Text(_header(summary.headings[index])), justify="right", no_wrap=True)
    for line in summary.lines:
        if line.status == "done" and all(line.cells[index].value == formatting.ABSENT for index in chunk):
            continue  # the base model has nothing to say about fine-tuning
        style = "bold" if line.is_reference else ""
        status = Text(_status(line.status), style="" if line.status == "done" else "red")
        cells = [_text(line.cells[index], marks) for index in chunk]
        label = _label(line, marks)
        seeds = [Text(str(line.seeds))] if summary.has_seeds else []
        table.add_row(Text(label, style=style), status, *map(Text, line.axes), *seeds, *cells)
    return table


def _text(cell: Cell, marks: Mapping[int, str]) -> "RenderableType":
    from rich.text import Text

    value = _marked(cell.value, cell.notes, marks)
    if cell.relative is None:
        return Text(value, style="dim" if cell.value == formatting.ABSENT else "")
    return Text.assemble(value, "\n", (cell.relative, "dim"))
