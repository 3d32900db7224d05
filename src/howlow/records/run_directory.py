"""What a run directory already holds, and whether a sweep may continue it.

A sweep continues a folder that holds the same sweep (grid values and baselines may be added, and settings that affect
nothing may change) if the data, the machine, the heap and the sources of howlow are those with which its trials ran,
by their records and by their checkpoints. `howlow.records.comparability` says what must be equal. A difference is
refused in one line that names the key and both values, unless the user accepts it by its key.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from howlow.errors import UserError
from howlow.records.comparability import (
    Difference,
    advice,
    changes,
    differing_settings,
    further,
    not_accepted,
    refuse_changed,
    shown,
)
from howlow.records.data import DataRecord
from howlow.records.files import has_record
from howlow.records.identity import Provenance
from howlow.records.schema import SCHEMA_VERSION, Environment, HeapMode, PhaseRecord, Record, Resolved
from howlow.settings import Settings, adapts, load, united

_REPORT = (
    "results.csv",
    "results.parquet",
    "results.tex",
    "results.md",
    "decomposition.csv",
    "report.html",
    "figures",
)


@dataclass(frozen=True)
class Conditions:
    """What trials would be measured with now."""

    data: DataRecord
    environment: Environment
    heap: HeapMode | None = None


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
    ours = (".howlow", "trials", "looks.json", *(_REPORT if "trials" in names else ()))
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise UserError(f"--out {folder}: holds other files ({foreign[0]}) and no sweep; give a new folder")


def joined(folder: Path, settings: Settings, accept_different: Sequence[str] = ()) -> Settings:
    """The settings of the folder's own sweep joined with these; those of another sweep are refused."""
    if not (folder / "sweep.toml").exists():
        return settings
    there = load(str(folder / "sweep.toml"), (), None)
    same = f"give another folder, or the same settings (howlow sweep {folder / 'sweep.toml'} --out {folder})"
    for axis in sorted(set(there.grid) ^ set(settings.grid)):
        values = f"{there.grid.get(axis)!r} there and {settings.grid.get(axis)!r} now"
        raise UserError(f"--out {folder}: holds another sweep: grid axis {axis} is {values}; {same}")
    left = not_accepted(differing_settings(there, settings, there.grid), accept_different)
    if left:
        values = f"{left[0].key} is {shown(left[0].other_value)} there and {shown(left[0].value)} now"
        raise UserError(f"--out {folder}: holds another sweep: {values}; {same}; {advice(left)}")
    return united(there, settings)


def set_aside(trial: Path) -> None:
    """Keep an earlier attempt's files under `attempts/`, so that the trial starts afresh."""
    attempts = trial / "attempts"
    number = 1 + sum(entry.is_dir() for entry in attempts.iterdir()) if attempts.exists() else 1
    target = attempts / str(number)
    target.mkdir(parents=True)
    record = trial / "record.json"
    for entry in sorted(trial.iterdir(), key=lambda entry: entry == record):
        if entry.name != "attempts" and not entry.name.startswith(".lock"):
            entry.rename(target / entry.name)


# -- what trials left -----------------------------------------------------------------------------------------------


def left_behind(folder: Path, records: Mapping[str, Record]) -> list[Provenance]:
    """What the trials in a run directory say about themselves: in records, or in checkpoints where there is none yet.

    Raises:
        UserError: a checkpoint cannot be read, or an older howlow has written a record or a checkpoint.
    """
    found = [Provenance.of(record) for record in records.values()]
    trials = folder / "trials"
    for trial in sorted(trials.iterdir()) if trials.is_dir() else []:
        if not (trial / "record.json").exists():
            found += _of_checkpoint(trial)
    for one in found:
        if one.schema_version != SCHEMA_VERSION:
            raise UserError(
                f"--out {folder}: {one.trial} was written by an older howlow (schema {one.schema_version}; this one "
                f"writes {SCHEMA_VERSION}); howlow report reads it, but the sweep cannot continue; give another folder"
            )
    return found


def phases_before_death(trial: Path) -> tuple[Provenance, tuple[PhaseRecord, ...]] | None:
    """What a trial whose process died had measured, by its last checkpoint; None where it left none that can be read.

    `howlow.trial.checkpointing` writes the progress of inference beside the checkpoint.
    """
    place = _last_state(trial)
    try:
        if place is None or not (found := list(_of_checkpoint(trial))):
            return None
        progress = place.with_name("inference.json")
        written = json.loads((progress if progress.is_file() else place).read_text(encoding="utf-8"))
        return found[0], tuple(PhaseRecord(**phase) for phase in written["phases"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def _last_state(trial: Path) -> Path | None:
    places = (trial / name / "state.json" for name in ("checkpoint", "checkpoint.old"))
    return next((place for place in places if place.is_file()), None)


def _of_checkpoint(trial: Path) -> Iterator[Provenance]:
    """What the last whole checkpoint says about its trial (`howlow.trial.checkpointing` writes it)."""
    place = _last_state(trial)
    if place is None:
        return
    try:
        document = json.loads(place.read_text(encoding="utf-8"))["identity"]
        document.pop("is_bounded", None)  # schema 1
        yield Provenance.model_validate_json(json.dumps({"schema_version": 1, "trial": trial.name} | document))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = "damaged, or another version's" if not isinstance(error, OSError) else error.strerror
        remove = f"remove {place.parent} to start this trial afresh"
        raise UserError(f"{place}: cannot be read as a checkpoint ({what}); {remove}") from None


def refuse_other_settings(
    folder: Path, left: Iterable[Provenance], settings: Settings, accept_different: Sequence[str] = ()
) -> None:
    """Refuse a folder with trials of another sweep, even if its sweep.toml is gone.

    What is accepted holds for trials that are done: none is half of one kind and half of another.
    """
    for one in left:
        if accept_different and not has_record(folder, one.trial):
            _refuse_mixture(one, differing_settings(one.settings, settings, settings.grid), f"--out {folder}")
        problem = _other_axis(one, settings) or _other_setting(one, settings, accept_different)
        if problem is not None:
            key, old, new = problem
            raise UserError(
                f"--out {folder}: its trial {one.trial} belongs to another sweep: {key} was {old} and is now {new}; "
                "give another folder, or the same settings"
            )


def _other_axis(left: Provenance, settings: Settings) -> tuple[str, str, str] | None:
    further = set(settings.grid) - {"lora.rank", "seed"}
    for axis in sorted(set(left.axes) ^ further if adapts(left.kind) else set(left.axes) - further):
        return f"grid axis {axis}", repr(left.axes.get(axis)), repr(settings.grid.get(axis))
    return None


def _other_setting(
    left: Provenance, settings: Settings, accept_different: Sequence[str]
) -> tuple[str, str, str] | None:
    found = not_accepted(differing_settings(left.settings, settings, settings.grid), accept_different)
    return (found[0].key, shown(found[0].other_value), shown(found[0].value)) if found else None


def _refuse_mixture(then: Provenance, changed: Iterable[Difference], where: str) -> None:
    """Refuse to finish a half-done trial with other settings or data: its figures would be of neither."""
    left = [one for one in changed if not one.is_of_costs_alone and not one.key.startswith("environment.")]
    if left:
        first = left[0]
        raise UserError(
            f"{where}: its trial {then.trial} is half done, with {first.key} = {shown(first.other_value)}, and cannot "
            f"go on with {shown(first.value)}{further(left)}, whatever is accepted; give what it began with, or remove "
            "its folder under trials to start it afresh"
        )


def refuse_changed_conditions(
    left: Iterable[Provenance],
    conditions: Conditions,
    accept_different: Sequence[str] = (),
    where: str = "--out",
    half_done: Container[str] = (),
) -> None:
    """Refuse to continue with other data, on another machine, with another heap or with other sources of howlow.

    half_done: trials of which a part is measured; no other data are accepted for the rest of them.
    """
    for one in left:
        now = Provenance.of(
            one,
            resolved=Resolved(heap=conditions.heap),
            environment=conditions.environment,
            model=None,
            data=conditions.data,
            energy=None,
        )
        if accept_different and one.trial in half_done:
            _refuse_mixture(one, changes(one, now), where)
        refuse_changed(one, now, accept_different, where)
