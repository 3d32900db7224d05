"""The bill: what the recommended rank costs, and what the reference rank costs."""

from collections.abc import Iterator
from dataclasses import dataclass

from howlow.analysis.column import Column
from howlow.analysis.columns import ADAPTER_BYTES, TRAIN_BATCH_SIZE
from howlow.analysis.comparison import Comparison, Group, Reference
from howlow.analysis.constraints import INFERENCE_ENERGY, INFERENCE_TIME, PEAK_MEMORIES, TUNING_ENERGY, TUNING_TIME
from howlow.analysis.ratios import Ratio

_BILLED = (
    TUNING_TIME,
    TUNING_ENERGY,
    PEAK_MEMORIES[0],
    ADAPTER_BYTES,
    TRAIN_BATCH_SIZE,
    INFERENCE_TIME,
    INFERENCE_ENERGY,
    PEAK_MEMORIES[1],
)


@dataclass(frozen=True)
class BillItem:
    """A cost of the recommended candidate and of the reference rank, and their ratio where it can be given."""

    column: Column
    value: float
    reference: float
    ratio: Ratio | None


def bill_of(comparison: Comparison, group: Group, reference: Reference) -> Iterator[BillItem]:
    """The items that both have."""
    for column in _BILLED:
        whole = comparison.divisor(reference, group.counted(column), column)
        value, theirs = group.mean(column), None if whole is None else whole.mean(column)
        if value is not None and theirs is not None:
            yield BillItem(column, value, theirs, comparison.ratio_to(reference, group, column))
