"""The grid: axes become trials; two grids are united; resolved settings are written as TOML."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import tomlkit
from tomlkit.items import KeyType, SingleKey

from howlow.errors import UserError
from howlow.settings.checking import RANK_AXIS, SEED_AXIS, check_axis, flat, located, located_model, validated
from howlow.settings.keys import TrialKind, adapts, concerns, setting_keys, trains
from howlow.settings.schema import Settings
from howlow.settings.task_rules import TaskRules, check_task, completed, with_other_defaults

_ONE_A_SWEEP = ("task.name", "lora.start", "lora.start_rank")
"""Settings from which the rules or the kinds of all trials follow."""


@dataclass(frozen=True)
class TrialPlan:
    """One point of the grid: its name, what distinguishes it, and its own settings (the grid left empty).

    repeat: which measurement of the point this is, counted from 1.
    """

    name: str
    kind: TrialKind
    rank: int | None
    seed: int
    axes: dict[str, Any]
    settings: Settings
    repeat: int = 1


def resolve(table: Mapping[str, Any], tasks: Mapping[str, TaskRules] | None) -> Settings:
    """Check a merged table and write out what it leaves to the defaults.

    tasks: what each task asks of its settings (`howlow.tasks.task_rules()`). None is for a table that was resolved
    before, such as a sweep.toml: its task was checked then.

    Raises:
        UserError: one line naming the first setting that is wrong, its value and its rule.
    """
    table = dict(table) if tasks is None else with_other_defaults(table, tasks)
    grid = dict(flat(table.get("grid", {}))) if isinstance(table.get("grid", {}), Mapping) else table["grid"]
    if not isinstance(grid, dict):
        raise UserError(f"grid = {grid!r}: a table of setting -> list of values is expected")
    for axis, values in grid.items():
        check_axis(axis, values)
    for axis in _ONE_A_SWEEP:
        if axis in grid:
            raise UserError(f"grid axis {axis}: a sweep has one {axis}; run a sweep for each")
    settings = validated({**table, "grid": grid})
    if "lora.continue_steps" in grid and settings.lora.start is None:
        raise UserError("grid axis lora.continue_steps: it needs lora.start, the adapter to continue")
    grid.setdefault(RANK_AXIS, [settings.lora.rank])
    grid.setdefault(SEED_AXIS, [settings.seed])
    for plan in expand(settings.model_copy(update={"grid": grid})):  # every point of the grid obeys the rules
        _check_batches(plan)
        _check_storage(plan)
        if tasks is not None:
            check_task(plan.settings.task, tasks)
    grid = {axis: _distinct(values) for axis, values in grid.items()}
    plain = {axis: grid[axis] for axis in (RANK_AXIS, SEED_AXIS, *sorted(set(grid) - {RANK_AXIS, SEED_AXIS}))}
    task = settings.task if tasks is None else completed(settings.task, tasks[settings.task.name])
    named = {key: getattr(task, key) for key in ("train", "test", "general_text")}
    places = {key: located(source) for key, source in named.items() if source is not None}
    resolved = settings.model_copy(
        update={"grid": plain, "task": task.model_copy(update=places), "model": located_model(settings.model)}
    )
    if resolved.lora.start is not None:
        lora = resolved.lora.model_copy(update={"start": located(resolved.lora.start)})
        resolved = resolved.model_copy(update={"lora": lora})
    if resolved.tokenizer is not None:
        resolved = resolved.model_copy(update={"tokenizer": located_model(resolved.tokenizer)})
    return resolved


def _check_batches(plan: TrialPlan) -> None:
    """Refuse a step of fewer examples than a batch: it would measure another batch than the one asked for."""
    batch, step = plan.settings.training.batch_size, plan.settings.training.effective_batch_size
    if trains(plan.kind, plan.settings) and step is not None and batch != "max" and step < batch:
        raise UserError(
            f"training.effective_batch_size = {step} is less than training.batch_size = {batch} (trial {plan.name}); "
            f"lower training.batch_size to {step}, or raise training.effective_batch_size"
        )


def _check_storage(plan: TrialPlan) -> None:
    """Refuse to train every weight of a base that is stored as codes."""
    kind = plan.settings.quantization
    if plan.kind == "full" and kind != "none":
        raise UserError(
            f'baselines = ["full"] with quantization = "{kind}": quantised weights are whole-number codes, which no '
            'gradient can change; leave out "full", and run it in a sweep of its own with quantization = "none"'
        )


def _distinct(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]


def expand(settings: Settings) -> list[TrialPlan]:
    """All trials of a sweep: the baselines first, then the grid in its written order; then all of them once more.

    The baselines run for each point of the axes that can change them (`howlow.settings.keys.concerns`). Every trial is
    planned `run.repeats` times.
    """
    points = _points(settings)
    again = range(2, settings.run.repeats + 1)
    return points + [replace(plan, name=f"{plan.name}-repeat={n}", repeat=n) for n in again for plan in points]


def _points(settings: Settings) -> list[TrialPlan]:
    plans: list[TrialPlan] = []
    kinds: list[TrialKind] = [kind for kind in ("base", "full") if kind in settings.baselines]
    kinds.append("lora" if settings.lora.start is None else "shrunk")
    for kind in kinds:
        axes = [axis for axis in settings.grid if concerns(kind, axis)]
        for values in itertools.product(*(settings.grid[axis] for axis in axes)):
            plans.append(_plan(settings, kind, dict(zip(axes, values, strict=True))))
    return plans


def _plan(settings: Settings, kind: TrialKind, point: dict[str, Any]) -> TrialPlan:
    table = settings.model_dump(exclude_none=True)
    table["grid"] = {}
    table["baselines"] = ()
    if kind == "base":
        table["seed"] = 0
    for axis, value in point.items():
        *tables, name = axis.split(".")
        target = table
        for part in tables:
            target = target[part]
        target[name] = value
    own = validated(table)
    rank = own.lora.rank if adapts(kind) else None
    further = {axis: value for axis, value in point.items() if axis not in (RANK_AXIS, SEED_AXIS)}
    stem = [f"{kind if rank is None else f'r{rank:04d}'}-s{own.seed}", *(["shrunk"] if kind == "shrunk" else [])]
    name = "-".join([*stem, *(f"{axis}={_path_safe(value)}" for axis, value in further.items())])
    return TrialPlan(name, kind, rank, own.seed, further, own)


def _path_safe(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    safe = re.sub(r"[^\w.+,-]", "_", text)
    if safe == text and len(safe) <= 40:
        return safe
    return f"{safe[:32]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def to_toml(settings: Settings) -> str:
    """The resolved settings as TOML that gives the same sweep when it is run again; comments name absent ones."""
    document = tomlkit.document()
    document.add(tomlkit.comment("howlow sweep: every setting, defaults written out"))
    tables: dict[str, Any] = {}
    for key in setting_keys():
        if key == "grid":
            continue
        table_name, _, name = key.rpartition(".")
        if table_name and table_name not in tables:
            tables[table_name] = tomlkit.table()
        target = tables[table_name] if table_name else document
        value = settings.get(key)
        if value is None:
            target.add(tomlkit.comment(f"{name} is absent"))
        else:
            target.add(name, list(value) if isinstance(value, tuple) else value)
    grid = tomlkit.table()
    for axis, values in settings.grid.items():
        grid.add(SingleKey(axis, t=KeyType.Basic) if "." in axis else axis, values)
    document.add("grid", grid)
    for name, table in tables.items():
        document.add(name, table)
    return tomlkit.dumps(document)


def united(first: Settings, second: Settings) -> Settings:
    """Two settings of the same sweep with the grid values, the baselines and the repeats of both."""
    grid = {
        axis: list(first.grid[axis]) + [value for value in second.grid[axis] if value not in first.grid[axis]]
        for axis in first.grid
    }
    baselines = tuple(dict.fromkeys((*first.baselines, *second.baselines)))
    run = second.run.model_copy(update={"repeats": max(first.run.repeats, second.run.repeats)})
    return second.model_copy(update={"grid": grid, "baselines": baselines, "run": run})
