"""Results of batches that run unmeasured: a file of one line a batch, so that none runs again after an interruption."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow.records import LineWriter, PhaseName, cut_lines, read_lines


@dataclass(frozen=True)
class SavedBatches:
    """The file. A line holds a batch's phase, loss, target_tokens and predictions."""

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
        """The summed negative log-likelihood of the batches' targets, and their number."""
        return summed_loss(self.batches("evaluate"))

    def predictions(self) -> dict[str, str]:
        """The answers, by the examples' ids."""
        return {line["id"]: line["prediction"] for batch in self.batches("generate") for line in batch["predictions"]}


def summed_loss(batches: list[dict[str, Any]]) -> tuple[float, int]:
    """Summed negative log-likelihood and target tokens of batches, from each one's mean and number."""
    scored = [batch for batch in batches if batch["target_tokens"]]  # a batch without targets has no loss
    losses = (math.inf if batch.get("loss") is None else batch["loss"] * batch["target_tokens"] for batch in scored)
    return math.fsum(losses), sum(batch["target_tokens"] for batch in scored)
