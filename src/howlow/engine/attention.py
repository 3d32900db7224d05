"""Attention among the tokens of a row that several examples share, as an attention implementation of transformers.

transformers lets a model's attention be any registered function, and makes no mask for one that it does not know. Ours
looks at the structure that `among` has set for the batch at hand: who sees whom is decided there, by positions, so that
a sliding window or a chunk is measured along an example and not along the row.

On a CPU every block of the row attends to the keys that it can see, so that masked blocks cost nothing: written out as
products where that is faster (`howlow.engine.cpu.attention`), else through torch's SDPA. On CUDA one FlexAttention call
skips them (`howlow.engine.cuda.attention`). What a model asks of its attention beyond that is refused here, and found
by the check of the loaded model (`howlow.engine.layout_check`).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from howlow.engine.cpu import attention as cpu_attention
from howlow.engine.cpu.attention import Pieces
from howlow.engine.prefix_tree import Forest

Kernel = Literal["sdpa", "flex"]
IMPLEMENTATION = "howlow"


class UnsupportedError(Exception):
    """The model asks for something of its attention that this implementation does not have."""


class Company(Protocol):
    """The tokens that attend together: those of a forest, or of a generation (`howlow.engine.tree_generation`)."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: "Limits") -> Tensor:
        """Attention of one layer: (1, heads, queries, dimension) from keys and values of (1, key heads, keys, ...)."""


@dataclass(frozen=True)
class Limits:
    """What a layer asks of its attention beside query, key and value."""

    scale: float
    window: int | None
    chunk: int | None
    softcap: float | None
    dropout: float = 0.0


_company: Company | None = None  # a plain global: a backward pass that recomputes may run in another thread


@contextmanager
def among(model: nn.Module, company: Company | None) -> Iterator[None]:
    """Within this context, which must hold forward and backward, the model's tokens attend as `company` says.

    None leaves the model's attention as it is.
    """
    global _company
    if company is None:
        yield
        return
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    configs = {id(module.config): module.config for module in owners}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = IMPLEMENTATION
        _company = company
        yield
    finally:
        _company = None
        for key, config in configs.items():
            config._attn_implementation = before[key]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer."""
    if _company is None:
        raise UnsupportedError("attention was called outside of a batch's context")
    for name in ("s_aux", "position_bias"):
        if further.get(name) is not None:
            raise UnsupportedError(f"attention with {name}")
    if attention_mask is not None:
        raise UnsupportedError("the model brings a mask of its own")
    window, chunk = _by_layer_type(module, sliding_window)
    limits = Limits(scaling if scaling is not None else query.shape[-1] ** -0.5, window, chunk, softcap, dropout)
    return _company.attend(query, key, value, limits).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _forward)


def _by_layer_type(module: nn.Module, window: int | None) -> tuple[int | None, int | None]:
    """The layer's sliding window and chunk; some models say them only in the kind of the layer."""
    config: Any = getattr(module, "config", None)
    index, kinds = getattr(module, "layer_idx", None), getattr(config, "layer_types", None)
    kind = kinds[index] if kinds and index is not None and index < len(kinds) else None
    if kind == "sliding_attention" and window is None:
        window = config.sliding_window
    return window, config.attention_chunk_size if kind == "chunked_attention" else None


def company(forest: Forest, kernel: Kernel) -> Company:
    """A forest's tokens, attending through one of the kernels."""
    if kernel == "sdpa":
        return BlockForest(forest)
    from howlow.engine.cuda.attention import FlexForest

    return FlexForest(forest)


class BlockForest:
    """A forest whose blocks attend one after the other, written out as products or through torch's SDPA."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self._pieces: dict[tuple[int | None, int | None], Pieces] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """See `Company`."""
        if limits.softcap is None and not limits.dropout and cpu_attention.suits(query, key, value):
            pieces = self._cut(limits)
            if cpu_attention.pays(query, key, value, pieces):
                return cpu_attention.attend(query, key, value, pieces, limits.scale)
        return self._through_sdpa(query, key, value, limits)

    def _cut(self, limits: Limits) -> Pieces:
        """The row in pieces, made once for all layers with the same limits."""
        key = (limits.window, limits.chunk)
        if key not in self._pieces:
            self._pieces[key] = cpu_attention.cut(self.forest, *key)
        return self._pieces[key]

    def _through_sdpa(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """Splitting and joining are one operation each way, so that the backward pass has few."""
        blocks = self.forest.blocks
        sizes = [block.end - block.start for block in blocks]
        queries, keys, values = (torch.split(whole, sizes, dim=2) for whole in (query, key, value))
        found = []
        for index, block in enumerate(blocks):
            mask = self.forest.mask(index, query.dtype, limits.window, limits.chunk)
            seen = (*block.ancestors, index)
            found.append(sdpa(queries[index], _joined(keys, seen), _joined(values, seen), mask, limits))
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]


def _joined(parts: tuple[Tensor, ...], seen: tuple[int, ...]) -> Tensor:
    return parts[seen[0]] if len(seen) == 1 else torch.cat([parts[part] for part in seen], dim=2)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, limits: Limits) -> Tensor:
    """torch's SDPA, plainly causal without a mask; with a soft cap, which it does not have, written out."""
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
    """Scores softly capped at +-c, c tanh(score / c), as Gemma 2 has them."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    if limits.dropout:
        raise UnsupportedError("dropout within an attention with a soft cap")
    cap = limits.softcap
    assert cap is not None, "asked for by the caller"
    scores = cap * torch.tanh(query @ key.transpose(2, 3) * (limits.scale / cap))
    if mask is None:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    return (
        torch.softmax(scores + mask, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
        @ value
    )


def takes_positions(model: nn.Module) -> bool:
    """Whether the model's forward pass can be told positions."""
    return "position_ids" in inspect.signature(model.forward).parameters
