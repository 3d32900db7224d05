"""Token sequences in one row: a common prefix is stored once, and one number per token says who may see it.

The sequences are sorted and made into a tree. A *segment* is a run of tokens that belongs to the same sequences; the
segments that continue it are its children. The row holds the segments depth first, each followed by everything below
it. So token j is visible to token i exactly where j <= i < visible_until[j], the end of j's subtree. Positions count
along the path from the root, not along the row. Sequences without a common prefix have roots of their own.

Prefixes may nest to any depth, and are found from the tokens alone. A common prefix shorter than `SMALLEST_SHARED`
tokens gets no segment: it would join its sequences into one subtree, whose attention costs more than is saved.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

SMALLEST_SHARED = 8
LARGEST_BLOCK = 384
"""Siblings with no more tokens than this in all attend in one masked block; larger ones each in a block of its own."""


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) that exactly the sequences `members` share; `row` is their place in the row."""

    start: int
    end: int
    row: int
    parent: int | None
    members: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Consecutive tokens of the row that attend together: to the blocks `ancestors`, and among themselves.

    is_chain: they are plainly causal among themselves; otherwise `PrefixTree.mask` says who sees whom.
    longest: tokens of the longest sequence up to the block's end, ancestors included.
    """

    start: int
    end: int
    ancestors: tuple[int, ...]
    is_chain: bool
    longest: int


@dataclass(frozen=True)
class PrefixTree:
    """Who sees whom in a row.

    positions: (length,) int64, each token's position in its own sequences.
    visible_until: (length,) int64.
    blocks: the row from left to right; a block's ancestors come before it.
    """

    positions: Tensor
    visible_until: Tensor
    blocks: tuple[Block, ...]
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict, compare=False)

    def to(self, device: torch.device) -> "PrefixTree":
        """The same tree on a device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "PrefixTree":
        """The same tree of changed tensors, as on another device."""
        return PrefixTree(change(self.positions), change(self.visible_until), self.blocks)

    def mask(self, index: int, dtype: torch.dtype, window: int | None, chunk: int | None) -> Tensor | None:
        """The mask added to the scores of block `index`: (queries, keys), 0 or -inf; None for plainly causal.

        The keys are those of the ancestors, then the block's own. window: how many positions, its own included, can
        see a key. chunk: only positions in the same chunk can. The mask is kept for the next layer.
        """
        block = self.blocks[index]
        window, chunk = (limit if limit and limit < block.longest else None for limit in (window, chunk))
        if block.is_chain and not block.ancestors and window is None and chunk is None:
            return None
        key = (index, dtype, window, chunk)
        if key not in self._masks:
            self._masks[key] = added_mask(self._seen(block, window, chunk), dtype)
        return self._masks[key]

    def _seen(self, block: Block, window: int | None, chunk: int | None) -> Tensor:
        device = self.positions.device
        parts = [self.blocks[ancestor] for ancestor in block.ancestors] + [block]
        keys = torch.cat([torch.arange(part.start, part.end, device=device) for part in parts])
        queries = torch.arange(block.start, block.end, device=device)[:, None]
        seen = (keys <= queries) & (queries < self.visible_until[keys])
        return within_limits(seen, self.positions[queries], self.positions[keys], window, chunk)


def within_limits(seen: Tensor, here: Tensor, there: Tensor, window: int | None, chunk: int | None) -> Tensor:
    """Of what is seen, what a layer's window and chunk leave; here, there: positions of the queries and of the keys."""
    if window is not None:
        seen = seen & (here - there < window)
    if chunk is not None:
        seen = seen & (here // chunk == there // chunk)
    return seen


def added_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 where a key is seen, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def build_prefix_tree(sequences: Sequence[Sequence[int]], *, share: bool) -> tuple[PrefixTree, Tensor, list[Tensor]]:
    """Put sequences into one row.

    share: whether a common prefix is stored once.

    Returns:
        The tree, the row's token ids (length,), and for each sequence the places of its tokens in the row.
    """
    segments = _segments(sequences, share)
    length = segments[-1].row + segments[-1].end - segments[-1].start
    ids = torch.empty(length, dtype=torch.int64)
    positions = torch.empty(length, dtype=torch.int64)
    places: list[list[Tensor]] = [[] for _ in sequences]
    for segment in segments:
        row = torch.arange(segment.row, segment.row + segment.end - segment.start)
        ids[row] = torch.tensor(sequences[segment.members[0]][segment.start : segment.end], dtype=torch.int64)
        positions[row] = torch.arange(segment.start, segment.end)
        for member in segment.members:
            places[member].append(row)
    ends = _subtree_ends(segments, length)
    visible_until = torch.empty(length, dtype=torch.int64)
    for segment, end in zip(segments, ends, strict=True):
        visible_until[segment.row : segment.row + segment.end - segment.start] = end
    tree = PrefixTree(positions, visible_until, tuple(_blocks(segments, ends)))
    return tree, ids, [torch.cat(parts) for parts in places]


def length_of(sequences: Sequence[Sequence[int]], *, share: bool) -> int:
    """The length of the row that `build_prefix_tree` makes of these sequences, without making it."""
    last = _segments(sequences, share)[-1]
    return last.row + last.end - last.start


def _segments(sequences: Sequence[Sequence[int]], share: bool) -> list[Segment]:
    found: list[Segment] = []
    if share:
        members = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
        _grow(sequences, members, found)
    else:
        for index in range(len(sequences)):
            _append(found, 0, len(sequences[index]), None, [index])
    return found


def _append(found: list[Segment], start: int, end: int, parent: int | None, members: Sequence[int]) -> int:
    row = found[-1].row + found[-1].end - found[-1].start if found else 0
    found.append(Segment(start, end, row, parent, tuple(members)))
    return len(found) - 1


def _grow(sequences: Sequence[Sequence[int]], members: list[int], found: list[Segment]) -> None:
    """Append the segments of the sorted `members`, depth first, without recursion: prefixes nest to any depth.

    An entry that waits: some members, how many of their tokens are placed, how many are known equal, and the parent.
    """
    waiting: list[tuple[list[int], int, int, int | None]] = [(members, 0, 0, None)]
    while waiting:
        members, start, common, parent = waiting.pop()
        first, last = sequences[members[0]], sequences[members[-1]]
        while common < min(len(first), len(last)) and first[common] == last[common]:
            common += 1  # sorted, so all have what the first and the last have in common
        if common > start and (len(members) == 1 or common - start >= SMALLEST_SHARED):
            parent = _append(found, start, common, parent, members)
            start = common
        deeper = []
        for token, run in groupby(members, lambda member: _token(sequences[member], common)):  # noqa: B023
            if token is not None:
                deeper.append((list(run), start, common, parent))
            elif start < common:  # they end here, and come first
                for member in run:
                    _append(found, start, common, parent, [member])
        waiting += reversed(deeper)


def _token(sequence: Sequence[int], place: int) -> int | None:
    return sequence[place] if place < len(sequence) else None


def _subtree_ends(segments: Sequence[Segment], length: int) -> list[int]:
    """The end of each segment's subtree in the row."""
    ends = [segment.row + segment.end - segment.start for segment in segments]
    for index in reversed(range(len(segments))):
        parent = segments[index].parent
        if parent is not None:
            ends[parent] = max(ends[parent], ends[index])
    assert not ends or ends[-1] == length, "the last segment ends the row"
    return ends


def _blocks(segments: Sequence[Segment], ends: Sequence[int]) -> Iterator[Block]:
    children: dict[int | None, list[int]] = {}
    for index, segment in enumerate(segments):
        children.setdefault(segment.parent, []).append(index)
    rows = [segment.row for segment in segments]
    after = [bisect_left(rows, end) for end in ends]  # the first segment after each one's subtree
    waiting: list[tuple[int, tuple[int, ...]]] = [(root, ()) for root in reversed(children.get(None, []))]
    count = 0
    while waiting:
        index, ancestors = waiting.pop()
        segment, family, path = segments[index], children.get(index, []), (*ancestors, count)
        yield Block(segment.row, segment.row + segment.end - segment.start, ancestors, True, segment.end)
        count += 1
        start, end = (segments[family[0]].row, ends[family[-1]]) if family else (0, 0)
        if len(family) > 1 and end - start <= LARGEST_BLOCK:
            longest = max(segments[member].end for member in range(family[0], after[family[-1]]))
            yield Block(start, end, path, False, longest)
            count += 1
        else:
            waiting += [(child, path) for child in reversed(family)]
