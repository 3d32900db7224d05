"""What a task asks of its settings. Every task says so itself (`howlow.tasks`); the rules are checked here.

`[task]` has settings that some tasks do not take (`unit`, `answerable_only`, ...). Which task takes which, and with
which default, is the task's own matter: no task is known by name here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from howlow.errors import UserError
from howlow.settings.schema import TaskSettings


@dataclass(frozen=True)
class TaskRules:
    """The settings of `[task]` that a task takes although others do not, their defaults, and its template's gaps."""

    takes: tuple[str, ...] = ()
    defaults: Mapping[str, str | bool] | None = None
    """what its settings are where they are absent"""
    placeholders: tuple[str, ...] = ()
    """what `task.template` has to hold, each exactly once"""
    other_defaults: Mapping[str, JsonValue] | None = None
    """dotted settings outside `[task]` -> their default in this task, where it is not the one of all tasks"""


def with_other_defaults(table: Mapping[str, Any], rules: Mapping[str, TaskRules]) -> dict[str, Any]:
    """A merged table with the defaults that its task has for settings outside `[task]`; given values stay.

    What is wrong with the table is left for the checks that follow.
    """
    found, task = dict(table), table.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    own = rules.get(name) if isinstance(name, str) else None
    for key, value in ((own.other_defaults if own else None) or {}).items():
        section, _, setting = key.partition(".")
        if isinstance(found.get(section, {}), Mapping):
            found[section] = {setting: value, **found.get(section, {})}
    return found


def check_task(task: TaskSettings, rules: Mapping[str, TaskRules]) -> None:
    """Refuse a task that does not exist, settings that it does not take, and a template without its placeholders.

    rules: the name of every task -> its rules.

    Raises:
        UserError: naming the setting and what is expected.
    """
    if task.name not in rules:
        raise UserError(f"task.name = {task.name!r}: there is no such task; the tasks are: {', '.join(rules)}")
    for setting in dict.fromkeys(setting for one in rules.values() for setting in one.takes):
        is_given = getattr(task, setting) not in (None, "")
        if is_given and setting not in rules[task.name].takes:
            *others, last = [name for name, one in rules.items() if setting in one.takes]
            owners = f"{', '.join(others)} and {last}" if others else last
            raise UserError(f"task.{setting} belongs to the task {owners}, not to {task.name}; leave it out")
    if task.template and task.template != "chat":
        for placeholder in rules[task.name].placeholders:
            if task.template.count(placeholder) != 1:
                raise UserError(f"task.template must hold {placeholder} exactly once")


def completed(task: TaskSettings, rules: TaskRules) -> TaskSettings:
    """The same settings with the task's own defaults written out."""
    defaults = {setting: value for setting, value in (rules.defaults or {}).items() if getattr(task, setting) is None}
    return task.model_copy(update=defaults)
