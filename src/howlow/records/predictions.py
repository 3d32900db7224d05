"""What `predictions.jsonl` says of each test example, as far as scores and their errors need it; every line is checked.

A line holds an example's scores, or the summed log-likelihood of a text with its numbers of tokens, words and bytes.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from howlow.errors import UserError
from howlow.records.files import read_lines

PREDICTIONS = "predictions.jsonl"
COUNTS = ("tokens", "words", "bytes")
_LARGEST = sys.float_info.max
"""An integer may be larger than any float."""


class ScoredLine(NamedTuple):
    """One example; None: its line does not say."""

    id: str
    cluster: str | None
    scores: Mapping[str, float]
    log_likelihood: float | None
    counts: Mapping[str, int]


def read_scored(folder: Path) -> Iterator[ScoredLine]:
    """The lines of a trial's predictions.

    Raises:
        UserError: a line is damaged or holds another thing than finite numbers; names the file and the line.
    """
    path = folder / PREDICTIONS
    for number, line in enumerate(read_lines(path, {"id": str}), 1):
        scores, likelihood = line.get("scores") or {}, line.get("log_likelihood")
        counts = {name: line[name] for name in COUNTS if line.get(name) is not None}
        if not isinstance(scores, dict) or not all(map(_is_finite, scores.values())):
            raise _damaged(path, number, f"scores are {scores}")
        if likelihood is not None and not _is_finite(likelihood):
            raise _damaged(path, number, f"log_likelihood is {likelihood}")
        if not all(isinstance(count, int) and count >= 0 for count in counts.values()):
            raise _damaged(path, number, f"counts are {counts}")
        cluster = line.get("cluster")
        yield ScoredLine(line["id"], None if cluster is None else str(cluster), scores, likelihood, counts)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _damaged(path: Path, number: int, what: str) -> UserError:
    return UserError(
        f"{path}, line {number}: damaged: {what[:100]}, and finite numbers are expected; remove {path.parent} to run "
        "this trial again"
    )
