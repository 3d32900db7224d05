"""Records -> figures of trials, means over seeds, the reference rank and the paper's two distances.

Nothing here formats a number and nothing imports torch. `column` and `columns` hold every fact about a column, `rows`
computes one row a trial from a run directory's records (`energy` its energy and power), `caveats` says which columns
a warning qualifies, and `comparison` relates trials to each other.
"""

from howlow.analysis.column import Column
from howlow.analysis.columns import COLUMNS, columns_of
from howlow.analysis.comparison import Comparison, Distances, Group, Reference, Statistic, compare, distances, statistic
from howlow.analysis.rows import Results, Row, Trial, load_results, rows

__all__ = [
    "COLUMNS",
    "Column",
    "Comparison",
    "Distances",
    "Group",
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
