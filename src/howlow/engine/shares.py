"""How the examples of one batch are split over the devices of a trial.

Each device takes whole units: groups in the layout `shared`, so that no prefix is computed twice, single examples in
the others. The largest unit goes first, each to the device that has the fewest tokens so far. All devices gather the
layers of the base together, so a device without an example runs one that counts nothing.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from howlow.engine.layouts import Batch
from howlow.engine.tokens import TokenizedExample

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What one device takes of a batch: `rows` are the places of its examples, ascending.

    fillers: how many rows at the end are examples of other devices, whose results count nothing.
    """

    rows: tuple[int, ...]
    fillers: int = 0

    @property
    def counted(self) -> tuple[int, ...]:
        """The rows whose results count."""
        return self.rows[: len(self.rows) - self.fillers]


def shares_of(
    examples: Sequence[TokenizedExample], devices: int, *, keeps_groups: bool, equal: bool = False
) -> tuple[Share, ...]:
    """The share of each device; the first one is never without an example.

    keeps_groups: whether the examples of a group stay on one device. equal: whether all shares have equally many rows.
    """
    if devices == 1:
        return (Share(tuple(range(len(examples)))),)
    units: dict[str | int, list[int]] = {}
    for row, example in enumerate(examples):
        units.setdefault(example.group if keeps_groups else row, []).append(row)
    rows: list[list[int]] = [[] for _ in range(devices)]
    lengths = [0] * devices

    def length(unit: Sequence[int]) -> int:
        return sum(examples[row].length for row in unit)

    for unit in sorted(units.values(), key=length, reverse=True):
        lightest = min(range(devices), key=lambda device: (lengths[device], len(rows[device]), device))
        rows[lightest] += unit
        lengths[lightest] += length(unit)
    most = max(map(len, rows)) if equal else 1
    shortest = min(range(len(examples)), key=lambda row: examples[row].length)
    fillers = [max(0, most - len(own)) for own in rows]
    return tuple(
        Share((*sorted(own), *[shortest] * missing), missing) for own, missing in zip(rows, fillers, strict=True)
    )


def in_order(shares: Sequence[Share], results: Sequence[Sequence[T]]) -> list[T]:
    """The results of all devices, one list a share, in the order of the batch's examples."""
    by_row = {
        row: result
        for share, found in zip(shares, results, strict=True)
        for row, result in zip(share.counted, found[: len(share.counted)], strict=True)
    }
    return [by_row[row] for row in range(len(by_row))]


@dataclass(frozen=True)
class DevicePart(Generic[T]):
    """What one device runs; `counts` is False where it only runs along."""

    batch: T
    counts: bool = True


@dataclass(frozen=True)
class SplitBatch:
    """A training batch over several devices: the leading device's part, the others' pickled, and the sums of all."""

    own: Batch
    others: tuple[bytes, ...]
    samples: int
    tokens: int
    target_tokens: int
    computed_tokens: int


def split_batch(
    examples: Sequence[TokenizedExample],
    devices: int,
    lay_out: Callable[[Sequence[TokenizedExample]], Batch],
    *,
    keeps_groups: bool,
) -> Batch | SplitBatch:
    """Examples laid out for each device; for one device, the batch itself."""
    shares = shares_of(examples, devices, keeps_groups=keeps_groups)
    parts = [DevicePart(lay_out([examples[row] for row in share.rows]), bool(share.counted)) for share in shares]
    if devices == 1:
        return parts[0].batch
    counted = [part.batch for part in parts if part.counts]
    return SplitBatch(
        own=parts[0].batch,
        others=tuple(pickle.dumps(part) for part in parts[1:]),
        samples=sum(batch.samples for batch in counted),
        tokens=sum(batch.tokens for batch in counted),
        target_tokens=sum(batch.target_tokens for batch in counted),
        computed_tokens=sum(part.batch.computed_tokens for part in parts),
    )
