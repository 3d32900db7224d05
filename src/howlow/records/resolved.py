"""What is decided for a trial before its process starts: layout, batch sizes, heap."""

from collections.abc import Sequence

from howlow.records.memory import BatchSearch
from howlow.records.schema import HeapMode, LayoutChoice, Resolved
from howlow.settings import Settings, TrialKind, trains


def resolved_before(
    kind: TrialKind, settings: Settings, layout: LayoutChoice, searches: Sequence[BatchSearch], heap: HeapMode
) -> Resolved:
    """What a trial's process is given; the process adds what it decides itself (`howlow.trial.loading`)."""
    return Resolved(
        layout=layout.layout,
        generation_layout=layout.generation or layout.layout,
        train_batch_size=batch_of(settings, searches, "training.batch_size") if trains(kind, settings) else None,
        inference_batch_size=batch_of(settings, searches, "inference.batch_size"),
        heap=heap,
        gemms=None if kind == "full" else (layout.gemms or None),  # where the base trains, none of it is frozen
        graphed=False,
        quantization=settings.quantization,
    )


def batch_of(settings: Settings, searches: Sequence[BatchSearch], setting: str) -> int | None:
    """The batch size that was asked for or, for "max", found; None where none was found."""
    found = [search.batch for search in searches if search.setting == setting]
    asked = found[0] if found else settings.get(setting)
    return asked if isinstance(asked, int) else None
