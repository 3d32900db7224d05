"""A fixed time for checks that run one after the other, the most important first.

Each has a share: the least time for which it is worth starting, and the most that it may take. A check may use what
earlier ones have left, but not the least shares of the later ones that fit into the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The time of one check."""

    least_s: float
    most_s: float


def limit_of(name: str, shares: Mapping[str, Share], left_s: float) -> float | None:
    """How long a check may take with so much time left; None where it is not worth starting.

    shares: of all checks, in their order; those before `name` have ended.
    """
    own = shares[name]
    if left_s < own.least_s:
        return None
    names = list(shares)
    kept_s = own.least_s
    for later in names[names.index(name) + 1 :]:
        if kept_s + shares[later].least_s <= left_s:
            kept_s += shares[later].least_s
    return min(own.most_s, left_s - (kept_s - own.least_s))


def planned(shares: Mapping[str, Share], total_s: float) -> dict[str, float | None]:
    """The limit of each check if all take as long as they may; None for those that are then not run."""
    found: dict[str, float | None] = {}
    for name in shares:
        found[name] = limit_of(name, shares, total_s - sum(limit or 0.0 for limit in found.values()))
    return found
