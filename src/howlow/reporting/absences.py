"""Which quantities no trial has, and why, as far as the records say."""

from collections.abc import Sequence

from howlow.analysis.column import Column
from howlow.analysis.columns import COLUMNS
from howlow.analysis.quality_columns import LOSS
from howlow.analysis.rows import Results
from howlow.records import WarningKind
from howlow.reporting import formatting
from howlow.settings import trains


def absences(results: Results, missing: Sequence[Column]) -> list[str]:
    """Each of these quantities once, with the reason for its absence; quality as a whole is one quantity."""
    reasons = {_quantity(column): absence_reason(results, column) for column in missing}
    quality = [column.name for column in COLUMNS if column.is_quality]
    if not any(row[name] is not None for row in results.rows for name in quality):
        reasons["quality"] = absence_reason(results, LOSS)
    return [f"{quantity} ({reason})" for quantity, reason in reasons.items()]


def _quantity(column: Column) -> str:
    if column.is_energy:
        return "energy"
    stage = {"train": "fine-tuning ", "inference": "inference ", None: ""}[column.stage]
    return f"{stage}{column.label}"


def absence_reason(results: Results, column: Column) -> str:
    """Why no trial has this figure."""
    records = [trial.record for trial in results.trials]
    if column.is_energy:
        details = dict.fromkeys(record.energy.detail for record in records if record.energy is not None)
        return formatting.listed(list(details), 2) or "no trial got as far as opening an energy source"
    details_of = {warning.kind: warning.detail for record in records for warning in record.warnings}
    kind = _explanation(column)
    if kind in details_of:
        return details_of[kind]
    if column.stage == "train" and not any(trains(record.kind, record.settings) for record in records):
        only_base = all(record.kind == "base" for record in records)
        return (
            "only the base model ran" if only_base else "no trial trained: shrunk adapters were cut, and not continued"
        )
    if not any(record.status == "done" for record in records):
        return "no trial is done"
    return "no reading" if "utilization" in column.subjects else "not measured"


def _explanation(column: Column) -> WarningKind | None:
    """The warning whose detail says why such a figure is absent."""
    if column.is_quality:
        return WarningKind.RANDOM_WEIGHTS
    return WarningKind.PEAK_MEMORY_ABSENT if "memory" in column.subjects else None
