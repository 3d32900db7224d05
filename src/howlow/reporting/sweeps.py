"""Several sweeps, or several kinds of machine, in one report: which there are, and which figures are not compared."""

from collections.abc import Iterable, Iterator
from typing import Any

from howlow.analysis.columns import COLUMNS, SWEEP, TRIAL
from howlow.analysis.comparison import Comparison, Group, Reference
from howlow.analysis.one_table import Apart
from howlow.analysis.rows import Results, Trial
from howlow.records import CostConditions, Difference
from howlow.records.comparability import further, shown
from howlow.reporting import formatting

_MOST_TRIALS = 4
_A_COST = next(column for column in COLUMNS if column.is_cost)


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


# -- conditions of costs --------------------------------------------------------------------------------------------


def conditions_lines(comparison: Comparison) -> list[str]:
    """One line for each of the conditions under which costs were measured, where a sweep has several."""
    several = [alike for alike in comparison.results.conditions if len(alike) > 1]
    return [line for alike in several for line in _alike_lines(comparison, alike)]


def _alike_lines(comparison: Comparison, alike: tuple[CostConditions, ...]) -> Iterator[str]:
    for one in alike[1:]:
        first, names = one.differences[0], formatting.listed(list(one.trials), _MOST_TRIALS)
        yield (
            f"costs of {names} are divided only by those measured alike{_rank_words(comparison, one)}: {first.key} is "
            f"{shown(first.value)}, of most trials it is {shown(first.other_value)}{further(one.differences)}"
        )
    if words := _rank_words(comparison, alike[0]):
        yield f"costs of the other trials are divided by those measured alike{words}"


def _rank_words(comparison: Comparison, alike: CostConditions) -> str:
    """The rank that costs are divided by, where it is not that of the quality."""
    results = comparison.results
    is_one = len(results.conditions) == 1  # else trials bear their sweeps' names
    own = [one for one in results.trials if is_one or one.row[TRIAL.name] in alike.trials]
    own = [one for one in own if one.conditions == alike.number]
    ranks = {reference.rank: _costs_rank(comparison, reference, own) for reference in comparison.references}
    told = sorted({rank for quality, rank in ranks.items() if rank is not None and rank != quality})
    return f" (relative to rank {', '.join(map(str, told))})" if told else ""


def _costs_rank(comparison: Comparison, reference: Reference, own: list[Trial]) -> int | None:
    whole = comparison.divisor(reference, own, _A_COST)
    return None if whole is None else whole.rank


def conditions_name(results: Results, number: int) -> str:
    """A short name of the conditions of a number: what differs from those of most trials; empty for these."""
    found = [one for alike in results.conditions for one in alike if number and one.number == number]
    firsts = dict.fromkeys(f"{one.differences[0].key} {shown(one.differences[0].value)}" for one in found)
    return ", ".join(firsts)


def sweeps_document(results: Results) -> dict[str, Any]:
    """What `howlow report --json` adds where there are several sweeps, or several conditions of costs."""
    conditions = {"conditions": _conditions(results)} if any(len(alike) > 1 for alike in results.conditions) else {}
    if not results.has_sweeps:
        return conditions
    return conditions | {
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


def _conditions(results: Results) -> list[dict[str, Any]]:
    return [
        {"number": one.number, "trials": list(one.trials), "differences": [_difference(d) for d in one.differences]}
        for alike in results.conditions
        for one in alike
    ]


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
