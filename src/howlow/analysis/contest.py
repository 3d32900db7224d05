"""Who takes part in a recommendation: the ranks and the base model whose trials are done, at one setting.

Where a sweep tried several settings that change nothing but quality, each rank has its own (`setting_choice`).

A rank of which a seed diverged takes no part: the seeds that did not diverge would flatter it. Repeats of a seed give
the same scores, so the first stands for all of them.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from howlow.analysis.column import Column
from howlow.analysis.columns import KIND, SWEEP, column_named
from howlow.analysis.comparison import Comparison, Group, Reference, compare, metrics_of
from howlow.analysis.quality_columns import TEXT_WEIGHTS
from howlow.analysis.rows import Results, Trial
from howlow.analysis.setting_choice import SettingChoice, best_setting, differing_axes, is_validated, may_be_chosen
from howlow.errors import UserError


@dataclass(frozen=True)
class Contest:
    """The groups of trials that take part, by rank, each of trials that are done.

    not_done: ranks that take no part, with how their trials ended.
    unfinished: ranks that take part with the seeds that are done, and how the others ended.
    choices: the settings that each rank was given by its validation scores; empty where all have the same.
    """

    comparison: Comparison
    reference: Reference
    metric: Column
    base: Group | None
    ranks: Mapping[int, Group]
    not_done: Mapping[int, str]
    unfinished: Mapping[int, str]
    choices: Mapping[int, SettingChoice] = field(default_factory=dict)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The run directories that the ranks' trials are from: of several sweeps not always the first one."""
        homes = {trial.folder.resolve().parents[1] for group in self.ranks.values() for trial in group.trials}
        given = self.comparison.results.folders
        return tuple(folder for folder in given if folder.resolve() in homes) or given


def contest_of(results: Results, metric: str | None, where: Mapping[str, Any]) -> Contest:
    """Who takes part.

    metric: a column of quality; None: the task's main one. where: values of further grid axes.

    Raises:
        UserError: there are fewer than two ranks to compare, several settings of which none can be chosen by validation
            scores, or no such metric.
    """
    _refuse_unfinished(results)
    comparison, column = compare(results), _metric(results, metric)
    settings = _settings(comparison, column, where)
    chosen, choices = _chosen(comparison, settings, column)
    there = {rank: _done(group, column) for rank, group in chosen.items()}
    ended = {rank: _ended(group) for rank, group in chosen.items()}
    ranks = {rank: group for rank, group in sorted(there.items()) if group and "diverged" not in ended[rank]}
    if len(ranks) < 2:
        raise UserError(_too_few(results, sorted(ranks), ended, column))
    reference = next(one for one in settings if one.is_beside(chosen[max(ranks)]))
    missing = {rank: "not run yet" for rank in results.asked[reference.axes.get(SWEEP.name)] if rank not in ended}
    return Contest(
        comparison,
        reference,
        column,
        _base(comparison, reference, column),
        ranks,
        {rank: words for rank, words in sorted((ended | missing).items()) if rank not in ranks},
        {rank: ended[rank] for rank in ranks if ended[rank]},
        choices,
    )


def _chosen(
    comparison: Comparison, settings: Sequence[Reference], metric: Column
) -> tuple[dict[int, Group], dict[int, SettingChoice]]:
    """The group of each rank, and the settings it was given where there are several."""
    axes, by_rank = differing_axes(settings), defaultdict[int, list[Group]](list)
    for group in comparison.groups:
        if group.rank is not None and any(one.is_beside(group) for one in settings):
            by_rank[group.rank].append(group)
    if not axes:
        return {rank: groups[0] for rank, groups in by_rank.items()}, {}
    best = {rank: best_setting(groups, metric, axes) for rank, groups in by_rank.items()}
    return {rank: group for rank, (group, _) in best.items()}, {
        rank: choice for rank, (_, choice) in sorted(best.items()) if choice is not None
    }


def are_chosen(results: Results) -> bool:
    """Whether all settings that were swept are chosen for each rank by validation scores of the main metric."""
    return judged_apart(results) == [{}]


def judged_apart(results: Results) -> list[Mapping[str, Any]]:
    """The values of the axes that stay a person's choice, at each of which validation chooses the other settings.

    A single empty one where it chooses all of them. None at all where it chooses nothing.
    """
    comparison, metrics = compare(results), metrics_there(results)
    settings = trained_references(comparison)
    differing = differing_axes(settings)
    own = [axis for axis in differing if not may_be_chosen([axis])]
    if not metrics or own == differing or not _are_validated(comparison, settings, metrics[0]):
        return []
    values: list[Mapping[str, Any]] = [{axis: one.axes[axis] for axis in own} for one in settings]
    return list({repr(one): one for one in values}.values())


def _are_validated(comparison: Comparison, settings: Sequence[Reference], metric: Column) -> bool:
    return is_validated([group for group in comparison.groups if any(one.is_beside(group) for one in settings)], metric)


def trained_references(comparison: Comparison) -> list[Reference]:
    """The references of adapters that were trained at their ranks: the settings that a recommendation may be about."""
    return [reference for reference in comparison.references if reference.group.kind == "lora"]


def one_a_seed(group: Group) -> list[Trial]:
    """The first repeat of each seed, in the order of the seeds."""
    found: dict[int, Trial] = {}
    for trial in sorted(group.trials, key=lambda trial: (trial.record.seed, trial.record.repeat)):
        found.setdefault(trial.record.seed, trial)
    return list(found.values())


def _done(group: Group, metric: Column) -> Group | None:
    done = tuple(t for t in group.trials if t.record.status == "done" and t.row[metric.name] is not None)
    return replace(group, trials=done) if done else None


def _ended(group: Group) -> str:
    """How trials that are not done ended: `2 diverged, 1 failed`; empty where all are done."""
    counts = Counter(trial.record.status for trial in group.trials if trial.record.status != "done")
    return ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))


def _base(comparison: Comparison, reference: Reference, metric: Column) -> Group | None:
    """The base model with the same values on the axes that can change it, one trial of it."""
    for group in comparison.groups:
        fits = all(value is None or value == reference.axes[axis] for axis, value in group.axes.items())
        if group.kind == "base" and fits and (done := _done(group, metric)) is not None:
            return replace(done, trials=done.trials[:1])
    return None


def _too_few(results: Results, ranks: Sequence[int], ended: Mapping[int, str], metric: Column) -> str:
    folder = results.folders[0]
    if not ranks:
        return f"{folder}: no rank has a value of {metric.name} without a diverged seed; nothing can be recommended"
    others = "; ".join(f"rank {rank}: {words}" for rank, words in sorted(ended.items()) if words)
    told = f" ({others})" if others else ""
    return f"{folder}: rank {ranks[0]} is the only one that is done{told}; a recommendation compares at least two ranks"


def _refuse_unfinished(results: Results) -> None:
    adapters = [record for record in results.records if record.kind == "lora"]
    folder = results.folders[0]
    if not adapters and any(record.kind == "shrunk" for record in results.records):
        raise UserError(
            f"{folder}: its ranks were cut from a trained adapter, and none was trained; a recommendation compares "
            "trained ranks: howlow sweep with those that a cut serves well"
        )
    if not adapters:
        raise UserError(f"{folder}: no adapter has been trained yet; a recommendation compares at least two ranks")
    if all(record.status != "done" for record in adapters):
        counts = Counter(record.status for record in adapters)
        told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        raise UserError(f"{folder}: no adapter's trial is done ({told}); howlow sweep --retry runs them again")


# -- the metric -----------------------------------------------------------------------------------------------------


def metrics_there(results: Results) -> list[Column]:
    """The columns of quality that adapters have values of and that are known by example, those of the task first."""
    own = metrics_of(results.trials[0].record)
    further = [column for column in map(column_named, TEXT_WEIGHTS) if column not in own]
    rows = [row for row in results.rows if row[KIND.name] == "lora"]
    return [column for column in [*own, *further] if any(row[column.name] is not None for row in rows)]


def _metric(results: Results, name: str | None) -> Column:
    there = metrics_there(results)
    folder, names = results.folders[0], ", ".join(column.name for column in there)
    if not there:
        raise UserError(
            f"{folder}: no trial has a score (random weights have none), so no rank can be recommended; "
            "run a sweep of a pretrained model"
        )
    found = next((column for column in there if name in (None, column.name)), None)
    if found is None:
        task = results.trials[0].record.settings.task.name
        raise UserError(f"--metric {name}: {folder} has no such score; those of its task {task} are: {names}")
    return found


# -- the setting ----------------------------------------------------------------------------------------------------


def _settings(comparison: Comparison, metric: Column, where: Mapping[str, Any]) -> list[Reference]:
    """The settings that take part: one, or several of which validation scores choose for each rank."""
    folder, axes = comparison.results.folders[0], comparison.results.axes
    for axis in where:
        if axis not in axes:
            told = f"its further axes are: {', '.join(axes)}" if axes else "it has no further axis"
            raise UserError(f"--where {axis}: {folder} has no such grid axis; {told}")
    trained = trained_references(comparison)
    found = [one for one in trained if all(_is_value(one.axes[axis], value) for axis, value in where.items())]
    if len(found) == 1:
        return found
    is_choosable = bool(found) and may_be_chosen(differing_axes(found))
    if is_choosable and _are_validated(comparison, found, metric):
        return found
    differing = differing_axes(trained)
    values = {axis: list(dict.fromkeys(str(one.axes[axis]) for one in trained)) for axis in differing}
    told = "; ".join(f"{axis} is {' or '.join(there)}" for axis, there in values.items())
    example = " ".join(f"--where {axis}={there[0]}" for axis, there in values.items())
    problem = "holds several settings" if found else "has no rank that is done at this setting"
    own = "; or set task.validation_examples, by which each rank is given its best one" if is_choosable else ""
    raise UserError(f"{folder}: {problem} ({told}); choose one, such as {example}{own}")


def _is_value(there: Any, asked: Any) -> bool:
    """Whether a value is the one that was asked for: as a number, as it is written, or as TOML writes it."""
    if there == asked or str(there) == str(asked):
        return True
    if isinstance(there, bool):
        return str(asked) == str(there).lower()
    try:
        return isinstance(there, int | float) and float(asked) == there
    except (TypeError, ValueError):
        return False
