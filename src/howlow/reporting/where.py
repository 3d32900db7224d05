"""Which trial ran where, for the page: machines, devices, and what ran beside the trials."""

from collections.abc import Sequence
from dataclasses import dataclass

from howlow.records import Record
from howlow.reporting import formatting

_MOST_TRIALS = 24


@dataclass(frozen=True)
class Place:
    """One device of one machine, and the trials that it ran; `beside`: how many of them had company, in words."""

    machine: str
    device: str
    uuid: str
    trials: str
    beside: str


def places_of(records: Sequence[Record]) -> list[Place]:
    """Every device that ran trials, in the order of their names; trials that recorded none are left out."""
    there: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        found = record.environment
        if found is not None:
            key = found.host or "not recorded", found.device_name, found.device_uuid or ""
            there.setdefault(key, []).append(record)
    return [
        Place(*key, formatting.listed([one.trial for one in own], _MOST_TRIALS), _beside(own))
        for key, own in sorted(there.items())
    ]


def _beside(records: Sequence[Record]) -> str:
    """How many trials had company in a phase, and how many were alone by `run.exclusive`."""
    known = [one for one in records if one.neighbours is not None]
    if not known:
        return "not recorded"
    company = sum(any(other.phases for other in one.neighbours or ()) for one in known)
    alone = sum(bool(one.alone) for one in known)
    parts = [f"{company} of {len(records)}" if company else "none"]
    return ", ".join([*parts, *([f"{alone} alone by run.exclusive"] if alone else [])])
