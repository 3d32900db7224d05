"""Records -> figures of trials, means over seeds, the reference rank and the paper's two distances.

Nothing here formats a number and nothing imports torch. `columns` says once what a row holds, `statistics` computes
the rows of run directories, `comparison` puts them in relation.
"""

from howlow.analysis.columns import COLUMNS, Column, columns_of
from howlow.analysis.comparison import Comparison, Distances, Group, Reference, Statistic, compare, distances, statistic
from howlow.analysis.rows import Results, Row, Trial, load, rows

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
    "load",
    "rows",
    "statistic",
]
