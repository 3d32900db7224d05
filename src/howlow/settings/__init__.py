"""What is asked: every setting once, with its default, its unit and its rule.

A sweep is described by one `Settings` value. It is put together from a preset or a TOML file, then flags, then
`--set KEY=VALUE`, later ones winning, and is checked here, at the door: behind it no part of the program meets a
setting that it has to doubt. The `grid` maps dotted settings to lists of values; `expand` turns it into trials.

`schema` holds the fields, `checking` the rules and the messages, `task_rules` what depends on the task, `grid` the
axes and the trials, `sources` the presets, files and flags.
"""

from howlow.settings.grid import TrialKind, TrialPlan, expand, first_difference, resolve, to_toml, united
from howlow.settings.schema import (
    InferenceSettings,
    LoraSettings,
    MeterSettings,
    RunSettings,
    Settings,
    TaskSettings,
    TrainingSettings,
    setting_keys,
)
from howlow.settings.sources import load, merge, parse_assignment, parse_integers, parse_ranks, presets
from howlow.settings.task_rules import TaskRules, check_task, completed

__all__ = [
    "InferenceSettings",
    "LoraSettings",
    "MeterSettings",
    "RunSettings",
    "Settings",
    "TaskRules",
    "TaskSettings",
    "TrainingSettings",
    "TrialKind",
    "TrialPlan",
    "check_task",
    "completed",
    "expand",
    "first_difference",
    "load",
    "merge",
    "parse_assignment",
    "parse_integers",
    "parse_ranks",
    "presets",
    "resolve",
    "setting_keys",
    "to_toml",
    "united",
]
