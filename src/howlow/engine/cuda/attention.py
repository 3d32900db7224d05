"""Attention among the tokens of a prefix tree on CUDA: torch's FlexAttention, one kernel that skips masked blocks.

The blocks follow from the tree. Token j is visible to the tokens i with j <= i < visible_until[j]. So a block of keys
is seen by a later block of queries if its largest `visible_until` lies behind the queries' first, and is seen whole if
its smallest lies behind their last. No mask of all pairs of tokens is ever made, and the device is not read.

On a CPU FlexAttention runs uncompiled and computes every score; only tests use it there.
"""

from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from howlow.engine.attention_context import Kind, Limits, UnsupportedError
from howlow.engine.prefix_tree import PrefixTree

BLOCK = 128
MOST_FORMS = 64
"""How often torch may compile the same code in another form: a window, no gradients, a row of one block, and so on.

Beyond its own limit of 8 torch runs what is new uncompiled and says so in a log only. FlexAttention then computes all
scores of a row at once, for which a long row has no memory.
"""
_ONE_KERNEL: Any = {"FORCE_USE_FLEX_ATTENTION": True}
"""For rows shorter than a block torch takes a kernel for decoding. It has no form for heads that share keys in longer
ones of them, and ends in an error."""


class Tables(NamedTuple):
    """Which blocks a row's mask has: `BlockMask`'s own tensors, by queries and by keys."""

    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor


class FlexTreeAttention:
    """A prefix tree whose whole row attends in one call.

    kinds: the kinds whose tables are made at once; those of other kinds are made when a layer asks for them, which
        torch's compiler must not see.
    """

    is_traceable = True

    def __init__(self, tree: PrefixTree, kinds: Collection[Kind] = ()) -> None:
        self._positions, self._visible_until = tree.positions, tree.visible_until
        self._tables = {kind: tables(tree, kind) for kind in kinds}
        self._tree = tree

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """See `AttentionContext`."""
        if limits.dropout:
            raise UnsupportedError("dropout within FlexAttention")
        kind = (limits.window, limits.chunk)
        if kind not in self._tables:
            self._tables[kind] = tables(self._tree, kind)
        # Made here, so that the compiler takes its lengths for those of the row, which differ from batch to batch.
        mask = BlockMask(
            (query.shape[2], key.shape[2]),
            *self._tables[kind],
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=_seen(self._positions, self._visible_until, *kind),
        )
        query, key, value = _as_autocast_casts(query, key, value)
        own_region = query.device.type == "cuda" and not torch.compiler.is_compiling()
        found: Tensor = (_compiled() if own_region else flex_attention)(
            query,
            key,
            value,
            score_mod=None if limits.softcap is None else _capping(limits.softcap),
            block_mask=mask,
            scale=limits.scale,
            kernel_options=_ONE_KERNEL,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return found


def _as_autocast_casts(*parts: Tensor) -> tuple[Tensor, ...]:
    """What autocast does for SDPA; not every release of torch does it for FlexAttention.

    Rotary positions turn queries and keys to fp32 where the hidden states are in fp32; values stay as they are.
    """
    kind = parts[0].device.type
    if not torch.is_autocast_enabled(kind):
        return parts
    return tuple(part.to(torch.get_autocast_dtype(kind)) for part in parts)


def _seen(positions: Tensor, visible_until: Tensor, window: int | None, chunk: int | None) -> Any:
    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = (key <= query) & (query < visible_until[key])
        if window is not None:
            found = found & (positions[query] - positions[key] < window)
        if chunk is not None:
            found = found & (positions[query] // chunk == positions[key] // chunk)
        return found

    return seen


def _capping(cap: float) -> Any:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def tables(tree: PrefixTree, kind: Kind) -> Tables:
    """The blocks of a tree's row, of `BLOCK` tokens each.

    With a window or chunks no block counts as seen whole, and the kernel asks for each pair of tokens.
    """
    some, whole = _blocks(tree.visible_until)
    if kind != (None, None):
        whole = torch.zeros_like(whole)
    partly = some & ~whole
    return Tables(*_indices(partly), *_indices(whole), *_indices(partly.T), *_indices(whole.T))


def _blocks(visible_until: Tensor) -> tuple[Tensor, Tensor]:
    """Which blocks of queries (rows) see some of a block of keys (columns), and which see all of it: bool."""
    length = visible_until.numel()
    count = -(-length // BLOCK)
    missing = count * BLOCK - length
    latest = F.pad(visible_until, (0, missing)).view(count, BLOCK).amax(1)
    earliest = F.pad(visible_until, (0, missing), value=length).view(count, BLOCK).amin(1)
    index = torch.arange(count, device=visible_until.device)
    first, end = index * BLOCK, ((index + 1) * BLOCK).clamp(max=length)
    is_later = index[:, None] > index[None]
    some = (is_later & (latest[None] > first[:, None])) | (index[:, None] == index[None])
    return some, is_later & (earliest[None] >= end[:, None])


def _indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the number of its columns that are set, and these first: (1, 1, rows) and (1, 1, rows, columns)."""
    count = blocks.sum(1, dtype=torch.int32)
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True).to(torch.int32)
    return count[None, None], order[None, None].contiguous()


@cache
def _compiled() -> Any:
    from torch._dynamo import config  # only where something is compiled: it takes a second to load

    # Numbers such as the scale are constants; as variables they are traced first, and again when that fails.
    return config.patch(specialize_float=True, recompile_limit=MOST_FORMS)(torch.compile(flex_attention, dynamic=True))
