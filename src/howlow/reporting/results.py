"""results.csv and the JSON document: the same rows under the same keys, values in full precision."""

import csv
import io
import json
from typing import Any

from howlow.analysis.column import Column
from howlow.analysis.columns import RANK
from howlow.analysis.comparison import Comparison, Group
from howlow.analysis.rows import Results
from howlow.analysis.statistics import LEVEL, Statistic
from howlow.reporting import formatting
from howlow.reporting.decomposition import decomposition_document
from howlow.reporting.sweeps import sweeps_document


def csv_text(results: Results) -> str:
    """One row a trial; absent is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in results.columns], lineterminator="\n")
    writer.writeheader()
    for row in results.rows:
        writer.writerow({name: plain_cell(value) for name, value in row.items()})
    return text.getvalue()


def plain_cell(value: Any) -> Any:
    """A value that no cell can hold as it is (a list, a truth value) as JSON; any other as it is."""
    return json.dumps(value) if isinstance(value, list | tuple | dict | bool) else value


def document(comparison: Comparison) -> dict[str, Any]:
    """What `howlow report --json` prints; absent is null."""
    results = comparison.results
    return {
        "rows": results.rows,
        "reference_rank": comparison.reference_rank,
        "warnings": results.warnings,
        "level": LEVEL,
        "groups": [_group(comparison, group) for group in comparison.groups],
        "decomposition": decomposition_document(comparison),
        **sweeps_document(results),
    }


def _group(comparison: Comparison, group: Group) -> dict[str, Any]:
    """Trials that differ only in seed and repeat: their means and what these are relative to the reference's."""
    reference = comparison.reference_for(group.trials[0].row)
    columns = [
        column
        for column in comparison.results.columns
        if column.is_number and column.is_relative and (column.table is not None or column.over_steps is not None)
    ]
    return {
        "kind": group.kind,
        RANK.name: group.rank,
        "axes": dict(group.axes),
        "trials": [trial.record.trial for trial in group.trials],
        "reference": [trial.record.trial for trial in reference.group.trials] if reference else [],
        "figures": {
            column.name: _figure(comparison, group, column, found)
            for column in columns
            if (found := group.statistic(column)) is not None
        },
    }


def _figure(comparison: Comparison, group: Group, column: Column, found: Statistic) -> dict[str, Any]:
    """A mean with its interval and its ratio, and where the ratio's error comes from (`basis`) or why it has none."""
    ends, ratio = group.interval(column), comparison.ratio(group, column)
    relative = None
    if ratio is not None:
        why = None if ratio.lack is None else formatting.NO_ERROR_BECAUSE[ratio.lack]
        told = {"significant": ratio.is_significant, "basis": ratio.basis, "no_error_because": why}
        relative = {"value": ratio.value, "low": ratio.low, "high": ratio.high, **told}
    mean = {"mean": found.mean, "low": ends.low, "high": ends.high, "deviation": found.deviation, "n": found.n}
    return {**mean, "relative": relative}


def json_text(comparison: Comparison) -> str:
    """The document in ASCII, which every console can show; a NaN or an infinity in it would be our defect."""
    return json.dumps(document(comparison), indent=1, allow_nan=False)
