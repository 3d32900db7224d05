"""Attention of short blocks on a CPU in fp32, written out as products: P = softmax(s Q K^T + mask), O = P V.

The kernel behind torch's SDPA cuts a block into pieces of 32 queries a head, whose products are so small that they run
at a quarter of the rate of the frozen layers'. Here all query heads of a key head are one product through oneDNN
(`howlow.engine.frozen`), and the probabilities P are kept for the backward pass, so that it needs four products and not
five (Dao et al. 2022, appendix B.2, without tiles):

    dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(dP * P)),  dQ = s dS K,  dK = s dS^T Q

Keeping P costs memory with the square of the length, so tokens that see more than `LONGEST` keys are not for this.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from howlow.engine.frozen import product

LONGEST = 512
"""Keys at most. P is then a quarter of what a layer of SmolLM2-135M keeps for its backward pass anyway."""
MOST_QUERIES = 256
"""In one piece of a causal chain, half of whose scores would be masked."""
_FLOPS_A_THREAD = 3_000_000  # with less to do for each thread a product is mostly the call
_KERNELS_OF_A_PIECE = 6  # shapes of products, forward and backward


@dataclass(frozen=True)
class Piece:
    """Queries [start, end) of the row, the parts of the row that they see some of, and what is added to the scores.

    mask: (queries, keys), 0 or -inf.
    """

    start: int
    end: int
    keys: tuple[slice, ...]
    mask: Tensor


def pays(query: Tensor, key: Tensor, pieces: Sequence[Piece]) -> bool:
    """Whether this form is for these tensors: plain fp32 on a CPU, and products that are worth their calls.

    oneDNN compiles a kernel for each shape and keeps the latest ones. Where those of a row are more than half of what
    it keeps, each layer would compile them anew. There is no clock in the rule, so that a repeated step gives the same
    bits.
    """
    if query.device.type != "cpu" or {query.dtype, key.dtype} != {torch.float32}:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    shapes = {piece.mask.shape for piece in pieces}
    if 2 * _KERNELS_OF_A_PIECE * len(shapes) > int(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY") or 1024):
        return False
    pairs = sum(piece.mask.numel() for piece in pieces) / len(pieces)
    flops = 2 * query.shape[3] * pairs * query.shape[1] / key.shape[1]
    return flops / torch.get_num_threads() >= _FLOPS_A_THREAD


def attend(query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scale: float) -> Tensor:
    """Attention of a row: (1, heads, tokens, dimension) from keys and values of (1, key heads, tokens, dimension)."""
    return _WrittenOut.apply(query, key, value, pieces, scale)  # type: ignore[no-any-return, no-untyped-call]


class _WrittenOut(torch.autograd.Function):
    """See the module. Within, queries are (key heads, tokens, query heads of a key head, dimension)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scale: float) -> Tensor:
        queries, keys, values = _by_key_head(query, key.shape[1]), key[0].contiguous(), value[0].contiguous()
        queries *= scale
        found = values.new_empty((*queries.transpose(0, 1).shape[:-1], values.shape[-1]))
        kept = []
        for piece in pieces:
            rows, seen_keys, seen_values = slice(piece.start, piece.end), _seen(keys, piece), _seen(values, piece)
            for head in range(len(keys)):
                scores = product(queries[head, rows].flatten(0, 1), seen_keys[head])
                scores.view(len(piece.mask), -1, piece.mask.shape[1]).add_(piece.mask[:, None])
                kept.append(torch.softmax(scores, -1))
                found[rows, head] = product(kept[-1], seen_values[head].t()).view_as(found[rows, head])
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.pieces, ctx.scale = pieces, scale
        return _by_head(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        gradients, chances = _by_key_head(gradient, len(keys)), iter(kept)
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


def _by_key_head(whole: Tensor, heads: int) -> Tensor:
    """(1, all heads, tokens, dimension) -> a copy of (key heads, tokens, heads of each, dimension)."""
    grouped = whole[0].view(heads, -1, *whole.shape[2:])
    return grouped.transpose(1, 2).clone(memory_format=torch.contiguous_format)


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
