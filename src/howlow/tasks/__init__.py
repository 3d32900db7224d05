"""From a data set to examples, and from predictions to scores; one file a task.

    source --sources--> rows or text --a task--> examples --selection--> what every trial of the sweep sees
    predictions --a task--> scores

`examples` holds the types, `sources` reads files and hub data, `selection` applies the limits and keeps training and
test apart. The tasks are `language_modeling`, `question_answering` (with `squad_document`, its format, and
`squad_score`, its official scores) and `completion`. A new task is one new file here and its name in `TaskSettings`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast, get_args

from howlow.errors import UserError
from howlow.settings import TaskSettings
from howlow.tasks.examples import Example, Purpose, Task, TaskScores
from howlow.tasks.selection import Selection, select

if TYPE_CHECKING:  # the type checker's proof that these modules are tasks; nothing is loaded before it is asked for
    from howlow.tasks import completion, language_modeling, question_answering

    _TASK: Task = completion
    _TASK = language_modeling
    _TASK = question_answering

__all__ = ["Example", "Purpose", "Selection", "Task", "TaskScores", "select", "task_named"]


def task_named(name: str) -> Task:
    """The task's module.

    Raises:
        UserError: there is no such task.
    """
    names = get_args(TaskSettings.model_fields["name"].annotation)
    if name not in names:
        raise UserError(f"there is no task {name!r}; the tasks are: {', '.join(names)}")
    return cast(Task, import_module(f"howlow.tasks.{name}"))
