"""What the table says, before it is drawn: cells, the reference, absences and warnings, for terminal and page alike.

One row for trials that differ only in their seed; each value stands with its ratio to the reference rank's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from howlow.analysis.columns import QUALITY, Column, column_named
from howlow.analysis.comparison import Comparison, Group, Reference
from howlow.analysis.rows import Results
from howlow.records import WarningKind
from howlow.reporting import formatting

COMPACT = (
    "train_samples_per_s",
    "train_time_per_sample_s",
    "train_energy_per_sample_j",
    "train_peak_memory_bytes",
    "train_final_loss",
    "inference_samples_per_s",
)
FULL = (
    "trainable_parameters",
    "adapter_bytes",
    "train_batch_size",
    "train_samples_per_s",
    "train_time_per_sample_s",
    "train_energy_per_sample_j",
    "train_energy_error_per_sample_j",
    "train_energy_above_idle_per_sample_j",
    "train_cpu_energy_per_sample_j",
    "train_cpu_energy_above_idle_per_sample_j",
    "train_power_w",
    "train_peak_memory_bytes",
    "train_utilization",
    "train_final_loss",
    "inference_batch_size",
    "inference_samples_per_s",
    "inference_time_per_sample_s",
    "inference_energy_per_sample_j",
    "inference_energy_error_per_sample_j",
    "inference_energy_above_idle_per_sample_j",
    "inference_cpu_energy_per_sample_j",
    "inference_cpu_energy_above_idle_per_sample_j",
    "inference_power_w",
    "inference_peak_memory_bytes",
    "inference_utilization",
    "inference_new_tokens_per_sample",
    "inference_prefill_time_per_sample_s",
    "inference_decode_time_per_sample_s",
    "inference_prefill_tokens_per_s",
    "inference_decode_tokens_per_s",
    "inference_prefill_energy_per_token_j",
    "inference_decode_energy_per_token_j",
)
# Of generation alone: tasks without answers have none, and nobody misses them there.
_OF_GENERATION = ("new_tokens_per_sample", "prefill_", "decode_")
# Beside energy per sample, and absent with it; not every source has them, so their absence alone is not told.
_BESIDE_ENERGY = ("error_per_sample_j", "above_idle_per_sample_j", "cpu_energy_per_sample_j")
_QUALITY_ORDER = ("f1", "exact_match", "rouge1", "rouge2", "rougeL", "perplexity", "word_perplexity", "bits_per_byte")
_NOT_RELATIVE = (
    "train_batch_size",
    "inference_batch_size",
    "train_energy_error_per_sample_j",
    "inference_energy_error_per_sample_j",
)
_SHORT = {
    "loss": "loss",
    "samples_per_s": "samples/s",
    "time_per_sample_s": "time/sample",
    "energy_per_sample_j": "energy/sample",
    "energy_error_per_sample_j": "energy error/sample",
}


@dataclass(frozen=True)
class Heading:
    """A column of the table: its section (fine-tuning, inference, quality) and its label."""

    column: Column
    section: str
    label: str


@dataclass(frozen=True)
class Cell:
    """A value as text, its ratio to the reference's where both are there, and the numbers of the warnings of it."""

    value: str
    relative: str | None = None
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Line:
    """One row: what it is about, how its trials ended, its cells, and the warnings that touch none of the cells."""

    label: str
    axes: tuple[str, ...]
    seeds: int
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
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    references: tuple[str, ...]
    absences: tuple[str, ...]
    agreements: tuple[str, ...]
    warnings: tuple[WarningNote, ...]
    failures: tuple[Failure, ...]


def summarize(comparison: Comparison, names: Sequence[str] = COMPACT, quality_first: bool = False) -> Summary:
    """The table of these columns, and after (or before) them of every quality column that has a value."""
    results = comparison.results
    if len({row["train_batch_size"] for row in results.rows} - {None}) > 1 and "train_batch_size" not in names:
        names = ("train_batch_size", *names)  # where the batch is not one for all, it is half of the explanation
    present = {name for name in (*names, *QUALITY) if any(row[name] is not None for row in results.rows)}
    quality = (*_QUALITY_ORDER, "loss")
    ordered = (*quality, *names) if quality_first else (*names, *quality)
    headings = [_heading(results, name) for name in ordered if name in present]
    warnings = _warnings(results)
    return Summary(
        axes=results.axes,
        has_seeds=any(len(group.trials) > 1 for group in comparison.groups),
        headings=tuple(headings),
        lines=tuple(_line(comparison, group, headings, warnings) for group in comparison.groups),
        references=tuple(_reference_notes(comparison)),
        agreements=tuple(_agreements(results)),
        absences=tuple(absences(results, [name for name in names if name not in present | _beside(names)])),
        warnings=warnings,
        failures=_failures(results),
    )


def _beside(names: Sequence[str]) -> set[str]:
    of_generation = {name for name in names if name.removeprefix("inference_").startswith(_OF_GENERATION)}
    return of_generation | {name for name in names if name.endswith(_BESIDE_ENERGY)}


def _heading(results: Results, name: str) -> Heading:
    column = column_named(name)
    prefix, _, rest = name.partition("_")
    sections = {"train": "fine-tuning", "inference": "inference"}
    section = sections.get(prefix, "quality" if name in QUALITY else "adapter")
    label = _SHORT.get(rest or name, column.label)
    if column.unit in ("joules", "watts") and (words := assumed_words(results)):
        label = f"{label} ({words})"
    return Heading(column, section, label)


def assumed_words(results: Results) -> str | None:
    """Says where energy was not measured but follows from watts that the user gave."""
    sources = {row["energy_source"] for row in results.rows if row["energy_source"] is not None}
    if "assumed" not in sources:
        return None
    return "assumed" if sources == {"assumed"} else "partly assumed"


def _line(comparison: Comparison, group: Group, headings: Sequence[Heading], warnings: Sequence[WarningNote]) -> Line:
    names = {trial.record.trial for trial in group.trials}
    own = [note for note in warnings if names & set(note.trials)]
    shown = {heading.column.name for heading in headings}
    counts = group.status_counts
    return Line(
        label=label_of(group),
        axes=tuple(formatting.plain(value) if value is not None else "-" for value in group.axes.values()),
        seeds=len(group.trials),
        status=next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items()),
        cells=tuple(
            replace(
                _cell(comparison, group, heading.column),
                notes=tuple(note.number for note in own if heading.column.name in note.columns),
            )
            for heading in headings
        ),
        notes=tuple(note.number for note in own if not shown & set(note.columns)),
        is_reference=any(reference.group is group for reference in comparison.references),
    )


def label_of(group: Group) -> str:
    """`base`, `full` or the rank."""
    return group.kind if group.rank is None else str(group.rank)


def _cell(comparison: Comparison, group: Group, column: Column) -> Cell:
    found = group.statistic(column.name)
    if found is None:
        return Cell(formatting.ABSENT)
    value = formatting.quantity(found.mean, column.unit)
    if found.deviation:
        number, space, unit = value.partition(" ")
        value = f"{number} ±{formatting.deviation(found.deviation, column.unit, found.mean)}{space}{unit}"
    if column.name in _NOT_RELATIVE or not found.mean:
        return Cell(value)
    relative = comparison.relative_mean(group, column.name)
    return Cell(value, None if relative is None else formatting.ratio(relative))


def _reference_notes(comparison: Comparison) -> list[str]:
    if not comparison.references:
        return ["no rank is done, so there is no reference to divide by"]
    return [_reference_note(reference) for reference in comparison.references]


def _reference_note(reference: Reference) -> str:
    where = axes_words(reference.axes)
    note = f"relative to rank {reference.rank} (1.00x){f' at {where}' if where else ''}"
    if len(reference.group.trials) > 1:
        note += f", mean of {len(reference.group.trials)} seeds"
    for rank, status in reference.requested_rank_missing:
        note += f"; a larger rank {rank} was asked for but is {status}"
    return note


def axes_words(axes: object) -> str:
    """`training.batch_size = 8, lora.alpha = 2r`."""
    assert isinstance(axes, dict), "axes are a table"
    return ", ".join(f"{axis} = {formatting.plain(value)}" for axis, value in axes.items() if value is not None)


# -- absences and warnings ------------------------------------------------------------------------------------------


def _agreements(results: Results) -> Iterator[str]:
    """How far inference with the merged adapter agrees with the attached one, a line a trial that was merged."""
    for trial in results.trials:
        merged, attached = trial.record.merged, trial.record.scores.loss
        if merged is None:
            continue
        texts = f"{merged.equal_texts} of {merged.texts} texts are the attached adapter's, " if merged.texts else ""
        losses = [formatting.ABSENT if loss is None else f"{loss:.6g}" for loss in (merged.loss, attached)]
        yield f"{trial.record.trial}: inference measured merged; {texts}test loss {losses[0]}, attached {losses[1]}"


def absences(results: Results, names: Sequence[str]) -> list[str]:
    """Every quantity that no trial has, once, with the reason."""
    found = {_quantity(name): absence_reason(results, name) for name in names}
    if not any(row[name] is not None for row in results.rows for name in QUALITY):
        found["quality"] = absence_reason(results, "loss")
    return [f"{quantity} ({reason})" for quantity, reason in found.items()]


def _quantity(name: str) -> str:
    if "energy" in name or "power" in name:
        return "energy"
    column = column_named(name)
    prefix = {"train": "fine-tuning ", "inference": "inference "}.get(name.partition("_")[0], "")
    return f"{prefix}{column.label}"


def absence_reason(results: Results, name: str) -> str:
    """Why no trial has this figure, as far as the records say."""
    records = [trial.record for trial in results.trials]
    if "energy" in name or "power" in name:
        details = dict.fromkeys(record.energy.detail for record in records if record.energy is not None)
        return formatting.listed(list(details), 2) or "no trial came as far as opening a source"
    kinds = {warning.kind: warning.detail for record in records for warning in record.warnings}
    if name in QUALITY and WarningKind.RANDOM_WEIGHTS in kinds:
        return kinds[WarningKind.RANDOM_WEIGHTS]
    if "peak" in name and WarningKind.PEAK_MEMORY_ABSENT in kinds:
        return kinds[WarningKind.PEAK_MEMORY_ABSENT]
    if name.startswith("train_") and all(record.kind == "base" for record in records):
        return "only the base model ran"
    if not any(record.status == "done" for record in records):
        return "no trial is done"
    return "no reading" if name.endswith("utilization") else "not measured"


def _failures(results: Results) -> tuple[Failure, ...]:
    touched: dict[tuple[str, str], list[str]] = {}
    for trial in results.trials:
        if trial.record.status != "done":
            key = trial.record.status, trial.record.error or "no message"
            touched.setdefault(key, []).append(trial.record.trial)
    return tuple(Failure(formatting.listed(trials), *key) for key, trials in touched.items())


def _warnings(results: Results) -> tuple[WarningNote, ...]:
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for warning in results.warnings:
        alike.setdefault((warning["kind"], warning["detail"], warning["remedy"]), []).append(warning)
    ordered = sorted(alike.items(), key=lambda item: item[0][0])
    return tuple(
        WarningNote(
            number,
            *said,
            trials=tuple(dict.fromkeys(warning["trial"] for warning in found)),
            columns=tuple(dict.fromkeys(name for warning in found for name in warning["columns"])),
        )
        for number, (said, found) in enumerate(ordered, 1)
    )
