"""From a data set to examples, and from predictions to scores; one file a task.

    source --sources--> rows or text --a task--> examples --selection--> what every trial of the sweep sees
    predictions --a task--> scores

A task is a module here with a value `TASK` (`task` says what it holds). A new task is one new file. Beyond tasks,
`examples` holds the types of data, `sources` finds the files of a source and hands them to `text_files` (JSON, JSONL,
CSV, text) or `tables` (Parquet, Arrow, hub data), which give `rows`. `selection` applies the limits and keeps training
and test apart. `squad_document` and `squad_score` are SQuAD's format and official scores.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from howlow.errors import UserError
from howlow.settings import TaskRules
from howlow.tasks.examples import Example, PredictionScores, Purpose, TaskScores
from howlow.tasks.language_modeling import whole_texts
from howlow.tasks.selection import Selection, select
from howlow.tasks.sources import DataFiles, files_of
from howlow.tasks.task import Task

__all__ = [
    "DataFiles",
    "Example",
    "PredictionScores",
    "Purpose",
    "Selection",
    "Task",
    "TaskScores",
    "files_of",
    "score_predictions",
    "select",
    "task_named",
    "task_rules",
    "tasks",
    "whole_texts",
]


@cache
def tasks() -> Mapping[str, Task]:
    """The name of every task -> the task: the modules of this package that have a `TASK`."""
    modules = {found.name: import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)}
    return {name: module.TASK for name, module in modules.items() if isinstance(getattr(module, "TASK", None), Task)}


def task_rules() -> dict[str, TaskRules]:
    """The name of every task -> what it asks of its settings, as `howlow.settings.load` wants it."""
    return {name: task.rules for name, task in tasks().items()}


def score_predictions(name: str, data: str, predictions: str) -> PredictionScores:
    """Score a file of predictions made elsewhere, `{example id: text}` in JSON, with the scores of a task.

    Raises:
        UserError: there is no such task, it has no answers to score, or a file is not what it should be.
    """
    score_file = task_named(name).score_file
    if score_file is None:
        able = ", ".join(other for other, task in tasks().items() if task.score_file is not None)
        raise UserError(f"the task {name} has no answers to score; tasks that have: {able}")
    return score_file(data, predictions)


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is no such task.
    """
    if name not in tasks():
        raise UserError(f"there is no task {name!r}; the tasks are: {', '.join(tasks())}")
    return tasks()[name]
