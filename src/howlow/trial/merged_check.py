"""Scores of the attached adapter, for a trial whose inference is measured with it merged (`inference.adapter`).

Merging rounds W + s B A to the weights' dtype, so a merged model may write other texts. The scores are always those of
the attached adapter: before it is merged, every batch of the test runs once, unmeasured, and its results are saved in
`attached.jsonl`. The merged model's texts and loss are then compared with these, and the record says how far they
agree.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow.records import LineWriter, MergedRecord, PhaseName, cut_lines, read_lines


@dataclass(frozen=True)
class Attached:
    """The attached adapter's results on the test, one line a batch: phase, loss, target_tokens, predictions."""

    path: Path

    def add(self, phase: PhaseName, loss: float | None, target_tokens: int, lines: list[str]) -> None:
        """Save a batch's results."""
        writer = LineWriter(self.path)
        predictions = [json.loads(line) for line in lines]
        batch = {"phase": phase, "loss": loss, "target_tokens": target_tokens, "predictions": predictions}
        writer.append(json.dumps(batch, ensure_ascii=False))
        writer.close()

    def batches(self, phase: PhaseName) -> list[dict[str, Any]]:
        """The batches of a phase, in their order."""
        return [line for line in read_lines(self.path) if line["phase"] == phase]

    def cut(self) -> None:
        """Drop a torn last line."""
        cut_lines(self.path, lambda _: True)

    def loss(self) -> tuple[float, int]:
        """The summed negative log-likelihood of the test's targets, and their number."""
        return summed_loss(self.batches("evaluate"))


def with_merged(batch: dict[str, Any], merged: list[str]) -> Iterator[str]:
    """The attached adapter's predictions of a batch, each with the merged model's text or log-likelihood."""
    for attached, line in zip(batch["predictions"], merged, strict=True):
        other = json.loads(line)
        found = {f"merged_{key}": other[key] for key in ("generated", "log_likelihood") if key in other}
        yield json.dumps(attached | found, ensure_ascii=False)


def summed_loss(batches: list[dict[str, Any]]) -> tuple[float, int]:
    """Summed negative log-likelihood and target tokens of batches, from each one's mean and number."""
    scored = [batch for batch in batches if batch["target_tokens"]]  # a batch without targets has no loss
    losses = (math.inf if batch.get("loss") is None else batch["loss"] * batch["target_tokens"] for batch in scored)
    return math.fsum(losses), sum(batch["target_tokens"] for batch in scored)


def agreement(predictions: Path, merged_loss: tuple[float, int]) -> MergedRecord:
    """How far the merged model agrees with the attached one, from the predictions of both."""
    total, targets = merged_loss
    lines = [line for line in read_lines(predictions) if "merged_generated" in line]
    return MergedRecord(
        loss=total / targets if math.isfinite(total) else None,
        texts=len(lines) or None,
        equal_texts=sum(line["generated"] == line["merged_generated"] for line in lines) if lines else None,
    )
