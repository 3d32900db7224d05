"""Every setting by its dotted name: its description, what it affects, and the keys that follow from that."""

from collections.abc import Iterator
from functools import cache
from typing import Literal

from pydantic.fields import FieldInfo

from howlow.settings.fields import Effect, Section
from howlow.settings.schema import Settings

TrialKind = Literal["lora", "base", "full", "shrunk"]
"""shrunk: the adapter is that of `lora.start`, cut to a smaller rank, whether or not its training then continues."""
_OF_START = ("lora.start", "lora.start_rank", "lora.continue_steps")


def adapts(kind: TrialKind) -> bool:
    """Whether trials of this kind have an adapter."""
    return kind in ("lora", "shrunk")


def trains(kind: TrialKind, settings: Settings) -> bool:
    """Whether a trial of this kind has optimizer steps: `base` never, a shrunk adapter where it is continued."""
    return settings.lora.continue_steps > 0 if kind == "shrunk" else kind != "base"


def _fields() -> Iterator[tuple[str, type[Section], FieldInfo]]:
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from ((f"{name}.{sub}", annotation, inner) for sub, inner in annotation.model_fields.items())
        else:
            yield name, Settings, field


@cache
def setting_keys() -> dict[str, str]:
    """Every setting's dotted name -> its description."""
    return {key: field.description or "" for key, _, field in _fields()}


@cache
def effects() -> dict[str, frozenset[Effect]]:
    """Every setting's dotted name -> what it affects."""
    return {key: frozenset(_declared(key, field)) for key, _, field in _fields()}


def _declared(key: str, field: FieldInfo) -> list[Effect]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), f"{key} declares no effects"
    return extra["affects"]  # type: ignore[return-value]


@cache
def keys_affecting(*asked: Effect) -> tuple[str, ...]:
    """The settings that affect any of these, in the order of the schema."""
    return tuple(key for key, declared in effects().items() if declared.intersection(asked))


@cache
def axis_keys() -> frozenset[str]:
    """The settings that can be an axis of the grid: they affect something and may differ within a sweep."""
    return frozenset(key for key, section, _ in _fields() if effects()[key] and not section.of_whole_sweep)


def concerns(kind: TrialKind, key: str) -> bool:
    """Whether a setting can change a trial of this kind.

    The zero-shot `base` does not train, so of `training` only what changes its data, its layout or how the model runs
    matters to it. Neither `base` nor `full` has an adapter.
    """
    if key in _OF_START:
        return kind == "shrunk"
    if key.startswith("lora."):
        return adapts(kind)
    if kind == "base" and key == "seed":
        return False
    if kind == "base" and key.startswith("training."):
        return not effects()[key].isdisjoint({"data", "layout", "execution"})
    return bool(effects()[key])


def preparation_key(settings: Settings) -> str:
    """Equal for trials that share the prepared data."""
    return settings.digest(keys_affecting("data"))


def layout_key(settings: Settings) -> str:
    """Equal for trials that share a layout; those that differ only in the batch do.

    So the effect of the batch is not mixed with the effect of a layout.
    """
    return settings.digest(keys_affecting("data", "layout"))


def batch_search_keys(searched: Literal["training.batch_size", "inference.batch_size"]) -> tuple[str, ...]:
    """The settings that the largest batch depends on, apart from rank and seed, in which searches help one another.

    The batch of inference does not change the peak of training. Inference runs after fine-tuning in the same process,
    so settings of training count for both.
    """
    own = ("lora.rank", "seed", "training.batch_size", "inference.batch_size")
    keys = (key for key in keys_affecting("data", "memory") if key not in own)
    if searched == "training.batch_size":
        return tuple(key for key in keys if not key.startswith("inference.") or "data" in effects()[key])
    return tuple(keys)
