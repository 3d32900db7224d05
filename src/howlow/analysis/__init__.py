"""Records -> figures of trials, means over seeds and repeats, the reference rank and the paper's two distances.

Nothing here formats a number and nothing imports torch. `column` and `columns` hold every fact about a column, `rows`
computes one row a trial from a run directory's records (`energy` its energy and power), `caveats` says which columns
a warning qualifies, and `comparison` relates trials to each other. `uncertainty` says what the error of a figure rests
on, `statistics` has the formulas, and `ratios` gives every ratio its interval.
"""

from howlow.analysis.column import Column
from howlow.analysis.columns import COLUMNS, columns_of
from howlow.analysis.comparison import Comparison, Distances, Group, Reference, compare, distances
from howlow.analysis.ratios import Ratio
from howlow.analysis.rows import Results, Row, Trial, load_results, rows
from howlow.analysis.statistics import Interval, Statistic, statistic

__all__ = [
    "COLUMNS",
    "Column",
    "Comparison",
    "Distances",
    "Group",
    "Interval",
    "Ratio",
    "Reference",
    "Results",
    "Row",
    "Statistic",
    "Trial",
    "columns_of",
    "compare",
    "distances",
    "load_results",
    "rows",
    "statistic",
]
