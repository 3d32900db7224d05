"""One row a trial: raw steps, readings and records -> the figures of results.csv.

`phase_figures` says what the figures of a phase are. A figure that was not measured is None. A phase that did not end
has no figures: half a phase is no measurement.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from howlow.analysis.caveats import qualified
from howlow.analysis.column import Column
from howlow.analysis.columns import (
    COLUMNS,
    CONTINUED_STEPS,
    NEIGHBOURS,
    RAN_ON,
    START_RANK,
    SWEEP,
    UPDATE_KEPT,
    columns_of,
)
from howlow.analysis.energy import Seen, meter_figures, read_seen
from howlow.analysis.one_table import Apart, OneTable, asked_ranks, axis_value, records_for_one_table
from howlow.analysis.phase_figures import generation_figures, phase_figures
from howlow.analysis.quality_columns import UNMATCHABLE_REFERENCES, VALIDATION
from howlow.analysis.uncertainty import Evidence, evidence_of, interval_figures
from howlow.records import (
    CostConditions,
    PhaseName,
    PhaseRecord,
    Record,
    Scores,
    Step,
    WarningKind,
    read_steps,
)
from howlow.settings import trains
from howlow.tasks import task_named

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A finished trial: its record, its row, its training losses and how many steps each phase had."""

    record: Record
    folder: Path
    row: Row
    losses: tuple[tuple[int, float], ...]
    burn_in_steps: Mapping[str, int]
    measured_steps: Mapping[str, int]
    evidence: Mapping[str, Evidence]
    """what the error of each figure rests on, as far as this trial itself shows; by the names of columns"""
    conditions: int = 0
    """the number of the conditions under which its costs were measured; 0: those of most trials"""


@dataclass(frozen=True)
class TrialWarning:
    """A warning of one trial, with its remedy and the names of the columns that it qualifies."""

    trial: str
    kind: str
    detail: str
    remedy: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """The trials of one or several run directories that may stand in one table.

    axes: what trials are told apart by before they are compared: further grid axes, and first the sweep where sweeps
    stand apart. sweeps: the folder of each sweep by its name. asked: the ranks that were asked for, by the sweep's
    value on the axis; under None those of all of them. conditions: of sweeps that are compared as one, under which
    conditions costs were measured.
    """

    folders: tuple[Path, ...]
    trials: tuple[Trial, ...]
    axes: tuple[str, ...]
    asked: Mapping[str | None, tuple[int, ...]]
    sweeps: Mapping[str, Path]
    apart: tuple[Apart, ...]
    conditions: tuple[tuple[CostConditions, ...], ...] = ()

    @property
    def asked_ranks(self) -> tuple[int, ...]:
        """The ranks that were asked for, run or not."""
        return self.asked[None]

    @property
    def has_sweeps(self) -> bool:
        """Whether the trials are from several sweeps, so that every row says from which."""
        return len(self.sweeps) > 1

    @cached_property
    def rows(self) -> list[Row]:
        """One row a trial: the baselines, then by rank, further axes, seed and repeat."""
        return [trial.row for trial in self.trials]

    @cached_property
    def records(self) -> list[Record]:
        """The records, in the order of the rows."""
        return [trial.record for trial in self.trials]

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of every row, in order."""
        further = [SWEEP.name, *self.axes] if self.has_sweeps else self.axes
        return columns_of(dict.fromkeys(further))

    @cached_property
    def trial_warnings(self) -> list[TrialWarning]:
        """Every warning of every trial."""
        return [
            TrialWarning(
                record.trial,
                warning.kind.value,
                warning.detail,
                warning.remedy,
                qualified(warning, inference_phase(record)),
            )
            for record in self.records
            for warning in record.warnings
        ]

    @cached_property
    def set_apart(self) -> frozenset[tuple[str, str]]:
        """(trial, column) of every figure that stands here although it was measured differently."""
        kinds = (WarningKind.COSTS_NOT_COMPARABLE, WarningKind.QUALITY_NOT_COMPARABLE)
        apart = [warning for warning in self.trial_warnings if warning.kind in kinds]
        return frozenset((warning.trial, name) for warning in apart for name in warning.columns)

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """The same as plain tables, as `howlow report --json` prints them."""
        return [asdict(warning) for warning in self.trial_warnings]


def load_results(*folders: Path | str, accept_different: Sequence[str] = ()) -> Results:
    """The records and rows of a run directory, or of several that may stand in one table.

    `howlow.load("runs/demo").rows` are the rows of results.csv, and `.records` the records that they come from.
    `.trials` holds both, with the raw losses. torch is not needed.

    Raises:
        UserError: as `rows`.
    """
    return rows([Path(folder) for folder in folders], accept_different)


def rows(folders: Sequence[Path], accept_different: Sequence[str] = ()) -> Results:
    """Read run directories and compute the row of every record.

    Args:
        folders: run directories.
        accept_different: keys that may differ between records (`howlow.records.comparability`); a trial that differs
            in one of them carries a warning.

    Raises:
        UserError: a folder is no run directory or has no record; records of one sweep were not measured alike; sweeps
            are of other data or another model.
    """
    found = records_for_one_table(folders, accept_different)
    axes = tuple(sorted({axis for member in found.members for axis in member.record.axes}))
    sweep_of = _sweep_values(found)
    trials = [
        replace(_trial(one.record, one.home, axes, sweep_of.get(one.sweep)), conditions=one.conditions)
        for one in found.members
    ]
    trials.sort(key=_order)
    own = (SWEEP.name,) if len(found.joined) > 1 else ()
    asked, conditions = _asked(found, sweep_of), found.conditions
    return Results(tuple(folders), tuple(trials), (*own, *axes), asked, found.folders, found.apart, conditions)


def _sweep_values(found: OneTable) -> dict[str, str]:
    """What the rows of each sweep say in the column of that name; those of sweeps that are one name them all."""
    if len(found.folders) < 2:
        return {}
    together = len(found.joined) > 1
    return {name: " + ".join(sorted(names)) if together else name for names in found.joined for name in names}


def _asked(found: OneTable, sweep_of: Mapping[str, str]) -> dict[str | None, tuple[int, ...]]:
    asked: dict[str | None, set[int]] = {None: set()}
    for member in found.members:
        for key in (None, sweep_of.get(member.sweep)):
            asked.setdefault(key, set()).update(() if member.record.rank is None else [member.record.rank])
    for sweep, folder in found.folders.items():
        for key in (None, sweep_of.get(sweep)):
            asked.setdefault(key, set()).update(asked_ranks(folder))
    return {key: tuple(sorted(ranks)) for key, ranks in asked.items()}


def _order(trial: Trial) -> tuple[Any, ...]:
    record = trial.record
    axes = [_sortable(record.axes.get(axis)) for axis in sorted(record.axes)]
    kind = ("base", "full", "lora", "shrunk").index(record.kind)
    return kind, record.rank or 0, axes, trial.row.get(SWEEP.name) or "", record.seed, record.repeat


def _sortable(value: Any) -> tuple[int, float, str]:
    """Numbers by their size, then everything else by its text."""
    is_number = isinstance(value, int | float)
    return (0, float(value), "") if is_number else (1, 0.0, str(value))


# -- one trial ------------------------------------------------------------------------------------------------------


def _trial(record: Record, folder: Path, axes: Sequence[str], sweep: str | None) -> Trial:
    steps, readings = read_steps(folder), read_seen(folder)
    by_part = {
        part: {
            phase: sum(step.phase == phase and step.part == part for step in steps)
            for phase in ("train", "evaluate", "generate")
        }
        for part in ("burn_in", "measured")
    }
    losses = [(step.step, loss) for step in steps if step.phase == "train" and (loss := _loss(step)) is not None]
    row = _row(record, steps, readings) | ({} if sweep is None else {SWEEP.name: sweep})
    row.update({axis: axis_value(record, axis) for axis in axes})
    evidence = evidence_of(record, _phases(record), row, steps, readings, folder)
    row.update(interval_figures(row, evidence))
    return Trial(record, folder, row, tuple(losses), by_part["burn_in"], by_part["measured"], evidence)


def _phases(record: Record) -> dict[str, PhaseRecord]:
    """The phase that the columns of each stage are about."""
    names: dict[str, PhaseName | None] = {"train": "train", "inference": inference_phase(record)}
    ended = {stage: record.phase(name) for stage, name in names.items() if name is not None}
    return {stage: phase for stage, phase in ended.items() if phase is not None}


def layout_of(record: Record) -> str:
    """The layout that a trial was measured with, generation's too where it is another."""
    layout = record.resolved.layout or record.settings.training.layout
    generation = record.resolved.generation_layout or layout
    return layout if generation == layout else f"{layout}, generation {generation}"


def _row(record: Record, steps: Sequence[Step], readings: Sequence[Seen]) -> Row:
    row: Row = dict.fromkeys(column.name for column in COLUMNS)
    settings, model = record.settings, record.model
    row.update(
        trial=record.trial,
        kind=record.kind,
        rank=record.rank,
        seed=record.seed,
        repeat=record.repeat,
        status=record.status,
        layout=layout_of(record),
        inference_batch_size=_batch(record.resolved.inference_batch_size, settings.inference.batch_size),
        energy_source=record.energy.name if record.energy else None,
        devices=settings.run.devices_per_trial,
    )
    if model is not None:
        row["precision"] = record.resolved.precision
        for name in ("alpha", "scaling_factor", "total_parameters", "trainable_parameters"):
            row[name] = getattr(model, name)
        row["adapter_bytes"] = model.adapter_bytes
    if record.shrunk is not None:
        row[START_RANK.name], row[UPDATE_KEPT.name] = record.shrunk.start_rank, record.shrunk.energy_kept
        row[CONTINUED_STEPS.name] = record.shrunk.continued_steps
    if trains(record.kind, settings):
        row["train_batch_size"] = _batch(record.resolved.train_batch_size, settings.training.batch_size)
        if _ended(record, "train"):
            found = phase_figures(record, "train", steps, readings)
            row.update({f"train_{name}": value for name, value in found.items()})
            row["train_final_loss"] = _final_loss(steps)
    phase = inference_phase(record)
    if phase is not None:
        found = phase_figures(record, phase, steps, readings)
        if phase == "generate":
            found |= generation_figures(record, steps)
        row.update({f"inference_{name}": value for name, value in found.items()})
    row.update({name: _finite(getattr(record.scores, name)) for name in Scores.model_fields if name in row})
    aside = record.validation or Scores()
    row.update({column.name: _finite(getattr(aside, name)) for name, column in VALIDATION.items()})
    row[UNMATCHABLE_REFERENCES.name] = record.data.unmatchable_references if record.data else None
    row.update(meter_figures(record))
    row.update(_where(record))
    for warning in record.warnings:
        if warning.kind == WarningKind.COSTS_LEFT_OUT:
            row.update(dict.fromkeys(qualified(warning, phase)))
    return row


def _where(record: Record) -> Row:
    """Which machine ran a trial, on which device, and beside how many others."""
    found, neighbours = record.environment, record.neighbours
    beside = {(one.trial, one.run_directory) for one in neighbours or () if one.phases}
    places = (found.host, found.device_name, found.device_uuid) if found else (None, None, None)
    where = {column.name: value for column, value in zip(RAN_ON, places, strict=True)}
    return where | {NEIGHBOURS.name: None if neighbours is None else len(beside)}


def inference_phase(record: Record) -> PhaseName | None:
    """The phase that the inference columns are about: generation if it ran, else the loss over the test text.

    None where the trial ended before that phase did. A trial that should have generated falls back to its loss phase
    only if it is done.
    """
    if record.phase("generate") is not None:
        return "generate"
    may_fall_back = record.status == "done" or not task_named(record.settings.task.name).generates
    return "evaluate" if may_fall_back and _ended(record, "evaluate") else None


def _ended(record: Record, phase: PhaseName) -> bool:
    return record.phase(phase) is not None


def _batch(decided: int | None, asked: int | str) -> int | None:
    """The batch size that was decided, else the number that was asked for; None where no largest one was found."""
    return decided if decided is not None else asked if isinstance(asked, int) else None


def _final_loss(steps: Sequence[Step]) -> float | None:
    last = next((step for step in reversed(steps) if step.phase == "train"), None)
    return None if last is None else _loss(last)


def _loss(step: Step) -> float | None:
    return _finite(getattr(step, "loss", None))  # a raw line without a loss has no such field


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
