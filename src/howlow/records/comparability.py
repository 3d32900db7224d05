"""When two records may stand in one table."""

from collections.abc import Mapping, Sequence
from typing import Any

from howlow.errors import UserError
from howlow.records.schema import Record
from howlow.settings import setting_keys

# A trial's own place in the grid, paths whose content the data's hashes stand for, and the batch, which the largest
# that fits makes depend on the rank (the paper, section IV.B): every table and figure shows where it changes.
_MAY_DIFFER = ("grid", "baselines", "seed", "lora.rank", "task.train", "task.test", "training.batch_size")


def _identity(record: Record) -> dict[str, Any]:
    """What must be equal for two records to stand in one table, key -> value."""
    identity: dict[str, Any] = {}
    if record.environment is not None:
        for key in ("device_name", "cpu", "cores", "threads"):
            identity[f"environment.{key}"] = getattr(record.environment, key)
        identity.update({f"versions.{name}": value for name, value in record.environment.versions.items()})
    if record.model is not None:
        for key in ("reference", "weights", "precision", "tokenizer", "total_parameters"):
            identity[f"model.{key}"] = getattr(record.model, key)
    if record.data is not None:
        for key in ("train_sha256", "test_sha256", "model_sha256"):
            identity[f"data.{key}"] = getattr(record.data, key)
    searched = {search.setting for search in record.batch_search}
    for key in setting_keys():
        is_unused = record.kind == "base" and key.startswith(("lora.", "training."))
        value = record.settings.get(key)
        if key in searched:
            value = "max"
        is_open = value == "auto"  # a trial that died before it chose
        if (
            key not in _MAY_DIFFER
            and not key.startswith(("run.", "training.checkpoint"))
            and not is_unused
            and not is_open
        ):
            identity[key] = value
    return identity


# What follows from a setting that is an axis, beside the setting itself.
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "model": ("model.", "data."),
    "tokenizer": ("model.tokenizer", "data."),
    "revision": ("model.", "data."),
    "random_weights": ("model.weights", "data."),
    "task": ("data.",),
    "training.sequence_length": ("data.",),
    "training.precision": ("model.precision",),
    "inference.max_new_tokens": ("data.",),
}


def refuse_to_mix(records: Sequence[Record]) -> None:
    """Refuse records that were not measured alike; a sweep's own grid axes, and what follows from them, may differ.

    Raises:
        UserError: naming the first differing key, both values and both trials.
    """
    axes = {axis for record in records for axis in record.axes}
    follows = tuple(
        key for axis in axes for known, keys in _FOLLOWS.items() if f"{axis}.".startswith(f"{known}.") for key in keys
    )
    seen: dict[str, tuple[str, Any]] = {}
    for record in records:
        for key, value in _identity(record).items():
            trial, first = seen.setdefault(key, (record.trial, value))
            if first != value and key not in axes and not key.startswith(follows or ("\0",)):
                raise UserError(
                    f"records differ in {key}: {trial} has {first!r}, {record.trial} has {value!r}; "
                    "figures measured differently are not compared"
                )
