"""What is asked: every setting once, with its default, its unit, its rule and what it affects.

One `Settings` value describes a sweep. It is put together from a preset or a TOML file, then flags, then
`--set KEY=VALUE`; later sources win. All rules are checked here, so no other part of the program checks a setting. The
`grid` maps dotted settings to lists of values; `expand` turns it into trials.

`fields` holds the kinds of values and the effects, `schema` the settings, `adapter` those of LoRA, `devices` the rules
of trials over several devices, `keys` what derives from effects, `task_rules` what depends on the task, `checking` the
rules and the messages, `grid` the axes and the trials, `sources` the presets and files, `flags` the flags,
`saved_adapter` what a folder with an adapter says of itself.
"""

from howlow.settings.adapter import LoraSettings
from howlow.settings.devices import processes_of, workers_here
from howlow.settings.fields import EFFECTS, Effect
from howlow.settings.flags import table_of_flags
from howlow.settings.grid import TrialPlan, expand, resolve, to_toml, united
from howlow.settings.keys import (
    TrialKind,
    adapts,
    batch_search_keys,
    concerns,
    effects,
    keys_affecting,
    layout_key,
    preparation_key,
    setting_keys,
    trains,
)
from howlow.settings.machines import RunSettings
from howlow.settings.saved_adapter import SavedAdapter, read_saved_adapter
from howlow.settings.schema import (
    InferenceSettings,
    MeterSettings,
    Settings,
    TaskSettings,
    TrainingSettings,
)
from howlow.settings.sources import load, merge, parse_assignment, parse_integers, parse_ranks, presets
from howlow.settings.task_rules import TaskRules, check_task, completed

__all__ = [
    "EFFECTS",
    "Effect",
    "adapts",
    "batch_search_keys",
    "concerns",
    "effects",
    "keys_affecting",
    "layout_key",
    "preparation_key",
    "processes_of",
    "workers_here",
    "InferenceSettings",
    "LoraSettings",
    "MeterSettings",
    "RunSettings",
    "SavedAdapter",
    "Settings",
    "TaskRules",
    "TaskSettings",
    "TrainingSettings",
    "TrialKind",
    "TrialPlan",
    "check_task",
    "completed",
    "expand",
    "load",
    "merge",
    "parse_assignment",
    "parse_integers",
    "parse_ranks",
    "presets",
    "read_saved_adapter",
    "resolve",
    "setting_keys",
    "table_of_flags",
    "to_toml",
    "trains",
    "united",
]
