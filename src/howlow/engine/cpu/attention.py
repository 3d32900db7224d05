"""Attention of short blocks on a CPU in fp32, as products: P = softmax(s Q K^T + mask), O = P V.

The kernel behind torch's SDPA cuts a block into pieces of 32 queries a head. Their products are too small to run at the
rate of the frozen layers' products. Here all query heads of a key head are one product through oneDNN
(`howlow.engine.cpu.gemm`). The probabilities P are kept for the backward pass, so that it needs four products and not
five (Dao et al. 2022, appendix B.2, without tiles):

    dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(dP * P)),  dQ = s dS K,  dK = s dS^T Q
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from howlow.engine.cpu.gemm import product
from howlow.engine.prefix_tree import Block, PrefixTree

MOST_KEYS = 1024
"""The most keys that a query may see: P then takes about as much memory as a layer's other activations."""
MOST_QUERIES = 256
"""The most queries in one piece of a causal chain; in a longer piece about half of the scores would be masked."""
FEWEST_KEPT = 128
"""A process that keeps fewer compiled kernels has bounded memory, and does not use products (`howlow.memory.heap`).

There the memory that batches take has to grow evenly, and must not jump from one form of attention to the other.
"""
_FLOPS_A_THREAD = 3_000_000  # with less work for each thread a product's calls cost more than it saves


@dataclass(frozen=True)
class Piece:
    """Queries [start, end) of the row, the parts of the row that hold their keys, and the mask added to the scores.

    mask: (queries, keys), 0 or -inf.
    """

    start: int
    end: int
    keys: tuple[slice, ...]
    mask: Tensor


@dataclass(frozen=True)
class Pieces:
    """A row's pieces, in which each token is a query once, and the figures that decide whether products pay."""

    every: tuple[Piece, ...]

    @cached_property
    def most_keys(self) -> int:
        """The most keys of a piece."""
        return max(piece.mask.shape[1] for piece in self.every)

    @cached_property
    def mean_pairs(self) -> float:
        """Queries times keys of a piece, on average: the saving grows with them, the cost does not."""
        return sum(piece.mask.numel() for piece in self.every) / len(self.every)

    @cached_property
    def shapes(self) -> int:
        """The number of different shapes."""
        return len({piece.mask.shape for piece in self.every})


def cut(tree: PrefixTree, window: int | None, chunk: int | None) -> Pieces:
    """A prefix tree's blocks as pieces; the limits are those of `PrefixTree.mask`."""
    causal: dict[int, Tensor] = {}
    found: list[Piece] = []
    for index, block in enumerate(tree.blocks):
        mask, length = tree.mask(index, torch.float32, window, chunk), block.end - block.start
        if mask is None:
            if length not in causal:
                causal[length] = torch.full((length, length), -torch.inf).triu_(1)
            mask = causal[length]
        found += _pieces(tree, block, mask)
    return Pieces(tuple(found))


def _pieces(tree: PrefixTree, block: Block, mask: Tensor) -> Iterator[Piece]:
    """The pieces of a block; of a long causal chain each piece sees no further than its own last token."""
    length = block.end - block.start
    parts: list[slice] = []
    for part in (*(tree.blocks[ancestor] for ancestor in block.ancestors), block):
        start = parts.pop().start if parts and parts[-1].stop == part.start else part.start
        parts.append(slice(start, part.end))
    number = -(-length // MOST_QUERIES) if block.is_chain else 1
    for start, end in pairwise(round(length * step / number) for step in range(number + 1)):
        unseen = length - end if block.is_chain else 0
        keys = (*parts[:-1], slice(parts[-1].start, parts[-1].stop - unseen))
        yield Piece(block.start + start, block.start + end, keys, mask[start:end, : mask.shape[1] - unseen])


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether products can take such tensors: all of them in fp32, on a CPU."""
    return query.device.type == "cpu" and query.dtype == key.dtype == value.dtype == torch.float32


def pays(query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, kernels_kept: int) -> bool:
    """Whether a row is faster as products, and keeps no more than it may; the shapes are those of `attend`.

    oneDNN compiles a kernel for each shape of a product, three a piece, and keeps the `kernels_kept` latest ones. If a
    row needs more than half of them, each layer would compile its kernels again. The rule reads no clock, so that a
    repeated step gives the same bits.
    """
    kernels = (3 if key.shape == value.shape else 6) * pieces.shapes
    flops = 2 * query.shape[3] * pieces.mean_pairs * query.shape[1] / key.shape[1]
    return (
        pieces.most_keys <= MOST_KEYS
        and 2 * kernels <= kernels_kept
        and flops / torch.get_num_threads() >= _FLOPS_A_THREAD
    )


def attend(query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, scale: float) -> Tensor:
    """Attention of a row: (1, heads, tokens, dimension) from keys and values of (1, key heads, tokens, dimension)."""
    found: Tensor = _Products.apply(query, key, value, pieces.every, scale)  # type: ignore[no-untyped-call]
    return _by_head(
        found
    )  # outside of the function: a model may change its result in place, but not a view made within


class _Products(torch.autograd.Function):
    """See the module. Within, queries are (key heads, tokens, query heads of a key head, dimension)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], scale: float) -> Tensor:
        queries, keys, values = _by_key_head(query, key.shape[1], scale), key[0].contiguous(), value[0].contiguous()
        found = values.new_empty((*queries.transpose(0, 1).shape[:-1], values.shape[-1]))
        kept = []
        for piece in pieces:
            rows, seen_keys, seen_values = slice(piece.start, piece.end), _seen(keys, piece), _seen(values, piece)
            for head in range(len(keys)):
                scores = product(queries[head, rows].flatten(0, 1), seen_keys[head])
                scores.view(len(piece.mask), -1, piece.mask.shape[1]).add_(piece.mask[:, None])
                p = torch.softmax(scores, -1)
                found[rows, head] = product(p, seen_values[head].t()).view_as(found[rows, head])
                if any(ctx.needs_input_grad):
                    kept.append(p)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.pieces, ctx.scale = pieces, scale
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        gradients, chances = gradient.transpose(0, 1).contiguous(), iter(kept)
        d_queries = queries.new_empty(queries.transpose(0, 1).shape)
        d_keys, d_values = (part.new_zeros(part.transpose(1, 2).shape) for part in (keys, values))
        for piece in ctx.pieces:
            rows, seen_keys, seen_values = slice(piece.start, piece.end), _seen(keys, piece), _seen(values, piece)
            turned, d_turned = _turned(queries[:, rows]), _turned(gradients[:, rows])
            for head in range(len(keys)):
                p, dy = next(chances), gradients[head, rows].flatten(0, 1)
                _add(d_values[head], piece, product(d_turned[head], p.t()))
                ds = torch._softmax_backward_data(product(dy, seen_values[head]), p, -1, p.dtype)
                _add(d_keys[head], piece, product(turned[head], ds.t()))
                d_queries[rows, head] = product(ds, seen_keys[head].t()).view_as(d_queries[rows, head])
        d_key, d_value = (part.permute(2, 0, 1).contiguous().transpose(0, 1)[None] for part in (d_keys, d_values))
        return _by_head(d_queries.mul_(ctx.scale)), d_key, d_value, None, None


def _by_key_head(whole: Tensor, heads: int, scale: float) -> Tensor:
    """(1, all heads, tokens, dimension) times `scale` as (key heads, tokens, heads of each, dimension)."""
    grouped = whole[0].view(heads, -1, *whole.shape[2:]).transpose(1, 2)
    return torch.mul(grouped, scale, out=grouped.new_empty(grouped.shape))


def _by_head(whole: Tensor) -> Tensor:
    """(tokens, key heads, heads of each, dimension) -> (1, all heads, tokens, dimension)."""
    return whole.flatten(1, 2).transpose(0, 1)[None]


def _turned(part: Tensor) -> Tensor:
    """(key heads, tokens, heads of each, dimension) -> (key heads, dimension, tokens * heads of each)."""
    return part.flatten(1, 2).transpose(1, 2).contiguous()


def _seen(whole: Tensor, piece: Piece) -> Tensor:
    """The keys or values that a piece sees: (key heads, keys, dimension)."""
    parts = [whole[:, part] for part in piece.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add(total: Tensor, piece: Piece, found: Tensor) -> None:
    """Add gradients (dimension, keys) of what a piece sees to those of the row (dimension, tokens)."""
    sizes = [part.stop - part.start for part in piece.keys]
    for part, gradient in zip(piece.keys, torch.split(found, sizes, 1), strict=True):
        total[:, part].add_(gradient)
