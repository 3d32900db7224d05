"""Reads the records of run directories that may stand in one table, and marks what was accepted or does not agree."""

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from howlow.analysis.fairness import fairness_warnings
from howlow.errors import UserError
from howlow.records import (
    Provenance,
    Record,
    RecordWarning,
    WarningKind,
    differences,
    other_cards,
    read_records,
    refuse_to_mix,
)
from howlow.records.comparability import repeats_that_differ
from howlow.settings import adapts


def records_for_one_table(folders: Sequence[Path], accept_different: Sequence[str]) -> list[tuple[Path, Record]]:
    """The records of these run directories, each with its folder; the arguments and errors are those of `rows`."""
    found: list[tuple[Path, Record]] = []
    for folder in dict.fromkeys(path.resolve() for path in folders):
        records = read_records(folder)
        if not records:
            raise UserError(f"{folder}: no trial has ended yet; let `howlow sweep` finish at least one")
        differing = repeats_that_differ(records)
        found.extend((folder, _with(record, differing.get(record.trial, []))) for record in records)
    return _with_what_was_not_tried(_without_repeated_baselines(_marked(found, accept_different)))


def _with_what_was_not_tried(found: Sequence[tuple[Path, Record]]) -> list[tuple[Path, Record]]:
    warnings = fairness_warnings([record for _, record in found])
    return [(folder, _with(record, warnings.get(record.trial, []))) for folder, record in found]


def _with(record: Record, warnings: Sequence[RecordWarning]) -> Record:
    return record.model_copy(update={"warnings": (*record.warnings, *warnings)}) if warnings else record


def _marked(found: Sequence[tuple[Path, Record]], accept_different: Sequence[str]) -> list[tuple[Path, Record]]:
    """The records, those that differ in what was accepted with a warning; others are refused."""
    warnings: dict[str, list[RecordWarning]] = {}
    several = len({folder for folder, _ in found}) > 1
    names = [f"{folder.name}/{record.trial}" if several else record.trial for folder, record in found]
    named = [Provenance.of(record, trial=name) for name, (_, record) in zip(names, found, strict=True)]
    for difference in refuse_to_mix(named, accept_different, is_one_sweep=not several):
        warnings.setdefault(difference.trial, []).extend(difference.warnings)
    for trial, warning in [] if several else other_cards(named):
        warnings.setdefault(trial, []).append(warning)
    return [
        (folder, _with(record, warnings.get(name, []))) for name, (folder, record) in zip(names, found, strict=True)
    ]


def _without_repeated_baselines(found: Iterable[tuple[Path, Record]]) -> list[tuple[Path, Record]]:
    """One trial of each name: of a baseline that several sweeps measured alike, the first one, with a warning.

    Raises:
        UserError: two run directories hold another trial of the same name, or baselines that differ.
    """
    kept: dict[str, tuple[Path, Record]] = {}
    for folder, record in found:
        home, first = kept.setdefault(record.trial, (folder, record))
        if home == folder:
            continue
        if adapts(record.kind) or differences([first, record]):
            raise UserError(
                f"trial {record.trial} is in {home} and in {folder}; report them one at a time, or give "
                "run directories whose trials differ in rank, seed or a grid axis"
            )
        detail = f"{folder} holds another measurement of {record.trial}; this one is from {home}"
        repeated = RecordWarning(kind=WarningKind.BASELINE_REPEATED, detail=detail)
        kept[record.trial] = (home, _with(first, [repeated]))
    return list(kept.values())


def asked_ranks(folder: Path) -> list[int]:
    """The ranks that a folder's sweep was asked for, run or not; none where sweep.toml is missing."""
    try:
        table = tomllib.loads((folder / "sweep.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    grid = table.get("grid", {})
    ranks = grid.get("lora.rank", []) if isinstance(grid, dict) else []
    return [rank for rank in ranks if isinstance(rank, int)]
