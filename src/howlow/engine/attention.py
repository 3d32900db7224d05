"""Attention among the tokens of a prefix tree, block by block.

Every block of the row attends to the keys that it can see, so masked blocks cost nothing. On a CPU a block's attention
can run as products (`howlow.engine.cpu.attention`), which is faster where the blocks are large enough. All other blocks
go through torch's SDPA. On CUDA one FlexAttention call runs the whole row
(`howlow.engine.cuda.attention`).
"""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from howlow.engine.attention_context import AttentionContext, Kind, Limits, UnsupportedError
from howlow.engine.cpu import attention as cpu_attention
from howlow.engine.cpu.attention import MOST_QUERIES, Pieces
from howlow.engine.cpu.gemm import GemmLibrary
from howlow.engine.cuda.attention import FlexTreeAttention
from howlow.engine.prefix_tree import PrefixTree

AttentionKernel = Literal["own", "products", "sdpa", "flex"]
"""`own`: the model's own attention, as in the layout `padded`; `products`: products where they pay, else SDPA."""


def tree_attention(
    tree: PrefixTree,
    kernel: AttentionKernel,
    kernels_kept: int,
    kinds: Collection[Kind] = (),
    library: GemmLibrary = "onednn",
) -> AttentionContext:
    """The attention of a prefix tree's tokens.

    kernels_kept: how many compiled kernels oneDNN keeps in this process; it decides which rows `products` is for.
    kinds: see `FlexTreeAttention`.
    library: what computes `products`.
    """
    assert kernel != "own", "the model's own attention knows no prefix tree"
    if kernel == "flex":
        return FlexTreeAttention(tree, kinds)
    return BlockTreeAttention(tree, kernels_kept if kernel == "products" else 0, library)


class BlockTreeAttention:
    """A prefix tree whose blocks attend one after the other, as products or through torch's SDPA."""

    is_traceable = False

    def __init__(self, tree: PrefixTree, kernels_kept: int, library: GemmLibrary = "onednn") -> None:
        self.tree = tree
        self._kernels_kept, self._library = kernels_kept, library
        self._pieces: dict[tuple[int | None, int | None], Pieces] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """See `AttentionContext`."""
        if (
            self._kernels_kept
            and not limits.dropout
            and limits.softcap is None
            and cpu_attention.suits(query, key, value)
        ):
            pieces = self._cut(limits)
            if cpu_attention.pays(query, key, value, pieces, self._kernels_kept, self._library):
                return cpu_attention.attend(query, key, value, pieces, limits.scale, self._library)
        return self._through_sdpa(query, key, value, limits)

    def _cut(self, limits: Limits) -> Pieces:
        """The row in pieces, made once for all layers with the same limits."""
        key = (limits.window, limits.chunk)
        if key not in self._pieces:
            self._pieces[key] = cpu_attention.cut(self.tree, *key, MOST_QUERIES[self._library])
        return self._pieces[key]

    def _through_sdpa(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """Splitting and joining are one operation each way, so that the backward pass has few."""
        blocks = self.tree.blocks
        sizes = [block.end - block.start for block in blocks]
        queries, keys, values = (torch.split(whole, sizes, dim=2) for whole in (query, key, value))
        found = []
        for index, block in enumerate(blocks):
            mask = self.tree.mask(index, query.dtype, limits.window, limits.chunk)
            seen = (*block.ancestors, index)
            found.append(sdpa(queries[index], _joined(keys, seen), _joined(values, seen), mask, limits))
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]


def _joined(parts: tuple[Tensor, ...], seen: tuple[int, ...]) -> Tensor:
    return parts[seen[0]] if len(seen) == 1 else torch.cat([parts[part] for part in seen], dim=2)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, limits: Limits) -> Tensor:
    """torch's SDPA, plainly causal without a mask; a soft cap, which SDPA does not have, is computed step by step."""
    if limits.softcap is not None:
        return _capped(query, key, value, mask, limits)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=limits.dropout,
        scale=limits.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, limits: Limits) -> Tensor:
    """Attention with scores softly capped at +-c, c tanh(score / c), as Gemma 2 has them."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    if limits.dropout:
        raise UnsupportedError("dropout within an attention with a soft cap")
    cap = limits.softcap
    assert cap is not None, "the caller has looked"
    scores = cap * torch.tanh(query @ key.transpose(2, 3) * (limits.scale / cap))
    if mask is None:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    return (
        torch.softmax(scores + mask, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
        @ value
    )
