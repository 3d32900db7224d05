"""Reads the records of one or several run directories that may stand in one table.

Sweeps that were measured alike and share no trial are one sweep in several folders: they are joined. Any other sweep
stays apart: its figures are compared within it only, and `Apart` says why. Trials then bear their sweep's name before
their own (`h100/r0008-s0`). Within one sweep the quality of all trials is compared, and costs only among those that
were measured under equal conditions (`CostConditions`). What was accepted, or does not agree, is a warning at the
trial.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from howlow.analysis.fairness import fairness_warnings
from howlow.errors import UserError
from howlow.records import (
    CostConditions,
    Difference,
    Provenance,
    Record,
    RecordWarning,
    WarningKind,
    between_sweeps,
    cost_conditions,
    differences,
    other_cards,
    read_records,
    refuse_to_mix,
)
from howlow.records.comparability import CARD, COSTS, may_differ_in_a_table, not_accepted, repeats_that_differ
from howlow.settings import Settings, adapts, concerns


@dataclass(frozen=True)
class Member:
    """A record as the table holds it, its trial's folder, the sweep that it is from, and its costs' conditions."""

    record: Record
    home: Path
    sweep: str
    conditions: int = 0


@dataclass(frozen=True)
class Apart:
    """Why the figures of a sweep are not divided by those of another one: what differs, or which trials both hold."""

    sweep: str
    other: str
    differences: tuple[Difference, ...]
    trials: tuple[str, ...]


@dataclass(frozen=True)
class OneTable:
    """The records of a table. joined: the sweeps that are compared with each other, together; one tuple of all of them
    where nothing stands apart. conditions: for each of them the conditions under which costs were measured."""

    members: tuple[Member, ...]
    folders: Mapping[str, Path]
    joined: tuple[tuple[str, ...], ...]
    apart: tuple[Apart, ...]
    conditions: tuple[tuple[CostConditions, ...], ...] = ()


def records_for_one_table(folders: Sequence[Path], accept_different: Sequence[str]) -> OneTable:
    """The records of these run directories; the arguments and errors are those of `rows`."""
    named = named_sweeps(folders)
    sweeps = {name: _members(name, folder) for name, folder in named.items()}
    accepted = _accepted(list(sweeps.values()), accept_different)
    joined, apart = _joined(sweeps, accept_different)
    conditions = [_conditions([sweeps[name] for name in names], len(sweeps) > 1) for names in joined]
    numbers = {trial: one.number for together in conditions for one in together for trial in one.trials}
    accepted += [one for together in conditions for alike in together for one in alike.differences]
    marked = [member for members in sweeps.values() for member in _marked(members, accepted, numbers, len(sweeps) > 1)]
    found = [
        member for names in joined for member in _with_what_was_not_tried(_without_repeated_baselines(marked, names))
    ]
    if len(joined) > 1:
        found = [
            replace(member, record=member.record.model_copy(update={"trial": _full_name(member)})) for member in found
        ]
    return OneTable(tuple(found), named, tuple(joined), tuple(apart), tuple(conditions))


def named_sweeps(folders: Iterable[Path]) -> dict[str, Path]:
    """Each folder once, under the shortest end of its path that tells it from the others."""
    there = list(dict.fromkeys(path.resolve() for path in folders))
    for length in count(1):
        names = ["/".join(path.parts[1:][-length:]) or path.anchor for path in there]
        if len(set(names)) == len(there):
            break
    return dict(zip(names, there, strict=True))


def _members(sweep: str, folder: Path) -> list[Member]:
    records = read_records(folder)
    if not records:
        raise UserError(f"{folder}: no trial has ended yet; let `howlow sweep` finish at least one")
    differing = repeats_that_differ(records)
    return [
        Member(_with(record, differing.get(record.trial, [])), folder / "trials" / record.trial, sweep)
        for record in records
    ]


def _with(record: Record, warnings: Sequence[RecordWarning]) -> Record:
    return record.model_copy(update={"warnings": (*record.warnings, *warnings)}) if warnings else record


def _full_name(member: Member) -> str:
    return f"{member.sweep}/{member.record.trial}"


def _named(members: Iterable[Member], several: bool = True) -> list[Provenance]:
    """What is compared of each, under a name that no other trial of the table has."""
    return [Provenance.of(member.record, trial=_name(member, several)) for member in members]


def _name(member: Member, several: bool) -> str:
    return _full_name(member) if several else member.record.trial


# -- what may be compared -------------------------------------------------------------------------------------------


def _accepted(sweeps: Sequence[Sequence[Member]], accept_different: Sequence[str]) -> list[Difference]:
    """The differences that were accepted; trials of one sweep that differ in more than their costs are refused."""
    several = len(sweeps) > 1
    found = [refuse_to_mix(_named(own, several), [*accept_different, COSTS], is_one_sweep=True) for own in sweeps]
    if not several:
        return [one for one in found[0] if one.key != CARD]
    everything = [trial for own in sweeps for trial in _named(own)]
    between = differences(everything, may_differ_in_a_table(everything))
    left = not_accepted(between, accept_different)
    return [one for one in between if one not in left]


def _conditions(sweeps: Sequence[Sequence[Member]], several: bool) -> tuple[CostConditions, ...]:
    """The conditions under which sweeps that are one measured their costs; cards of one kind are one kind."""
    trials = [trial for own in sweeps for trial in _named(own, several)]
    found = [one for one in differences(trials, may_differ_in_a_table(trials)) if one.key != CARD]
    return cost_conditions([trial.trial for trial in trials], found)


def _joined(
    sweeps: Mapping[str, Sequence[Member]], accept_different: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[Apart]]:
    """Sweeps that are one measurement together, and for each other one why it is apart from those before it."""
    joined: list[list[str]] = []
    apart: list[Apart] = []
    axes = sorted({axis for members in sweeps.values() for member in members for axis in member.record.axes})
    for name, own in sweeps.items():
        reasons = []
        for names in joined:
            others = [member for other in names for member in sweeps[other]]
            found = _why_apart(own, others, axes, accept_different)
            if found is None:
                names.append(name)
                break
            reasons.append(replace(found, other=" + ".join(names)))
        else:
            joined.append([name])
            apart += reasons[:1]
    return [tuple(names) for names in joined], apart


def _why_apart(
    own: Sequence[Member], others: Sequence[Member], axes: Sequence[str], accept_different: Sequence[str]
) -> Apart | None:
    """Why two sweeps cannot be one; None where they can."""
    found = between_sweeps(_named(own), _named(others), accept_different)
    there = {place: member for member in others for place in _places(member.record, axes)}
    twice = [
        member.record.trial
        for member in own
        if any(_collide(member.record, there[place].record) for place in _places(member.record, axes) if place in there)
    ]
    return Apart(own[0].sweep, others[0].sweep, tuple(found), tuple(twice)) if found or twice else None


def _places(record: Record, axes: Sequence[str]) -> tuple[str, str]:
    """A trial's name and its cell of the grid, either of which only one trial of a sweep has."""
    values = [axis_value(record, axis) for axis in axes]
    return record.trial, repr((record.kind, record.rank, record.seed, record.repeat, values))


def _collide(record: Record, other: Record) -> bool:
    """Whether two trials of one name or cell are two results; a baseline that was measured alike is one."""
    return adapts(record.kind) or bool(differences([other, record]))


def axis_value(record: Record, axis: str) -> Any:
    """The value of a further grid axis; where the trial's own grid lacks the axis, the value of its setting.

    A trial has no value on axes that do not concern its kind, and the zero-shot `base` on none but its own.
    """
    if axis in record.axes or record.kind == "base":
        return record.axes.get(axis)
    if not concerns(record.kind, axis):
        return None
    settings: Settings = record.settings
    return settings.get(axis)


# -- marks ----------------------------------------------------------------------------------------------------------


def _marked(
    members: Sequence[Member], accepted: Iterable[Difference], conditions: Mapping[str, int], several: bool
) -> Iterator[Member]:
    """A sweep's records with their conditions, and warnings where one differs or ran on another card than most."""
    warnings: dict[str, list[RecordWarning]] = {}
    for difference in {(one.trial, one.key): one for one in accepted}.values():
        warnings.setdefault(difference.trial, []).extend(difference.warnings)
    for trial, warning in other_cards(_named(members, several)):
        warnings.setdefault(trial, []).append(warning)
    for member in members:
        name = _name(member, several)
        record = _with(member.record, warnings.get(name, []))
        yield replace(member, record=record, conditions=conditions.get(name, 0))


def _without_repeated_baselines(members: Iterable[Member], joined: Sequence[str]) -> list[Member]:
    """The records of sweeps that are one; of a baseline that several measured alike the first, with a warning."""
    kept: dict[str, Member] = {}
    for member in members:
        if member.sweep in joined:
            first = kept.setdefault(member.record.trial, member)
            if first is not member:
                detail = (
                    f"{member.home.parent.parent} holds another measurement of {member.record.trial}; this one is "
                    f"from {first.home.parent.parent}"
                )
                repeated = RecordWarning(kind=WarningKind.BASELINE_REPEATED, detail=detail)
                kept[member.record.trial] = replace(first, record=_with(first.record, [repeated]))
    return list(kept.values())


def _with_what_was_not_tried(members: Sequence[Member]) -> list[Member]:
    warnings = fairness_warnings([member.record for member in members])
    return [replace(member, record=_with(member.record, warnings.get(member.record.trial, []))) for member in members]


def asked_ranks(folder: Path) -> list[int]:
    """The ranks that a folder's sweep was asked for, run or not; none where sweep.toml is missing."""
    try:
        table = tomllib.loads((folder / "sweep.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    grid = table.get("grid", {})
    ranks = grid.get("lora.rank", []) if isinstance(grid, dict) else []
    return [rank for rank in ranks if isinstance(rank, int)]
