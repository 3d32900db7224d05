"""What the intervals of a report rest on and leave out, and how far repeats of one trial differ, in words."""

import math
from collections.abc import Iterable, Iterator

from howlow.analysis.column import Column
from howlow.analysis.columns import tabulated
from howlow.analysis.comparison import Comparison, Group
from howlow.analysis.ratios import Basis, Ratio
from howlow.analysis.statistics import LEVEL, quantile
from howlow.reporting import formatting

ONE_PROCESS = (
    "intervals of trials that were measured once rest on their own steps and readings and leave out how far two "
    "processes of one trial differ; run.repeats = 3 measures that"
)
TEST_EXAMPLES = "intervals of scores are for other test examples of this kind; those of one seed leave out other seeds"


def ratios_of(comparison: Comparison, columns: Iterable[Column]) -> Iterator[Ratio]:
    """The ratio of every group in every one of these columns."""
    for column in columns:
        if column.is_relative and column.is_number:
            found = (comparison.ratio(group, column) for group in comparison.groups)
            yield from (one for one in found if one is not None)


def error_notes(comparison: Comparison, columns: Iterable[Column], sign: str) -> list[str]:
    """What the errors of the ratios in these columns mean; `sign`: how the table writes them."""
    ratios = list(ratios_of(comparison, columns))
    bases = {one.basis for one in ratios}
    uncertain: set[Basis] = {"processes", "one process", "test examples"}
    told = (
        [f"{sign} {level()} interval; {formatting.NOT_SIGNIFICANT}: that interval holds 1"] if bases & uncertain else []
    )
    notes = {"one process": ONE_PROCESS, "test examples": TEST_EXAMPLES}
    return [*told, *no_error_notes(ratios), *(note for basis, note in notes.items() if basis in bases)]


def no_error_notes(ratios: Iterable[Ratio]) -> list[str]:
    """Why ratios have no error, in one line; empty where all have one."""
    lacks = dict.fromkeys(one.lack for one in ratios if one.lack is not None)
    reasons = [formatting.NO_ERROR_BECAUSE[lack] for lack in lacks]
    return [f"{formatting.NO_ERROR}: {', or '.join(reasons)}"] if reasons else []


def level() -> str:
    """How often an interval holds the truth: `95 %`."""
    return f"{LEVEL * 100:.0f} %"


def averaged_over(comparison: Comparison) -> str:
    """What means are over: `seeds`, `repeats`, `seeds and repeats`; empty where every group is a single trial."""
    kinds = {
        "seeds": any(group.seeds > 1 for group in comparison.groups),
        "repeats": any(group.repeats > 1 for group in comparison.groups),
    }
    return " and ".join(kind for kind, there in kinds.items() if there)


def runs_words(group: Group) -> str | None:
    """`2 seeds`, `3 repeats`, `2 seeds with 3 repeats`; None for a single trial."""
    seeds, repeats = (formatting.counted(group.seeds, "seed"), formatting.counted(group.repeats, "repeat"))
    if group.repeats > 1:
        return f"{seeds} with {repeats}" if group.seeds > 1 else repeats
    return seeds if group.seeds > 1 else None


def repeats_sentence(group: Group) -> str | None:
    """What differences measurements repeated as often as these show and do not; None where nothing was repeated."""
    parts = [words for column in tabulated() if (words := _visible(group, column)) is not None]
    if group.repeats < 2 or not parts:
        return None
    name = group.kind if group.rank is None else f"Rank {group.rank}"
    measured = formatting.counted(len(group.trials), "time")
    differ = formatting.enumerated(parts)
    told = f"Two settings measured as often are told apart if they differ by about {differ}."
    return f"{name} was measured {measured}. {told} What measurements of one setting differ by is not significant."


def _visible(group: Group, column: Column) -> str | None:
    """The difference in a cost that would be significant, by the spread between the processes of this group."""
    found = group.statistic(column)
    is_told = column.phrase is not None and column.table is not None and column.table.in_terminal
    if not is_told or column.is_exact or found is None or not found.deviation or not found.mean:
        return None
    share = found.deviation / found.mean
    visible = math.expm1(min(quantile(found.n - 1) * share * math.sqrt(2 / found.n), 700.0))
    return f"{formatting.significant(visible * 100, 2)} % in {column.phrase}"
