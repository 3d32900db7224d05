"""Attention among the tokens of a prefix tree on CUDA: torch's FlexAttention, one kernel that skips masked blocks.

On a CPU FlexAttention runs uncompiled and computes every score; only tests use it there.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from howlow.engine.attention_context import Limits, UnsupportedError
from howlow.engine.prefix_tree import PrefixTree


class FlexTreeAttention:
    """A prefix tree whose whole row attends in one call."""

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._masks: dict[tuple[int | None, int | None], BlockMask] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """See `AttentionContext`."""
        if limits.dropout:
            raise UnsupportedError("dropout within FlexAttention")
        kind = (limits.window, limits.chunk)
        if kind not in self._masks:
            self._masks[kind] = self._block_mask(*kind)
        attention = _compiled() if query.device.type == "cuda" else flex_attention
        found: Tensor = attention(
            query,
            key,
            value,
            score_mod=_capping(limits.softcap) if limits.softcap is not None else None,
            block_mask=self._masks[kind],
            scale=limits.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return found

    def _block_mask(self, window: int | None, chunk: int | None) -> BlockMask:
        positions, visible_until = self._tree.positions, self._tree.visible_until

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            found = (key <= query) & (query < visible_until[key])
            if window is not None:
                found = found & (positions[query] - positions[key] < window)
            if chunk is not None:
                found = found & (positions[query] // chunk == positions[key] // chunk)
            return found

        length = positions.numel()
        return create_block_mask(seen, None, None, length, length, device=str(positions.device))


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capping(cap: float) -> Any:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped
