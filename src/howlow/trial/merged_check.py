"""Scores of the attached adapter, for a trial whose inference is measured with it merged (`inference.adapter`).

Merging rounds W + s B A to the weights' dtype, so a merged model may write other texts. The scores are always those of
the attached adapter: before it is merged, every batch of the test runs once, unmeasured, and its results are saved in
`attached.jsonl`. The merged model's texts and loss are then compared with these, and the record says how far they
agree.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from howlow.records import MergedRecord, read_lines


def with_merged(batch: dict[str, Any], merged: list[str]) -> Iterator[str]:
    """The attached adapter's predictions of a batch, each with the merged model's text or log-likelihood."""
    for attached, line in zip(batch["predictions"], merged, strict=True):
        other = json.loads(line)
        found = {f"merged_{key}": other[key] for key in ("generated", "log_likelihood") if key in other}
        yield json.dumps(attached | found, ensure_ascii=False)


def agreement(predictions: Path, merged_loss: tuple[float, int]) -> MergedRecord:
    """How far the merged model agrees with the attached one, from the predictions of both."""
    total, targets = merged_loss
    lines = [line for line in read_lines(predictions) if "merged_generated" in line]
    return MergedRecord(
        loss=total / targets if math.isfinite(total) else None,
        texts=len(lines) or None,
        equal_texts=sum(line["generated"] == line["merged_generated"] for line in lines) if lines else None,
    )
