"""What the table says before it is drawn: cells, references, absences and warnings, for terminal and page alike.

One row stands for trials that differ only in their seed and repeat. Each value comes with its ratio to the reference
rank's, which carries its error or is replaced by the words "not significant" or "no error".
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from howlow.analysis.column import Column, TableSection
from howlow.analysis.columns import ENERGY_SOURCE, TRAIN_BATCH_SIZE, tabulated
from howlow.analysis.comparison import Comparison, Group, Reference
from howlow.analysis.rows import Results, Trial, TrialWarning
from howlow.reporting import formatting
from howlow.reporting.absences import absences
from howlow.reporting.evidence import averaged_over, error_notes, repeats_sentence, runs_words
from howlow.reporting.failure import failure_words
from howlow.reporting.sweeps import apart_lines, axis_cells, conditions_lines, table_axes

_MOST_REFERENCES = 6


@dataclass(frozen=True)
class Heading:
    """A column of the table: its section (fine-tuning, inference, quality) and its label."""

    column: Column
    section: TableSection
    label: str


@dataclass(frozen=True)
class Cell:
    """A value as text, its ratio to the reference's where both are present, and the numbers of its warnings."""

    value: str
    relative: str | None = None
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class TableRow:
    """One row: its rank or baseline, how its trials ended, its cells, and the warnings that touch none of the cells."""

    label: str
    axes: tuple[str, ...]
    seeds: int
    repeats: int
    status: str
    cells: tuple[Cell, ...]
    notes: tuple[int, ...]
    is_reference: bool


@dataclass(frozen=True)
class WarningNote:
    """A warning with the trials and the columns that it touches, numbered for the table."""

    number: int
    kind: str
    detail: str
    remedy: str
    trials: tuple[str, ...]
    columns: tuple[str, ...]
    is_general: bool = False
    """whether it is about all adapters and no single figure: no row is marked with it"""


@dataclass(frozen=True)
class Failure:
    """Trials that ended in the same way, with their one line of error."""

    trials: str
    status: str
    error: str


@dataclass(frozen=True)
class Summary:
    """The whole table."""

    axes: tuple[str, ...]
    has_seeds: bool
    has_repeats: bool
    headings: tuple[Heading, ...]
    rows: tuple[TableRow, ...]
    apart: tuple[str, ...]
    references: tuple[str, ...]
    errors: tuple[str, ...]
    absences: tuple[str, ...]
    agreements: tuple[str, ...]
    warnings: tuple[WarningNote, ...]
    failures: tuple[Failure, ...]


def summarize(comparison: Comparison, for_page: bool = False) -> Summary:
    """The table for the terminal, or the longer one for the page, which begins with quality."""
    results = comparison.results
    costs = _costs(results, for_page)
    quality = [column for column in tabulated() if column.section == "quality"]
    ordered = [*quality, *costs] if for_page else [*costs, *quality]
    present = [column for column in ordered if column.is_shown(row[column.name] for row in results.rows)]
    headings = [heading for column in present if (heading := _heading(results, column)) is not None]
    warnings = _warnings(comparison)
    return Summary(
        axes=table_axes(results),
        has_seeds=any(group.seeds > 1 for group in comparison.groups),
        has_repeats=any(group.repeats > 1 for group in comparison.groups),
        headings=tuple(headings),
        rows=tuple(_row(comparison, group, headings, warnings, for_page) for group in comparison.groups),
        apart=(*apart_lines(results), *conditions_lines(comparison)),
        references=tuple(_reference_notes(comparison)),
        errors=tuple(_error_notes(comparison, headings, for_page)),
        absences=tuple(absences(results, [c for c in costs if c not in present and not c.is_optional])),
        agreements=tuple(note for trial in results.trials if (note := _agreement(trial)) is not None),
        warnings=warnings,
        failures=_failures(results),
    )


def _costs(results: Results, for_page: bool) -> list[Column]:
    costs = [column for column in tabulated() if column.section != "quality"]
    if for_page:
        return costs
    # Where trials had different batch sizes, these explain half of the differences.
    batch_differs = len({row[TRAIN_BATCH_SIZE.name] for row in results.rows} - {None}) > 1
    return [
        column
        for column in costs
        if (column.table and column.table.in_terminal) or (batch_differs and column is TRAIN_BATCH_SIZE)
    ]


def _heading(results: Results, column: Column) -> Heading | None:
    if column.table is None:
        return None
    label = column.heading or column.label
    if column.is_energy and (words := assumed_words(results)):
        label = f"{label} ({words})"
    return Heading(column, column.table.section, label)


def assumed_words(results: Results) -> str | None:
    """What to add to energy and power that follow from watts given by the user; None where all were measured."""
    sources = {row[ENERGY_SOURCE.name] for row in results.rows} - {None}
    if "assumed" not in sources:
        return None
    return "assumed" if sources == {"assumed"} else "partly assumed"


def _row(
    comparison: Comparison,
    group: Group,
    headings: Sequence[Heading],
    warnings: Sequence[WarningNote],
    for_page: bool,
) -> TableRow:
    names = {trial.record.trial for trial in group.trials}
    own = [note for note in warnings if names & set(note.trials)]
    shown = {heading.column.name for heading in headings}
    return TableRow(
        label=label_of(group),
        axes=axis_cells(comparison.results, group),
        seeds=group.seeds,
        repeats=group.repeats,
        status=_status(group.status_counts),
        cells=tuple(_cell(comparison, group, heading.column, own, for_page) for heading in headings),
        notes=tuple(note.number for note in own if not note.is_general and not shown & set(note.columns)),
        is_reference=any(reference.group is group for reference in comparison.references),
    )


def _status(counts: Mapping[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items())


def label_of(group: Group) -> str:
    """`base`, `full` or the rank, of an adapter that was cut to it with the word."""
    shrunk = " shrunk" if group.kind == "shrunk" else ""
    return group.kind if group.rank is None else f"{group.rank}{shrunk}"


def _cell(
    comparison: Comparison, group: Group, column: Column, warnings: Sequence[WarningNote], for_page: bool
) -> Cell:
    notes = tuple(note.number for note in warnings if column.name in note.columns)
    return replace(_cell_without_notes(comparison, group, column, for_page), notes=notes)


def _cell_without_notes(comparison: Comparison, group: Group, column: Column, for_page: bool) -> Cell:
    found = group.statistic(column)
    if found is None:
        return Cell(formatting.ABSENT)
    value = formatting.quantity(found.mean, column.unit)
    if found.deviation:
        number, space, unit = value.partition(" ")
        value = f"{number} ±{formatting.deviation(found.deviation, column.unit, found.mean)}{space}{unit}"
    if not column.is_relative or not found.mean:
        return Cell(value)
    ratio = comparison.ratio(group, column)
    return Cell(value, None if ratio is None else formatting.relative(ratio, with_ends=for_page))


# -- notes ----------------------------------------------------------------------------------------------------------


def _error_notes(comparison: Comparison, headings: Sequence[Heading], for_page: bool) -> list[str]:
    """What ± and the intervals mean."""
    kinds = averaged_over(comparison)
    over = [f"means over {kinds}; ± of a value is their standard deviation"] if kinds else []
    references = (repeats_sentence(reference.group) for reference in comparison.references[:_MOST_REFERENCES])
    repeats = [] if for_page else [sentence for sentence in references if sentence is not None]
    sign = "in brackets behind a ratio: its" if for_page else "± of a ratio reaches the farther end of its"
    return [*over, *repeats, *error_notes(comparison, [heading.column for heading in headings], sign)]


def _reference_notes(comparison: Comparison) -> list[str]:
    if not comparison.references:
        return ["no rank is done, so there is no reference to divide by"]
    return [_reference_note(reference) for reference in comparison.references]


def _reference_note(reference: Reference) -> str:
    where = axes_words(reference.axes)
    note = f"relative to rank {reference.rank} (1.00x){f' at {where}' if where else ''}"
    if runs := runs_words(reference.group):
        note += f", mean of {runs}"
    for rank, status in reference.requested_rank_missing:
        note += f"; a larger rank {rank} was asked for but is {status}"
    return note


def axes_words(axes: Mapping[str, Any]) -> str:
    """`training.batch_size = 8, lora.alpha = 2r`."""
    return ", ".join(f"{axis} = {formatting.plain(value)}" for axis, value in axes.items() if value is not None)


def _agreement(trial: Trial) -> str | None:
    """How far inference with the merged adapter agrees with the attached one; None for a trial that did not merge."""
    merged, attached = trial.record.merged, trial.record.scores.loss
    if merged is None:
        return None
    texts = f"{merged.equal_texts} of {merged.texts} texts are the attached adapter's, " if merged.texts else ""
    losses = [formatting.ABSENT if loss is None else f"{loss:.6g}" for loss in (merged.loss, attached)]
    return f"{trial.record.trial}: inference measured merged; {texts}test loss {losses[0]}, attached {losses[1]}"


def _failures(results: Results) -> tuple[Failure, ...]:
    trials: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in results.records:
        if record.status != "done":
            trials[record.status, failure_words(record)].append(record.trial)
    return tuple(Failure(formatting.listed(names), *key) for key, names in trials.items())


def _warnings(comparison: Comparison) -> tuple[WarningNote, ...]:
    """Warnings that say the same are one note; those about all adapters stand last."""
    alike: dict[tuple[str, str, str], list[TrialWarning]] = defaultdict(list)
    for warning in comparison.results.trial_warnings:
        alike[warning.kind, warning.detail, warning.remedy].append(warning)
    notes = [_note(key, warnings) for key, warnings in alike.items()]
    marked = {note.kind for note in notes if not _is_general(comparison, note)}
    ordered = sorted(notes, key=lambda note: (note.kind not in marked, note.kind))
    return tuple(
        replace(note, number=number, is_general=note.kind not in marked) for number, note in enumerate(ordered, 1)
    )


def _is_general(comparison: Comparison, note: WarningNote) -> bool:
    """Whether a warning touches no column and is about all adapters, of which there are several, and nothing else."""
    adapters = [group for group in comparison.groups if group.rank is not None]
    records = [trial.record for group in adapters for trial in group.trials]
    done = {record.trial for record in records if record.status == "done"}
    are_several = sum(group.is_done for group in adapters) > 1
    return are_several and not note.columns and done <= set(note.trials) <= {record.trial for record in records}


def _note(key: tuple[str, str, str], warnings: Sequence[TrialWarning]) -> WarningNote:
    trials = dict.fromkeys(warning.trial for warning in warnings)
    columns = dict.fromkeys(name for warning in warnings for name in warning.columns)
    return WarningNote(0, *key, trials=tuple(trials), columns=tuple(columns))
