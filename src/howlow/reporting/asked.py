"""What was run, for the page: model, data, device and training of all trials, not of the first one alone.

Where a fact has several values, each stands there once. Where sweeps differ in it, their names stand behind it.
"""

from collections.abc import Callable, Iterable, Mapping

from howlow.analysis.columns import SWEEP
from howlow.analysis.comparison import Comparison
from howlow.analysis.rows import Results, Trial, layout_of
from howlow.records import Record
from howlow.reporting import formatting
from howlow.reporting.sweeps import told_apart

_MOST_VALUES = 12


def asked_facts(comparison: Comparison) -> Mapping[str, str]:
    """The facts by name."""
    results = comparison.results
    settings = results.records[0].settings
    return {
        "model": _of_sweeps(results, _model) or settings.model,
        "task": settings.task.name,
        "training data": _of_sweeps(results, _training_data) or settings.task.train,
        "test data": _of_sweeps(results, _test_data) or settings.task.test,
        "ranks": formatting.listed([str(rank) for rank in results.asked_ranks], 24) or "none",
        "seeds": formatting.listed([str(seed) for seed in sorted({one.seed for one in results.records})], 12),
        "device": _of_sweeps(results, _device, is_of_each_trial=True) or formatting.ABSENT,
        "training": _training(results),
    }


def _of_sweeps(results: Results, fact: Callable[[Record], str | None], *, is_of_each_trial: bool = False) -> str:
    """A fact of the first trial of each sweep that says it, or of each trial; empty where none does."""
    found: list[tuple[Trial, str]] = []
    seen: set[str | None] = set()
    for trial in results.trials:
        sweep, text = trial.row.get(SWEEP.name), fact(trial.record)
        if text is not None and (is_of_each_trial or sweep not in seen):
            seen.add(sweep)
            found.append((trial, text))
    return told_apart(results, found)


def _model(record: Record) -> str | None:
    if record.model is None:
        return None
    return f"{record.settings.model}, {record.model.total_parameters:,} parameters, {record.model.weights}"


def _training_data(record: Record) -> str | None:
    data, path = record.data, record.settings.task.train
    return None if data is None else f"{path}: {data.train_examples:,} examples in {data.train_groups:,} groups"


def _test_data(record: Record) -> str | None:
    data, path = record.data, record.settings.task.test
    return None if data is None else f"{path}: {data.test_examples:,} examples in {data.test_groups:,} groups"


def _device(record: Record) -> str | None:
    environment = record.environment
    return None if environment is None else f"{environment.device_name} ({environment.device})"


def _training(results: Results) -> str:
    """How adapters were trained; a setting that was swept has all its values."""
    records = [record for record in results.records if record.kind != "base"] or results.records
    parts: Mapping[str, Callable[[Record], object]] = {
        "layout": layout_of,
        "precision": lambda record: record.resolved.precision or record.settings.training.precision,
        "sequence length": lambda record: record.settings.training.sequence_length,
        "learning rate": lambda record: f"{record.settings.training.learning_rate:g}",
    }
    epochs = _values(formatting.counted(record.settings.training.epochs, "epoch") for record in records)
    return ", ".join([*(f"{name} {_values(map(value, records))}" for name, value in parts.items()), epochs])


def _values(values: Iterable[object]) -> str:
    found = list(dict.fromkeys(map(str, values)))
    more = [f"{len(found) - _MOST_VALUES} more"] if len(found) > _MOST_VALUES else []
    return " or ".join([*found[:_MOST_VALUES], *more])
