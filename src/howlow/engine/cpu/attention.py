"""Attention of short blocks on a CPU, as products: P = softmax(s Q K^T + mask), O = P V.

The kernel behind torch's SDPA cuts a block into pieces of 32 queries a head. Their products are too small to run at the
rate of the frozen layers' products. Here all query heads of a key head are one product through oneDNN, or those of all
key heads are one call of BLAS, which takes matrices in batches (`howlow.engine.cpu.gemm` tells which is faster). The
probabilities P are kept for the backward pass, so that it needs four products and not five (Dao et al. 2022, appendix
B.2, without tiles):

    dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(dP * P)),  dQ = s dS K,  dK = s dS^T Q

Queries, keys and values in bf16 are widened: products, P and sums are in fp32, results are rounded to bf16.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from howlow.engine.cpu.gemm import FEWEST_FLOPS, GemmChoice, GemmLibrary, faster, product
from howlow.engine.prefix_tree import Block, PrefixTree

MOST_KEYS = 1024
"""The most keys that a query may see: P then takes about as much memory as a layer's other activations."""
MOST_QUERIES: dict[GemmLibrary, int] = {"onednn": 256, "blas": 128}
"""The most queries in one piece of a causal chain: in a long piece about half of the scores are masked, and short
pieces are many calls. One call of oneDNN is for one key head, one of BLAS for all."""
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


def cut(tree: PrefixTree, window: int | None, chunk: int | None, most_queries: int) -> Pieces:
    """A prefix tree's blocks as pieces; window and chunk are the limits of `PrefixTree.mask`."""
    causal: dict[int, Tensor] = {}
    found: list[Piece] = []
    for index, block in enumerate(tree.blocks):
        mask, length = tree.mask(index, torch.float32, window, chunk), block.end - block.start
        if mask is None:
            if length not in causal:
                causal[length] = torch.full((length, length), -torch.inf).triu_(1)
            mask = causal[length]
        found += _pieces(tree, block, mask, most_queries)
    return Pieces(tuple(found))


def _pieces(tree: PrefixTree, block: Block, mask: Tensor, most_queries: int) -> Iterator[Piece]:
    """The pieces of a block; of a long causal chain each piece sees no further than its own last token."""
    length = block.end - block.start
    parts: list[slice] = []
    for part in (*(tree.blocks[ancestor] for ancestor in block.ancestors), block):
        start = parts.pop().start if parts and parts[-1].stop == part.start else part.start
        parts.append(slice(start, part.end))
    number = -(-length // most_queries) if block.is_chain else 1
    for start, end in pairwise(round(length * step / number) for step in range(number + 1)):
        unseen = length - end if block.is_chain else 0
        keys = (*parts[:-1], slice(parts[-1].start, parts[-1].stop - unseen))
        yield Piece(block.start + start, block.start + end, keys, mask[start:end, : mask.shape[1] - unseen])


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether products can take such tensors: on a CPU, all in bf16, or all in fp32 where nothing rounds them."""
    if query.device.type != "cpu" or not query.dtype == key.dtype == value.dtype:
        return False
    is_rounded = torch.is_autocast_enabled("cpu")  # SDPA rounds what it is given under autocast
    return query.dtype == torch.bfloat16 or (query.dtype == torch.float32 and not is_rounded)


def pays(query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, kernels_kept: int, library: GemmLibrary) -> bool:
    """Whether a row is faster as products, and keeps no more than it may; the shapes are those of `attend`.

    oneDNN compiles a kernel for each shape of a product, three a piece, and keeps the `kernels_kept` latest ones. If a
    row needs more than half of them, each layer would compile its kernels again. BLAS compiles none. The rule reads no
    clock, so that a repeated step gives the same bits.
    """
    kernels = 0 if library == "blas" else (3 if key.shape == value.shape else 6) * pieces.shapes
    heads_a_call = query.shape[1] if library == "blas" else query.shape[1] / key.shape[1]
    flops = 2 * query.shape[3] * pieces.mean_pairs * heads_a_call
    return (
        pieces.most_keys <= MOST_KEYS
        and 2 * kernels <= kernels_kept
        and flops / torch.get_num_threads() >= _FLOPS_A_THREAD
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, scale: float, library: GemmLibrary = "onednn"
) -> Tensor:
    """Attention of a row: (1, heads, tokens, dimension) from keys and values of (1, key heads, tokens, dimension)."""
    found: Tensor = _Products.apply(query, key, value, pieces.every, scale, library)  # type: ignore[no-untyped-call]
    return _by_head(found)  # outside of the function: a model may change it in place, but not a view made within


class _Products(torch.autograd.Function):
    """See the module. Within, queries are (key heads, tokens, query heads of a key head, dimension), all in fp32.

    Autocast would round what a batch of products is given, so it is off.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], scale: float, library: Any
    ) -> Tensor:
        queries, keys, values = _by_key_head(query, key.shape[1], scale), _wide(key[0]), _wide(value[0])
        found = query.new_empty((*queries.transpose(0, 1).shape[:-1], values.shape[-1]))
        multiplied, calls = _LIBRARIES[library].multiplied, _heads_a_call(library, len(keys))
        kept = []
        for piece in pieces:
            rows, seen_keys, seen_values = slice(piece.start, piece.end), _seen(keys, piece), _seen(values, piece)
            for heads in calls:
                scores = multiplied(queries[heads, rows].flatten(1, 2), seen_keys[heads])
                scores.view(len(scores), len(piece.mask), -1, piece.mask.shape[1]).add_(piece.mask[:, None])
                p = torch.softmax(scores, -1)
                of_heads = found[rows, heads].transpose(0, 1)
                of_heads.copy_(multiplied(p, seen_values[heads].transpose(1, 2)).view_as(of_heads))
                if any(ctx.needs_input_grad):
                    kept.append(p)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.pieces, ctx.scale, ctx.library = pieces, scale, library
        return found

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        gradients, chances = _wide(gradient.transpose(0, 1)), iter(kept)
        by, calls = _LIBRARIES[ctx.library], _heads_a_call(ctx.library, len(keys))
        d_queries = queries.new_empty(queries.transpose(0, 1).shape)
        d_keys, d_values = by.zeros(keys), by.zeros(values)
        for piece in ctx.pieces:
            rows, seen_keys, seen_values = slice(piece.start, piece.end), _seen(keys, piece), _seen(values, piece)
            for heads in calls:
                p, q, dy = next(chances), *(part[heads, rows].flatten(1, 2) for part in (queries, gradients))
                _add(d_values[heads], piece, by.summed(dy, p))
                ds = torch._softmax_backward_data(by.multiplied(dy, seen_values[heads]), p, -1, p.dtype)
                _add(d_keys[heads], piece, by.summed(q, ds))
                of_heads = d_queries[rows, heads].transpose(0, 1)
                of_heads.copy_(by.multiplied(ds, seen_keys[heads].transpose(1, 2)).view_as(of_heads))
        dtype = gradient.dtype
        d_key, d_value = (
            part.permute(2, 0, 1).to(dtype, memory_format=torch.contiguous_format).contiguous().transpose(0, 1)[None]
            for part in (d_keys, d_values)
        )
        return _by_head(d_queries.mul_(ctx.scale).to(dtype)), d_key, d_value, None, None, None


class _OneDnn:
    """Products of one key head, in the layouts for which oneDNN makes no copy."""

    @staticmethod
    def multiplied(x: Tensor, weight: Tensor) -> Tensor:
        """x W^T; x: (1, rows, in), W: (1, out, in)."""
        return product(x[0], weight[0])[None]

    @staticmethod
    def summed(rows: Tensor, weights: Tensor) -> Tensor:
        """The sums of rows (1, rows, dimension) with their weights for each key (1, rows, keys), see `zeros`."""
        return product(rows[0].t().contiguous(), weights[0].t())[None]

    @staticmethod
    def zeros(like: Tensor) -> Tensor:
        """Zeros of (heads, dimension, tokens) for a tensor of (heads, tokens, dimension)."""
        return like.new_zeros(like.transpose(1, 2).shape)


class _Blas:
    """The same for several heads at once; BLAS takes turned matrices as they are."""

    @staticmethod
    def multiplied(x: Tensor, weight: Tensor) -> Tensor:
        """x W^T; x: (heads, rows, in), W: (heads, out, in)."""
        return torch.bmm(x, weight.transpose(1, 2))

    @staticmethod
    def summed(rows: Tensor, weights: Tensor) -> Tensor:
        """See `_OneDnn`."""
        return torch.bmm(weights.transpose(1, 2), rows).transpose(1, 2)

    @staticmethod
    def zeros(like: Tensor) -> Tensor:
        """See `_OneDnn`."""
        return torch.zeros_like(like).transpose(1, 2)


_LIBRARIES: dict[GemmLibrary, type[_OneDnn] | type[_Blas]] = {"onednn": _OneDnn, "blas": _Blas}


def _heads_a_call(library: GemmLibrary, heads: int) -> list[slice]:
    """The key heads of each call."""
    return [slice(0, heads)] if library == "blas" else [slice(head, head + 1) for head in range(heads)]


def _wide(part: Tensor) -> Tensor:
    """In fp32, laid out in order."""
    return part.float().contiguous()


def _by_key_head(whole: Tensor, heads: int, scale: float) -> Tensor:
    """(1, all heads, tokens, dimension) times `scale` as (key heads, tokens, heads of each, dimension), in fp32."""
    grouped = whole[0].view(heads, -1, *whole.shape[2:]).transpose(1, 2)
    return torch.mul(grouped, scale, out=grouped.new_empty(grouped.shape, dtype=torch.float32))


def _by_head(whole: Tensor) -> Tensor:
    """(tokens, key heads, heads of each, dimension) -> (1, all heads, tokens, dimension)."""
    return whole.flatten(1, 2).transpose(0, 1)[None]


def _seen(whole: Tensor, piece: Piece) -> Tensor:
    """The keys or values that a piece sees: (key heads, keys, dimension)."""
    parts = [whole[:, part] for part in piece.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add(total: Tensor, piece: Piece, found: Tensor) -> None:
    """Add gradients (heads, dimension, keys) of what a piece sees to those of the row (heads, dimension, tokens)."""
    sizes = [part.stop - part.start for part in piece.keys]
    for part, gradient in zip(piece.keys, torch.split(found, sizes, 2), strict=True):
        total[:, :, part].add_(gradient)


# -- measuring ----------------------------------------------------------------------------------------------------

_TIMED_QUERIES, _TIMED_KEYS = 128, 256
_TIMED_PIECES = 8  # one piece is too short to be timed


@torch.inference_mode()
def choose_attention(
    config: Any, known: Sequence[GemmChoice] = (), library: GemmLibrary | None = None
) -> tuple[GemmChoice, ...]:
    """The library for the products of a model's attention; none where they are too small to be timed.

    config: the model's. known, library: see `howlow.engine.cpu.gemm.choose_gemms`.
    """
    heads: Any = getattr(config, "num_attention_heads", None)
    key_heads: Any = getattr(config, "num_key_value_heads", None) or heads
    if not (isinstance(heads, int) and isinstance(key_heads, int)):
        return ()  # they differ by layer, or have other names: oneDNN computes attention
    dimension: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    rows = _TIMED_QUERIES * heads // key_heads
    if library is not None:
        return (GemmChoice("attention", dimension, _TIMED_KEYS, rows, library),)
    kept = [one for one in known if (one.of, one.in_features) == ("attention", dimension)]
    flops = 2.0 * _TIMED_PIECES * rows * _TIMED_KEYS * dimension * key_heads
    if kept or flops < FEWEST_FLOPS:
        return tuple(kept)
    chance = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn((key_heads, length, dimension), generator=chance) for length in (rows, _TIMED_KEYS))
    found = faster(partial(_pieces_through, "onednn", queries, keys), partial(_pieces_through, "blas", queries, keys))
    gflops = [round(1e-9 * flops / seconds, 1) for seconds in found.seconds]
    return (GemmChoice("attention", dimension, _TIMED_KEYS, rows, found.library, *gflops),)


def _pieces_through(library: GemmLibrary, queries: Tensor, keys: Tensor) -> None:
    for _ in range(_TIMED_PIECES):
        for heads in _heads_a_call(library, len(keys)):
            _LIBRARIES[library].multiplied(queries[heads], keys[heads])
