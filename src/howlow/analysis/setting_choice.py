"""Which settings of a rank take part where a sweep tried several: for each rank those that validate best.

A high rank may look bad because its learning rate or its scaling does not suit it. So each rank is judged by its best
settings. They are chosen by the validation examples (`task.validation_examples`), never by the test: the best of
several test scores would flatter the rank for which more was tried. A setting's value is its mean over seeds. One of
which a seed did not end takes part only where no other setting of the rank ended whole.

Only settings that change nothing but quality are chosen here. Settings that also change what a trial costs, such as the
batch size, stay a person's choice (`--where`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.column import Column
from howlow.analysis.comparison import Group, Reference
from howlow.analysis.quality_columns import VALIDATION
from howlow.settings import effects

SCALING = ("lora.alpha", "lora.scaling")
"""The settings that scale an adapter's update."""


@dataclass(frozen=True)
class SettingChoice:
    """The settings of one rank that validate best: their values, their score there, and among how many."""

    axes: Mapping[str, Any]
    value: float
    tried: int


def differing_axes(settings: Sequence[Reference]) -> list[str]:
    """The further grid axes in which these settings differ."""
    axes = settings[0].axes if settings else {}
    return [axis for axis in axes if len({repr(one.axes[axis]) for one in settings}) > 1]


def may_be_chosen(axes: Sequence[str]) -> bool:
    """Whether all of these axes change nothing but quality."""
    return all(effects().get(axis, frozenset()) == {"quality"} for axis in axes)  # the sweep is an axis, and no setting


def is_validated(groups: Sequence[Group], metric: Column) -> bool:
    """Whether every adapter that is done was scored on validation examples by this metric."""
    column = VALIDATION.get(metric.name)
    done = [trial for group in groups for trial in group.trials if trial.record.status == "done"]
    return column is not None and bool(done) and all(trial.row[column.name] is not None for trial in done)


def best_setting(groups: Sequence[Group], metric: Column, axes: Sequence[str]) -> tuple[Group, SettingChoice | None]:
    """The group of one rank that validates best, and what was chosen; of a rank that never ended, any group.

    groups: one for each setting that was tried. axes: those in which settings differ.
    """
    column, sign = VALIDATION[metric.name], 1.0 if metric.better == "higher" else -1.0
    ended = [group for group in groups if set(group.status_counts) == {"done"}]
    values = [(group, mean) for group in ended or groups if (mean := group.mean(column)) is not None]
    if not values:
        return groups[0], None
    chosen, value = max(values, key=lambda pair: sign * pair[1])
    return chosen, SettingChoice({axis: chosen.axes[axis] for axis in axes}, value, len(groups))
