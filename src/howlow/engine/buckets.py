"""Batches of few shapes, for a device on which every new shape costs a compilation or a graph.

A row is filled up to one of a few lengths, and its targets to one number for each length. The tokens that fill a row
are a sequence of their own without targets. So losses and gradients are those of the batch as it was laid out.

The shapes come from the schedule itself (`choose_shapes`): as few lengths as keep the padding small, and at most
`MOST_LENGTHS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn import functional as F

from howlow.engine.layouts import Batch, Layout, LossOn, chunks_of, computed_tokens, count_targets
from howlow.engine.prefix_tree import Block, PrefixTree
from howlow.engine.tokens import TokenizedExample

MOST_LENGTHS = 8
LARGEST_PADDING = 0.05
"""The share of filled tokens among all computed ones that is small enough, over the whole schedule."""
_TOKENS = 128  # FlexAttention's blocks have so many
_TARGETS = 64


class Size(NamedTuple):
    """The size of a batch as it is laid out: rows, tokens of a row, and at most so many targets of its predictors.

    Examples that share a predictor and its target count once. So there are no more than tokens, nor than the examples'
    targets together.
    """

    rows: int
    tokens: int
    targets: int


class Bucket(Size):
    """A size up to which batches are filled, with exactly `targets` pairs of a predictor and its target."""

    def holds(self, size: Size) -> bool:
        """Whether a batch of this size can be filled up to this shape."""
        return self.rows == size.rows and self.tokens >= size.tokens and self.targets >= size.targets


@dataclass(frozen=True)
class Buckets:
    """The shapes of a schedule, and the share of its computed tokens that fill them up."""

    shapes: tuple[Bucket, ...]
    padding: float

    def of(self, size: Size) -> Bucket | None:
        """The smallest shape that holds a batch of this size; None where there is none."""
        fitting = [bucket for bucket in self.shapes if bucket.holds(size)]
        return min(fitting, key=lambda bucket: bucket.tokens, default=None)


def size_of(examples: Sequence[TokenizedExample], layout: Layout, sequence_length: int, loss_on: LossOn) -> Size:
    """The size of the examples' batch, without laying it out."""
    return size_with(computed_tokens(examples, layout, sequence_length), examples, layout, loss_on)


def size_with(tokens: int, examples: Sequence[TokenizedExample], layout: Layout, loss_on: LossOn) -> Size:
    """The size of the examples' batch, whose computed tokens are known."""
    rows = len(examples) if layout == "padded" else 1
    return Size(rows, tokens // rows, min(tokens, sum(count_targets(example, loss_on) for example in examples)))


def size_of_batch(batch: Batch) -> Size:
    """The size of a batch as it was laid out."""
    rows, tokens = batch.input_ids.shape
    return Size(rows, tokens, min(batch.computed_tokens, batch.target_tokens))


def choose_shapes(sizes: Sequence[Size], *, fills_rows: bool) -> Buckets:
    """The shapes for batches of these sizes.

    fills_rows: whether rows may be filled up; rows of the layout `padded` are as long as they shall be.
    """
    by_rows: dict[int, list[Size]] = {}
    for size in sizes:
        by_rows.setdefault(size.rows, []).append(size)
    shapes: list[Bucket] = []
    for rows, alike in by_rows.items():
        lengths = [size.tokens for size in alike]
        for tokens in _lengths(lengths) if fills_rows else sorted(set(lengths)):
            below = max((shape.tokens for shape in shapes if shape.rows == rows), default=0)
            inside = [size.targets for size in alike if below < size.tokens <= tokens]
            shapes.append(Bucket(rows, tokens, _rounded(max(inside), _TARGETS)))
    found = Buckets(tuple(shapes), 0.0)
    computed = sum(bucket.rows * bucket.tokens for size in sizes if (bucket := found.of(size)) is not None)
    real = sum(size.rows * size.tokens for size in sizes)
    return replace(found, padding=1 - real / computed if computed else 0.0)


def _lengths(lengths: Sequence[int]) -> list[int]:
    """The fewest lengths whose padding is small enough, else the best `MOST_LENGTHS`; ascending, rounded up."""
    rounded = sorted(_rounded(length, _TOKENS) for length in lengths)
    values = sorted(set(rounded))
    counts = [rounded.count(value) for value in values]
    real = sum(lengths)
    chosen: list[int] = []
    for number in range(1, MOST_LENGTHS + 1):
        computed, chosen = _cheapest(values, counts, number)
        if real >= (1 - LARGEST_PADDING) * computed or number >= len(values):
            break
    return chosen


def _cheapest(values: Sequence[int], counts: Sequence[int], number: int) -> tuple[int, list[int]]:
    """The `number` of the values to which all can be raised with the fewest tokens, and these tokens.

    Dynamic programming over the values: best[i] is the cheapest way in which values[:i] are raised.
    """
    before = [sum(counts[:index]) for index in range(len(values) + 1)]
    best: list[tuple[int, list[int]] | None] = [(0, []), *(None for _ in values)]
    for _ in range(min(number, len(values))):
        further: list[tuple[int, list[int]] | None] = [best[0], *(None for _ in values)]
        for end in range(1, len(values) + 1):
            options = [
                (kept[0] + values[end - 1] * (before[end] - before[start]), [*kept[1], values[end - 1]])
                for start in range(end)
                if (kept := best[start]) is not None
            ]
            further[end] = min(options, default=None)
        best = further
    assert best[-1] is not None, "every value can be raised to the last one"
    return best[-1]


def _rounded(number: int, to: int) -> int:
    return max(1, -(-number // to)) * to


# -- filling a batch up --------------------------------------------------------------------------------------------


def fill(batch: Batch, bucket: Bucket, pad_id: int) -> Batch:
    """The batch, on the host, in the bucket's shape: each pair of a predictor and its target once, with a weight."""
    rows, tokens = batch.input_ids.shape
    missing = bucket.tokens - tokens
    assert rows == bucket.rows, "the bucket was chosen for the batch"
    assert missing == 0 or (rows == 1 and missing > 0), "only a single row is filled up"
    pairs, counts = torch.unique(
        torch.stack([batch.predictors[batch.sources], batch.targets]), dim=1, return_counts=True
    )
    lacking = bucket.targets - pairs.shape[1]
    assert lacking >= 0, "the bucket was chosen for the batch"
    weights, sources = F.pad(counts.float(), (0, lacking)), torch.arange(bucket.targets)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, missing), value=pad_id),
        predictors=F.pad(pairs[0], (0, lacking), value=rows * bucket.tokens - 1),
        targets=F.pad(pairs[1], (0, lacking)),
        sources=sources,
        targets_of=weights,
        weights=weights,
        counted=batch.target_tokens,
        chunks=chunks_of(sources, bucket.targets),
        tree=_filled(batch.tree, missing) if batch.tree is not None else None,
    )


def _filled(tree: PrefixTree, missing: int) -> PrefixTree:
    """The tree with one more root behind it, of the tokens that fill the row up; all at position 0."""
    if not missing:
        return tree
    start = tree.positions.numel()
    end = start + missing
    filler = Block(start, end, (), is_chain=True, longest=missing)
    return PrefixTree(
        F.pad(tree.positions, (0, missing)), F.pad(tree.visible_until, (0, missing), value=end), (*tree.blocks, filler)
    )
