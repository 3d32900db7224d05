"""What a tracker is told of a trial, whichever tracker it is."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from howlow.analysis.column import Column
from howlow.analysis.columns import SWEEP
from howlow.analysis.rows import Results, Trial
from howlow.records import Record
from howlow.records.files import record_file
from howlow.reporting import Report
from howlow.settings import setting_keys

_SHARED = ("results.csv", "report.html")
_MOST_PAGES = 50
"""Of more trials than that only the first has the page, which is the same for all and takes megabytes."""


@dataclass(frozen=True)
class TrialRun:
    """A trial as a run. losses: (step, loss, milliseconds since 1970) of the training steps."""

    name: str
    sweep: str
    fingerprint: str
    is_done: bool
    parameters: Mapping[str, str | int | float | bool]
    metrics: Mapping[str, float]
    losses: tuple[tuple[int, float, int], ...]
    artifacts: tuple[Path, ...]
    tags: Mapping[str, str]
    started_ms: int
    ended_ms: int

    @cached_property
    def key(self) -> str:
        """A short name that no other measurement has."""
        return self.fingerprint[:16]


def trial_runs(report: Report) -> Iterator[TrialRun]:
    """Every trial of a report that was written; its files are artifacts."""
    results = report.comparison.results
    shared = [path for path in report.files if path.name in _SHARED]
    small = [path for path in shared if path.suffix == ".csv"]
    for number, trial in enumerate(results.trials):
        has_page = number == 0 or len(results.trials) <= _MOST_PAGES
        yield _run(results, trial, tuple(shared if has_page else small))


def _run(results: Results, trial: Trial, shared: tuple[Path, ...]) -> TrialRun:
    record, file = trial.record, record_file(trial.folder)
    fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
    sweep = trial.row.get(SWEEP.name) or next(iter(results.sweeps))
    started, ended = _milliseconds(record.started_at), _milliseconds(record.ended_at)
    return TrialRun(
        name=record.trial,
        sweep=sweep,
        fingerprint=fingerprint,
        is_done=record.status == "done",
        parameters=_parameters(record),
        metrics={column.name: float(trial.row[column.name]) for column in results.columns if _is_metric(column, trial)},
        losses=tuple((step, loss, started) for step, loss in trial.losses),
        artifacts=(file, *shared),
        tags=_tags(record, trial.folder.parent.parent, sweep, fingerprint),
        started_ms=started,
        ended_ms=max(started, ended),
    )


def _is_metric(column: Column, trial: Trial) -> bool:
    return column.is_number and trial.row[column.name] is not None


def _parameters(record: Record) -> dict[str, str | int | float | bool]:
    """The settings as they were asked, and under `resolved.` what was decided."""
    settings = {key: record.settings.get(key) for key in setting_keys()}
    decided = {f"resolved.{key}": value for key, value in record.resolved.model_dump(mode="json").items()}
    return {key: _plain(value) for key, value in (settings | decided).items() if value is not None}


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value, default=str)


def _tags(record: Record, folder: Path, sweep: str, fingerprint: str) -> dict[str, str]:
    """What finds the run again: its sweep and measurement, its data, and git's commit of howlow's sources."""
    data, environment = record.data, record.environment
    tags = {
        "sweep": sweep,
        "sweep_id": _sweep_id(folder),
        "trial": record.trial,
        "fingerprint": fingerprint,
        "status": record.status,
        "kind": record.kind,
        "error": record.error,
        "train_sha256": data and data.train_sha256,
        "test_sha256": data and data.test_sha256,
        "revision": environment and environment.revision,
        "code_sha256": environment and environment.code_sha256,
        "device": environment and environment.device_name,
    }
    return {f"howlow.{key}": value for key, value in tags.items() if value}


def _sweep_id(folder: Path) -> str | None:
    """A hash of the sweep's settings; None where its sweep.toml is gone."""
    try:
        return hashlib.sha256((folder / "sweep.toml").read_bytes()).hexdigest()[:12]
    except OSError:
        return None


def _milliseconds(moment: str | None) -> int:
    return 0 if moment is None else round(datetime.fromisoformat(moment).timestamp() * 1000)
