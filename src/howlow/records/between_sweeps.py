"""In what two sweeps may be compared, so that a report can lay them over one another.

Sweeps of other data or another model are refused, as the trials of one table are. Any other difference leaves both in
the report, each compared within itself: costs need one kind of device under the same conditions, and quality needs the
same settings to be one curve.
"""

from collections.abc import Sequence

from howlow.errors import UserError
from howlow.records.comparability import (
    Difference,
    differences,
    flags,
    further,
    may_differ_in_a_table,
    not_accepted,
    shown,
)
from howlow.records.identity import Identified
from howlow.settings import keys_affecting


def between_sweeps(
    trials: Sequence[Identified], others: Sequence[Identified], accept_different: Sequence[str] = ()
) -> list[Difference]:
    """Where a sweep differs from another one, what matters to quality first; empty where both are one measurement.

    Differences within either of them, such as several cards of one machine, are not asked about.

    Raises:
        UserError: they are of other data or another model; names the first key that differs, and both values.
    """
    both, own = [*others, *trials], {trial.trial for trial in trials}
    left = not_accepted(differences(both, may_differ_in_a_table(both)), accept_different)
    found = [one for one in left if (one.trial in own) != (one.other in own)]
    _refuse_other_data([one for one in found if _is_of_data(one.key)])
    return found


def _is_of_data(key: str) -> bool:
    return key.startswith(("data.", "model.")) or key in keys_affecting("data")


def _refuse_other_data(found: Sequence[Difference]) -> None:
    if found:
        first = found[0]
        raise UserError(
            f"records differ in {first.key}: {first.other} has {shown(first.other_value)}, {first.trial} has "
            f"{shown(first.value)}{further(found)}; sweeps of other data or another model are reported one at a time; "
            f"{flags(found)} shows them together, and marks the figures"
        )
