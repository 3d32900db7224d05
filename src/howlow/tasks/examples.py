"""What an example is, and what scoring gives.

A prompt is `before + context + after`. Where a prompt is too long for the sequence length, only `context` may be cut,
at its end: what comes before it (an instruction) and after it (the question) must stay whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Purpose = Literal["train", "test", "general_text"]
"""What data is for, by the name of the setting in `[task]` that names it."""


@dataclass(frozen=True)
class Example:
    """One prompt and its completion; a *sample* in samples/s is one of these."""

    id: str
    """unique within its data"""
    group: str
    """equal for examples that share a prefix"""
    before: str
    context: str
    """the part of the prompt that may be cut at its end; empty where nothing may"""
    after: str
    completion: str
    """what training teaches to write after the prompt, and what the test's loss is computed on"""
    references: tuple[str, ...] = ()
    """the accepted answers; empty: giving no answer is right

    Loaded as the data hold them. In a prepared example, one that generation cannot write stands as it would write it.
    """
    overlap_keys: tuple[str, ...] = ()
    """texts that must not occur in both the training data and the test data"""
    document: str | None = None
    """equal for examples that are parts of one document (an article), and so not independent; None: as the group"""

    @property
    def prompt(self) -> str:
        """The prompt, uncut."""
        return self.before + self.context + self.after


@dataclass(frozen=True)
class TaskScores:
    """Scores as fractions 0..1, under the names of their columns."""

    per_example: dict[str, dict[str, float]] = field(default_factory=dict)
    """example id -> score's name -> value"""
    overall: dict[str, float] = field(default_factory=dict)
    """score's name -> mean over all examples that have it"""


@dataclass(frozen=True)
class PredictionScores:
    """The scores of a file of predictions: counts, scores as fractions 0..1 (None: nothing to score), and warnings."""

    figures: Mapping[str, int | float | None]
    warnings: tuple[str, ...] = ()
    """each one line"""

    def document(self) -> dict[str, int | float | list[str] | None]:
        """What `howlow score --json` prints."""
        return {**self.figures, "warnings": list(self.warnings)}


def mean_scores(per_example: dict[str, dict[str, float]]) -> TaskScores:
    """The scores of each example, with the mean of each over the examples that have it."""
    values: dict[str, list[float]] = {}
    for scores in per_example.values():
        for name, value in scores.items():
            values.setdefault(name, []).append(value)
    return TaskScores(per_example, {name: sum(found) / len(found) for name, found in values.items()})
