"""The words of this room: what an example is, and what a task must be able to do.

A prompt is `before + context + after`. Only `context` may be cut, at its end, where a prompt is too long for the
sequence length: what comes before it (an instruction) and after it (the question) must stay whole.

A task is a *module* with the four members of `Task`; the module itself is handed around, there is no class to make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from howlow.settings import TaskSettings

Purpose = Literal["train", "test"]


@dataclass(frozen=True)
class Example:
    """One prompt and its completion; a *sample* in samples/s is one of these."""

    id: str
    """unique within its data"""
    group: str
    """equal for the examples that share a prefix"""
    before: str
    context: str
    """the part of the prompt that may be cut at its end; empty where nothing may"""
    after: str
    completion: str
    """what training teaches to write after the prompt, and what the test's loss is computed on"""
    references: tuple[str, ...] = ()
    """the accepted answers; none: in question answering, the right answer is to give none"""
    overlap_keys: tuple[str, ...] = ()
    """texts that must not occur on both sides, in training and in the test"""

    @property
    def prompt(self) -> str:
        """The prompt, uncut."""
        return self.before + self.context + self.after


@dataclass(frozen=True)
class TaskScores:
    """Scores as fractions 0..1 under the names `exact_match` and `f1`, each there only where the task gives it."""

    per_example: dict[str, dict[str, float]] = field(default_factory=dict)
    """example id -> score's name -> value"""
    overall: dict[str, float] = field(default_factory=dict)
    """score's name -> mean over all examples"""


class Task(Protocol):
    """What a task's module offers."""

    generates: bool
    """whether the test has the model write text (else only its loss on the test's text counts)"""

    def load(self, source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
        """All examples of a file, folder or hub data, in its order; `purpose` picks the hub's default split.

        Raises:
            UserError: the data cannot be read, or is not what the task needs.
        """

    def prediction(self, generated: str) -> str:
        """The text that is scored, from generated text that was already cut at `task.stop`."""

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
        """Score predictions (example id -> text); an example without a prediction counts as wrong."""


def mean_scores(per_example: dict[str, dict[str, float]]) -> TaskScores:
    """The scores of each example, with their means; every example has the same ones."""
    names = next(iter(per_example.values()), {})
    overall = {name: sum(scores[name] for scores in per_example.values()) / len(per_example) for name in names}
    return TaskScores(per_example, overall)
