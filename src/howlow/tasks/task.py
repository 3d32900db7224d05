"""What a task is: one value of the type `Task`, called `TASK`, in a module of its own.

`howlow.tasks` finds every module that has one. Nothing else in the program knows a task by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from howlow.settings import TaskRules, TaskSettings
from howlow.tasks.examples import Example, PredictionScores, Purpose, TaskScores


def _no_scores(examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
    return TaskScores()


@dataclass(frozen=True)
class Task:
    """Everything that the program has to know about a task."""

    about: str
    """what its data is, in one line"""
    metrics: tuple[str, ...]
    """the columns of results.csv that say how well it was learned, the main one first"""
    rules: TaskRules
    """the settings that it takes, their defaults, and the placeholders of its template"""
    load: Callable[[str, TaskSettings, Purpose], list[Example]]
    """(source, settings, purpose) -> all examples of a file, folder or hub data, in its order.

    `purpose` picks the hub's default split. Raises UserError: the data cannot be read, or is not what the task needs.
    """
    generates: bool = True
    """True: examples are prompts with completions, and in the test the model writes text, which is scored.
    False: examples are texts without prompts, and the loss over the test's text is the result."""
    prediction: Callable[[str], str] = str.strip
    """generated text, cut at `task.stop` -> the text that is scored; accepted answers go the same way"""
    cuts_training: bool = False
    """True: a training example that is too long loses the end of its `context`, as a test prompt does; False: it is
    dropped"""
    compares_whole_answers: bool = False
    """True: an accepted answer longer than generation may be is compared whole, as published scores are; False: as far
    as it can be written"""
    score: Callable[[Sequence[Example], Mapping[str, str]], TaskScores] = _no_scores
    """(examples, example id -> prediction) -> scores; an example without a prediction counts as wrong"""
    left_out: Callable[[str, TaskSettings, Purpose], str | None] | None = None
    """(source, settings, purpose) -> in words, what `load` leaves out because of the settings; None: nothing"""
    score_file: Callable[[str, str], PredictionScores] | None = None
    """(data, predictions) -> scores of a file of predictions made elsewhere; None: the task has no answers to score"""
