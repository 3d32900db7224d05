"""What a run directory holds already, and whether a sweep may go on with it.

A folder is gone on with where it holds the same sweep (grid values and baselines may be added) and everything that
trials left there, by a record or by a checkpoint, was asked for with the same settings and measured on the same data,
the same machine and the same library versions. Anything else would mix what cannot be compared, and is refused in one
line that names the first difference with both its values.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow.errors import UserError
from howlow.records import DataRecord, Environment, Record
from howlow.settings import Settings, TrialKind, first_difference, load, setting_keys, united

_CHOSEN_LATER = ("auto", "max")  # a trial writes down what it chose instead

_REPORT = ("results.csv", "report.html", "figures")


@dataclass(frozen=True)
class Trace:
    """What a trial left of itself: its record or, where it was interrupted, its checkpoint."""

    trial: str
    kind: TrialKind
    axes: Mapping[str, Any]
    settings: Settings
    data: DataRecord | None
    environment: Environment | None


# -- the folder -----------------------------------------------------------------------------------------------------


def out_folder(out: Path | str) -> Path:
    """The run directory that was asked for."""
    if not str(out).strip():
        raise UserError("--out is empty: give the folder in which the sweep keeps its records")
    return Path(out)


def refuse_foreign(folder: Path) -> None:
    """Refuse a file, and a folder that holds other things than a sweep; nothing is written."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder}: a file stands in the way; give a folder")
    if (folder / "sweep.toml").exists():
        return
    # A sweep that was killed while it wrote sweep.toml leaves a temporary file.
    names = sorted(entry.name for entry in folder.iterdir() if not entry.match(".sweep.toml.*.tmp"))
    ours = (".howlow", "trials", *(_REPORT if "trials" in names else ()))
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise UserError(f"--out {folder}: holds other files ({foreign[0]}) and no sweep; give a new folder")


def joined(folder: Path, settings: Settings) -> Settings:
    """The settings of the folder's own sweep joined with these; those of another sweep are refused."""
    if not (folder / "sweep.toml").exists():
        return settings
    there = load(str(folder / "sweep.toml"), (), None)
    difference = first_difference(there, settings)
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"--out {folder}: holds another sweep: {key} is {old!r} there and {new!r} now; give another folder, or the "
            f"same settings (howlow sweep {folder / 'sweep.toml'} --out {folder})"
        )
    return united(there, settings)


def set_aside(trial: Path) -> None:
    """Keep an earlier attempt's files under `attempts/`, so that the trial starts afresh."""
    attempts = trial / "attempts"
    number = 1 + sum(entry.is_dir() for entry in attempts.iterdir()) if attempts.exists() else 1
    target = attempts / str(number)
    target.mkdir(parents=True)
    record = trial / "record.json"
    for entry in sorted(trial.iterdir(), key=lambda entry: entry == record):
        if entry.name not in ("attempts", ".lock"):
            entry.rename(target / entry.name)


# -- what trials left -----------------------------------------------------------------------------------------------


def traces(folder: Path, records: Mapping[str, Record]) -> list[Trace]:
    """What the trials in a run directory left: their records, and the checkpoints of those without one.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    found = [_of_record(record) for record in records.values()]
    trials = folder / "trials"
    for trial in sorted(trials.iterdir()) if trials.is_dir() else []:
        if not (trial / "record.json").exists():
            found += _of_checkpoint(trial)
    return found


def _of_record(record: Record) -> Trace:
    return Trace(record.trial, record.kind, record.axes, record.settings, record.data, record.environment)


def _of_checkpoint(trial: Path) -> Iterator[Trace]:
    """What the last whole checkpoint says of its trial (`howlow.trial.checkpointing` writes it)."""
    places = (trial / name / "state.json" for name in ("checkpoint", "checkpoint.old"))
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return
    try:
        identity = json.loads(place.read_text(encoding="utf-8"))["identity"]
        yield Trace(
            trial.name,
            identity["kind"],
            identity["axes"],
            Settings.model_validate_json(json.dumps(identity["settings"])),
            DataRecord.model_validate(identity["data"]),
            Environment.model_validate(identity["environment"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "damaged, or another version's" if not isinstance(error, OSError) else error.strerror
        remedy = f"remove {place.parent} to start this trial afresh"
        raise UserError(f"{place}: cannot be read as a checkpoint ({what}); {remedy}") from None


def refuse_other_settings(folder: Path, left: Iterable[Trace], settings: Settings) -> None:
    """Refuse what a trial of another sweep left, as where sweep.toml is gone."""
    for trace in left:
        difference = _first_other(trace, settings)
        if difference is not None:
            key, old, new = difference
            raise UserError(
                f"--out {folder}: {trace.trial} there is of another sweep: {key} was {old!r}, is {new!r} now; give "
                "another folder, or the same settings"
            )


def _first_other(trace: Trace, settings: Settings) -> tuple[str, Any, Any] | None:
    further = set(settings.grid) - {"lora.rank", "seed"}
    for axis in sorted(set(trace.axes) ^ further if trace.kind == "lora" else set(trace.axes) - further):
        return f"grid axis {axis}", trace.axes.get(axis), settings.grid.get(axis)
    for key in setting_keys():
        if key in ("grid", "baselines") or key in settings.grid:
            continue
        old, new = trace.settings.get(key), settings.get(key)
        if old != new and old not in _CHOSEN_LATER and new not in _CHOSEN_LATER:
            return key, old, new
    return None


def refuse_changed(left: Iterable[Trace], data: DataRecord, environment: Environment) -> None:
    """Refuse to go on with other data, on another machine or with other versions of the libraries."""
    for trace in left:
        if trace.data is not None:
            for key in ("train_sha256", "test_sha256", "model_sha256"):
                old, new = getattr(trace.data, key), getattr(data, key)
                if old != new and old is not None and new is not None:
                    what = "model" if key == "model_sha256" else "data"
                    raise UserError(
                        f"the {what} has changed since {trace.trial} was measured: data.{key} was {old[:12]}, is "
                        f"{new[:12]}; give another --out folder"
                    )
        if trace.environment is not None:
            here = _identity(environment)
            for key, old in _identity(trace.environment).items():
                if old != here.get(key):
                    raise UserError(
                        f"{trace.trial} was measured elsewhere: environment.{key} was {old!r}, is {here.get(key)!r}; "
                        "figures measured differently are not compared, give another --out folder"
                    )


def _identity(environment: Environment) -> dict[str, Any]:
    plain = {key: getattr(environment, key) for key in ("device_name", "cpu", "cores", "threads")}
    return plain | {f"versions.{name}": version for name, version in environment.versions.items()}
