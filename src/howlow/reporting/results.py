"""results.csv and the JSON document: the same rows under the same keys, values in full precision."""

import csv
import io
import json
from typing import Any

from howlow.analysis.comparison import Comparison
from howlow.analysis.rows import Results


def csv_text(results: Results) -> str:
    """One row a trial; absent is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in results.columns], lineterminator="\n")
    writer.writeheader()
    for row in results.rows:
        writer.writerow({name: _csv_cell(value) for name, value in row.items()})
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict | bool) else value


def document(comparison: Comparison) -> dict[str, Any]:
    """What `howlow report --json` prints; absent is null."""
    results = comparison.results
    return {
        "rows": results.rows,
        "reference_rank": comparison.reference_rank,
        "warnings": results.warnings,
    }


def json_text(comparison: Comparison) -> str:
    """The document in ASCII, which every console can show; a NaN or an infinity in it would be our defect."""
    return json.dumps(document(comparison), indent=1, allow_nan=False)
