"""What must be equal before figures are compared: the one place that says it.

Trials whose identities (`howlow.records.identity`) are equal in the part of quality may be compared in losses and
scores, also across machines. Costs (time, energy, power, memory) are compared only where the part of costs is equal:
the same device and driver, the same energy source, heap and library versions, the same variables that change speed,
the same sources of howlow. Three questions are answered here:

* may these trials stand in one table (`refuse_to_mix`);
* may a sweep continue what its folder holds (`differing_settings`, `refuse_changed`);
* may a machine join a sweep (`refuse_other_machine`).

`between_sweeps` asks the first one of whole sweeps.

The axes of a grid may differ within its sweep, and so may what follows from them. So may the cards of one kind: within
a run directory trials on several devices of one kind stand in one table, and a warning says which ran on another one.
Where trials of one sweep differ in costs alone, for instance because several kinds of machine ran them, the report
compares the quality of all, and costs among those that are alike (`howlow.records.cost_conditions`).
A key that one side does not know
(its trial died early, its record is of an older schema) is not held against it. The hash of howlow's sources is the
exception: where one side lacks it, the costs differ.

A person may accept a difference by its key (`--accept-different KEY`). It is then not refused, and every trial that
differs carries a warning.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from howlow.errors import UserError
from howlow.records.data import DataRecord
from howlow.records.identity import OF_QUALITY, TOLD_BY_FACTS, Identified, facts_of_environment, identity
from howlow.records.schema import Environment, ModelRecord, Record, Resolved
from howlow.records.warnings import Frozen, RecordWarning, WarningKind
from howlow.settings import Settings, effects, keys_affecting, setting_keys

Figures = Literal["quality", "costs"]
COSTS = "costs"
"""Accepts every difference that matters to costs alone."""

_MAY_DIFFER_IN_A_TABLE = ("seed", "lora.rank", "training.batch_size", "data.start_sha256")
"""A trial's place in the grid; the batch: the largest that fits depends on the rank (the paper, section IV.B), and
every table and figure shows where it changes; and the adapter that a shrunk one was cut from: each seed has its own."""
CARD = "environment.device_uuid"
CLOCK = "environment.clock"
"""The time of day, which no record holds and no figure depends on; a worker's must be the sweep's."""
_TABLES = ("environment.versions", "environment.variables", "environment.switches")
"""Keys whose value is a table: each entry is a key of its own, and an entry that is not there is unset."""


@dataclass(frozen=True)
class Difference:
    """A key in which `trial` differs from `other`."""

    key: str
    trial: str
    value: Any
    other: str
    other_value: Any
    figures: frozenset[Figures]

    @property
    def is_of_costs_alone(self) -> bool:
        """Whether quality may still be compared."""
        return self.figures == {"costs"}

    @property
    def warnings(self) -> list[RecordWarning]:
        """What the trial carries where the difference is accepted."""
        kinds = {"quality": WarningKind.QUALITY_NOT_COMPARABLE, "costs": WarningKind.COSTS_NOT_COMPARABLE}
        detail = f"{self.key} is {shown(self.value)}, in {self.other} it is {shown(self.other_value)}"
        return [RecordWarning(kind=kind, detail=detail) for part, kind in kinds.items() if part in self.figures]


# -- what differs ---------------------------------------------------------------------------------------------------


def differences(trials: Sequence[Identified], may_differ: Iterable[str] = ()) -> list[Difference]:
    """Where trials differ, what matters to quality first; `may_differ`: settings that may, with what follows from them.

    A trial is held against the value that most trials have; where none is the most frequent, against the first.
    """
    excused = frozenset(may_differ)
    identities = [identity(trial) for trial in trials]
    of_quality = _expanded([found.quality for found in identities])
    of_costs = _expanded([found.costs for found in identities])
    found = [*_in_part("quality", trials, of_quality, excused), *_in_part("costs", trials, of_costs, excused)]
    return _joined(one for one in found if one.key not in excused)


def _in_part(
    part: Figures, trials: Sequence[Identified], tables: Sequence[Mapping[str, Any]], excused: frozenset[str]
) -> Iterator[Difference]:
    for key in dict.fromkeys(key for table in tables for key in table):
        for known in _alike(key, trials, tables, excused):
            ((usual, _),) = Counter(value for _, value in known).most_common(1)
            other = next(trial for trial, value in known if value == usual)
            for trial, value in known:
                if value != usual:
                    yield Difference(key, trial, value, other, usual, frozenset({part}))


def _alike(
    key: str, trials: Sequence[Identified], tables: Sequence[Mapping[str, Any]], excused: frozenset[str]
) -> Iterable[list[tuple[str, Any]]]:
    """The trials among which a key must be equal: those equal on the axes of the grid that it follows from."""
    axes = sorted(excused.intersection(_follows_from(key)))
    alike: dict[str, list[tuple[str, Any]]] = {}
    for trial, table in zip(trials, tables, strict=True):
        if key in table:
            place = repr([trial.axes.get(axis, trial.settings.get(axis)) for axis in axes])
            alike.setdefault(place, []).append((trial.trial, table[key]))
    return alike.values()


def _joined(found: Iterable[Difference]) -> list[Difference]:
    """The same difference in quality and in costs made one."""
    joined: dict[tuple[str, str], Difference] = {}
    for one in found:
        same = joined.setdefault((one.key, one.trial), one)
        joined[one.key, one.trial] = replace(same, figures=same.figures | one.figures)
    return list(joined.values())


def _expanded(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tables taken apart into their entries; an entry that another trial has and this one lacks is None."""
    entries = {table: dict.fromkeys(entry for part in parts for entry in part.get(table, ())) for table in _TABLES}
    expanded = []
    for part in parts:
        plain = {key: value for key, value in part.items() if key not in _TABLES}
        for table in _TABLES:
            if table in part:
                plain |= {f"{table}.{entry}": part[table].get(entry) for entry in entries[table]}
        expanded.append(plain)
    return expanded


def _follows_from(key: str) -> tuple[str, ...]:
    """The settings that a fact follows from: where one of them is an axis of the grid, the fact may differ."""
    of_model = tuple(name for name in keys_affecting("data") if "." not in name)
    if key.startswith(("model.", "data.model_")):
        return of_model
    if key.startswith("data."):
        return keys_affecting("data")
    if key in ("resolved.layout", "resolved.generation_layout", "resolved.attention_kernel"):
        return keys_affecting("data", "layout")
    decided = {"resolved.precision": ("training.precision",), "resolved.quantization": ("quantization",)}
    return decided.get(key, ())


def differing_settings(then: Settings, now: Settings, except_for: Iterable[str] = ()) -> list[Difference]:
    """The settings in which what is asked for now differs from what was asked for; those that affect nothing may."""
    return [
        Difference(key, "now", now.get(key), "then", then.get(key), _figures_of(key))
        for key in setting_keys()
        if effects()[key] and then.get(key) != now.get(key) and key not in except_for and not _is_told(key, then, now)
    ]


def _is_told(key: str, then: Settings, now: Settings) -> bool:
    """Whether facts stand for a setting: they can where both sides have a value."""
    return key in TOLD_BY_FACTS and None not in (then.get(key), now.get(key))


def _figures_of(key: str) -> frozenset[Figures]:
    return frozenset({"quality", "costs"} if effects()[key] & OF_QUALITY else {"costs"})


def repeats_that_differ(records: Sequence[Record]) -> dict[str, list[RecordWarning]]:
    """A warning for each trial whose scores are not those of its first repeat, although all of it is equal; by name."""
    first: dict[str, Record] = {}
    found: dict[str, list[RecordWarning]] = {}
    for record in sorted(records, key=lambda record: record.repeat):
        if record.status != "done":
            continue
        other = first.setdefault(repr((record.kind, record.rank, record.seed, sorted(record.axes.items()))), record)
        for name in type(record.scores).model_fields:
            value, usual = getattr(record.scores, name), getattr(other.scores, name)
            if value != usual:
                detail = f"{name} is {value!r}, in {other.trial}, with the same seed and data, it is {usual!r}"
                found[record.trial] = [RecordWarning(kind=WarningKind.REPEATS_DIFFER, detail=detail)]
                break
    return found


def _are_cards_of_one_machine(environments: Iterable[Environment | None]) -> bool:
    """Whether all known devices are in one machine: each process saw the others' cards beside its own."""
    known = [one for one in environments if one is not None and one.device_uuid is not None]
    cards = {one.device_uuid for one in known}
    return all(cards <= set(one.cards or ()) for one in known)


# -- refusing -------------------------------------------------------------------------------------------------------


def refuse_to_mix(
    trials: Sequence[Identified], accept_different: Sequence[str] = (), *, is_one_sweep: bool = False
) -> list[Difference]:
    """Refuse trials that were not measured alike; gives the differences that were accepted.

    A sweep's grid axes, and what follows from them, may differ, and with `is_one_sweep` the cards of one machine.

    Raises:
        UserError: names the first key that differs, both values and both trials.
    """
    is_one_machine = is_one_sweep and _are_cards_of_one_machine([trial.environment for trial in trials])
    found = differences(trials, may_differ_in_a_table(trials).union({CARD} if is_one_machine else ()))
    left = not_accepted(found, accept_different)
    if left:
        first, is_of_costs = left[0], all(one.is_of_costs_alone for one in left)
        what = "costs" if is_of_costs else "figures"
        then = "compares their quality alone" if is_of_costs else "compares them anyway"
        raise UserError(
            f"records differ in {first.key}: {first.other} has {shown(first.other_value)}, {first.trial} has "
            f"{shown(first.value)}{further(left)}; {what} measured differently are not compared; "
            f"{flags(left)} {then}, and marks the {what}"
        )
    return found


def may_differ_in_a_table(trials: Iterable[Identified]) -> frozenset[str]:
    """The settings that may differ between trials of one table: their grid axes, seed, rank and batch size."""
    return frozenset(axis for trial in trials for axis in trial.axes).union(_MAY_DIFFER_IN_A_TABLE)


def refuse_changed(then: Identified, now: Identified, accept_different: Sequence[str], where: str) -> None:
    """Refuse to continue a trial, or its sweep, where not everything is as it was when the trial ran.

    Another card of the same kind may go on: a warning says which card ran most of the trials.

    Raises:
        UserError: names `where`, the trial, the first key that differs, and both values.
    """
    left = not_accepted([one for one in changes(then, now) if one.key != CARD], accept_different)
    if left:
        first = left[0]
        raise UserError(
            f"{where}: {_what(first.key)} has changed since {then.trial} was measured: {first.key} was "
            f"{shown(first.other_value)} and is now {shown(first.value)}{further(left)}; "
            f"give another folder, {advice(left)}"
        )


def changes(then: Identified, now: Identified) -> list[Difference]:
    """What is not as it was when a trial ran, of quality and of costs."""
    before, after = identity(then), identity(now)
    parts: dict[Figures, Iterator[tuple[str, Any, Any]]] = {
        "quality": _pairs(before.quality, after.quality),
        "costs": _pairs(before.costs, after.costs),
    }
    return _joined(
        Difference(key, "now", value, then.trial, other, frozenset({part}))
        for part, pairs in parts.items()
        for key, other, value in pairs
    )


def _what(key: str) -> str:
    """What a key is about, in a word."""
    if key.startswith(("model.", "data.model_")):
        return "the model"
    named = {
        "data.start_": "the adapter in lora.start",
        "data.": "the data",
        "environment.code": "howlow's code",
        "environment.": "the machine",
    }
    return next((what for prefix, what in named.items() if key.startswith(prefix)), "what is measured")


def refuse_other_machine(
    then: Environment, now: Environment, accept_different: Sequence[str], where: str, *, is_one_sweep: bool = False
) -> None:
    """Refuse a machine on which a sweep's costs could not be compared with those measured so far.

    With `is_one_sweep` its card may be another one of the same kind, in whichever machine.

    Raises:
        UserError: names `where`, the first key that differs, and both values.
    """
    excused = {CARD} if is_one_sweep or _are_cards_of_one_machine([then, now]) else set()
    pairs = _pairs(facts_of_environment(then), facts_of_environment(now))
    left = _unlike_the_sweep((pair for pair in pairs if pair[0] not in excused), accept_different)
    if left:
        raise UserError(f"{where}: this machine cannot join: {_told(left)}; run it elsewhere, {advice(left)}")


def refuse_other_code(
    then: str, now: str, accept_different: Sequence[str], where: str, revisions: tuple[str | None, str | None]
) -> None:
    """Refuse to join a sweep with other sources of howlow than those that prepared it, given by their hashes.

    revisions: git's commits of the sweep's sources and of these, where they are known.

    Raises:
        UserError: names `where`, the key, and both values.
    """
    pairs = [("environment.code_sha256", then, now)] if then != now else []
    left = _unlike_the_sweep(pairs, accept_different)
    if left:
        there, here = (name or "not known" for name in revisions)
        same = f"run the same version of howlow (commit {there} in the sweep, {here} here)"
        raise UserError(f"{where}: this worker cannot join: {_told(left)}; {same}, {advice(left)}")


def _unlike_the_sweep(pairs: Iterable[tuple[str, Any, Any]], accept_different: Sequence[str]) -> list[Difference]:
    """What differs between a sweep and what would join it, and was not accepted."""
    costs: frozenset[Figures] = frozenset({"costs"})
    return not_accepted(
        [Difference(key, "here", value, "the sweep", other, costs) for key, other, value in pairs], accept_different
    )


def _told(left: Sequence[Difference]) -> str:
    first = left[0]
    is_hash = first.key.endswith("sha256")
    here, there = (str(value)[:12] if is_hash else shown(value) for value in (first.value, first.other_value))
    return f"{first.key} is {here} here, {there} in the sweep{further(left)}"


def _pairs(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    before, after = _expanded([then, now])
    for key, value in before.items():
        if key in after and after[key] != value:
            yield key, value, after[key]


# -- accepting ------------------------------------------------------------------------------------------------------


def not_accepted(found: Sequence[Difference], accept_different: Sequence[str]) -> list[Difference]:
    """The differences that no accepted key covers: a key covers itself and all below it, `costs` all of costs alone.

    Raises:
        UserError: an accepted key does not exist.
    """
    for key in accept_different:
        if not _is_key(key):
            raise UserError(f"--accept-different {key}: there is no such key; {_keys_that_differ(key, found)}")
    return [one for one in found if not any(_covers(key, one) for key in accept_different)]


def _covers(key: str, one: Difference) -> bool:
    return one.is_of_costs_alone if key == COSTS else f"{one.key}.".startswith(f"{key}.")


def _is_key(key: str) -> bool:
    below_tables = key.startswith(tuple(f"{table}." for table in _TABLES))
    return below_tables or any(f"{known}.".startswith(f"{key}.") for known in (COSTS, *_all_keys()))


def _all_keys() -> list[str]:
    records: dict[str, type[Frozen]] = {
        "model": ModelRecord,
        "data": DataRecord,
        "resolved": Resolved,
        "environment": Environment,
    }
    facts = [f"{prefix}.{name}" for prefix, kind in records.items() for name in kind.model_fields]
    return [*setting_keys(), *facts, "energy.source", "energy.devices", CLOCK]


def _keys_that_differ(key: str, found: Sequence[Difference]) -> str:
    if found:
        return f"the keys that differ are {', '.join(dict.fromkeys(one.key for one in found))}"
    near = difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"{COSTS} accepts every difference that matters to costs alone"


def flags(left: Sequence[Difference]) -> str:
    """The flags that accept these differences."""
    keys = list(dict.fromkeys(one.key for one in left if not one.is_of_costs_alone))
    accepted = [*keys, *([COSTS] if any(one.is_of_costs_alone for one in left) else [])]
    return " ".join(f"--accept-different {key}" for key in accepted)


def advice(left: Sequence[Difference]) -> str:
    """How a folder's sweep can be continued in spite of these differences."""
    if all(one.is_of_costs_alone for one in left):
        return f"or {flags(left)}: quality is compared as usual, and the costs are marked"
    return f"or {flags(left)}: the figures are marked"


def further(left: Sequence[Difference]) -> str:
    """The keys that differ apart from the first one, in brackets."""
    keys = list(dict.fromkeys(one.key for one in left))[1:]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f" (also: {', '.join(keys[:3])}{more})" if keys else ""


def shown(value: Any) -> str:
    """A value in a message; of a hash its beginning."""
    text = repr(value)
    is_hash = isinstance(value, str) and len(value) in (40, 64) and set(value) <= set("0123456789abcdef")
    return text[1:13] if is_hash else text
