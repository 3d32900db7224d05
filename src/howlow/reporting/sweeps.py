"""Several sweeps in one report, in words and for JSON: which there are, and which figures are not compared."""

from collections.abc import Iterable
from typing import Any

from howlow.analysis.columns import SWEEP
from howlow.analysis.comparison import Group
from howlow.analysis.one_table import Apart
from howlow.analysis.rows import Results, Trial
from howlow.records import Difference
from howlow.records.comparability import further, shown
from howlow.reporting import formatting

_MOST_TRIALS = 4


def apart_lines(results: Results) -> list[str]:
    """One line a sweep whose figures are not compared with those of another one, with the reason."""
    return [line for one in results.apart for line in _lines(one)]


def _lines(one: Apart) -> list[str]:
    if not one.differences:
        trials = formatting.listed(list(one.trials), _MOST_TRIALS)
        return [f"{one.sweep} and {one.other} both measured {trials}: both stay, each compared within its own sweep"]
    first = one.differences[0]
    what = "Costs" if all(difference.is_of_costs_alone for difference in one.differences) else "Quality and costs"
    return [
        f"{what} of {one.sweep} are not divided by those of {one.other}: {first.key} is {shown(first.value)} in "
        f"{first.trial} and {shown(first.other_value)} in {first.other}{further(one.differences)}"
    ]


def sweeps_document(results: Results) -> dict[str, Any]:
    """What `howlow report --json` adds where there are several sweeps."""
    if not results.has_sweeps:
        return {}
    return {
        "sweeps": {name: str(results.sweeps[name]) for name in sorted(results.sweeps)},
        "apart": [
            {
                "sweep": one.sweep,
                "other": one.other,
                "differences": [_difference(difference) for difference in one.differences],
                "trials": list(one.trials),
            }
            for one in results.apart
        ],
    }


def _difference(found: Difference) -> dict[str, Any]:
    sides = {"trial": found.trial, "value": found.value, "other": found.other, "other_value": found.other_value}
    return {"key": found.key, **sides, "figures": sorted(found.figures)}


def told_apart(results: Results, by_trial: Iterable[tuple[Trial, str]]) -> str:
    """The texts of trials, each once, with the names of their sweeps where these have different ones."""
    sweeps: dict[str, set[str]] = {}
    for trial, text in by_trial:
        sweeps.setdefault(text, set()).add(trial.row.get(SWEEP.name) or "")
    if len(sweeps) > 1 and results.has_sweeps and len({frozenset(names) for names in sweeps.values()}) > 1:
        return "; ".join(f"{text} (in {' and '.join(sorted(names))})" for text, names in sweeps.items())
    return "; ".join(sweeps)


def table_axes(results: Results) -> tuple[str, ...]:
    """The axes that tables show: the sweep is one wherever there are several."""
    own = (SWEEP.name,) if results.has_sweeps and SWEEP.name not in results.axes else ()
    return (*own, *results.axes)


def axis_cells(results: Results, group: Group) -> tuple[str, ...]:
    """A group's values on these axes; of sweeps that are compared as one, those that the group's trials are from."""
    sweeps = sorted({trial.row[SWEEP.name] for trial in group.trials}) if results.has_sweeps else []
    values = {SWEEP.name: ", ".join(sweeps)} | dict(group.axes)
    return tuple("-" if values[axis] is None else formatting.plain(values[axis]) for axis in table_axes(results))
