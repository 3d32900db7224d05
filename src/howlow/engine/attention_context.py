"""How attention is replaced in a model that transformers runs.

transformers lets a model's attention be any registered function, and makes no mask for a function that it does not
know. Ours passes query, key and value on to the `AttentionContext` of the batch that is running, which decides who sees
whom. Masks follow positions, so a sliding window or a chunk is measured along an example and not along the row.

A model may ask its attention for something that this function does not have. It is refused here, and the check of the
loaded model finds it before the first trial (`howlow.engine.layout_check`).
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, masking_utils

IMPLEMENTATION, TRACED = "howlow", "howlow_traced"
"""The names of our function; under the second one torch's compiler looks into it."""


Kind = tuple[int | None, int | None]
"""A layer's sliding window and chunk."""
_KIND = "howlow_kind"


class UnsupportedError(Exception):
    """The model asks for something of its attention that this implementation does not have."""


@dataclass(frozen=True)
class Limits:
    """What a layer asks of its attention, apart from query, key and value."""

    scale: float
    window: int | None
    chunk: int | None
    softcap: float | None
    dropout: float = 0.0


class AttentionContext(Protocol):
    """The tokens that attend to each other: those of a prefix tree, or those of a generation step."""

    @property
    def is_traceable(self) -> bool:
        """Whether torch's compiler can look into `attend`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """Attention of one layer: (1, heads, queries, dimension) from keys and values of (1, key heads, keys, ...)."""


_current: AttentionContext | None = None  # a plain global: a backward pass that recomputes may run in another thread


def configs_of(model: nn.Module) -> list[Any]:
    """The configs that say which attention the model's layers call."""
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    return list({id(owner.config): owner.config for owner in owners}.values())


@contextmanager
def attending(configs: Sequence[Any], context: AttentionContext) -> Iterator[None]:
    """Within this context, which must hold forward and backward, the layers with these configs attend as it says."""
    global _current
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = TRACED if context.is_traceable else IMPLEMENTATION
        _current = context
        yield
    finally:
        _current = None
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Within this context transformers takes each row for one sequence, as rows of the layout `padded` are.

    By default it looks at the positions of every batch to find out, which reads the device. Under a tracer it cannot
    look, and makes a mask that is not needed. Some releases take the recording of a CUDA graph for a tracer, also where
    nothing is padded: then what is recorded would be another computation than the one before, whose layers have to be
    compiled again, which cannot be recorded.
    """
    own, is_traced = masking_utils.find_packed_sequence_indices, masking_utils.is_tracing

    def is_tracing(tensor: Tensor | None = None) -> bool:
        return not (tensor is None and torch.cuda.is_current_stream_capturing()) and is_traced(tensor)

    masking_utils.find_packed_sequence_indices, masking_utils.is_tracing = lambda _: None, is_tracing
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, masking_utils.is_tracing = own, is_traced


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
    if _current is None:
        raise UnsupportedError("attention was called outside of a batch's context")
    for name in ("s_aux", "position_bias"):
        if further.get(name) is not None:
            raise UnsupportedError(f"attention with {name}")
    if attention_mask is not None:
        raise UnsupportedError("the model brings a mask of its own")
    noted: Kind | None = getattr(module, _KIND, None)
    window, chunk = noted if noted is not None else _by_layer_type(module, sliding_window)
    window = window if sliding_window is None else sliding_window
    limits = Limits(scaling if scaling is not None else query.shape[-1] ** -0.5, window, chunk, softcap, dropout)
    return _current.attend(query, key, value, limits).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(_forward))  # type: ignore[no-untyped-call]
AttentionInterface.register(TRACED, _forward)


def _by_layer_type(module: nn.Module, window: int | None) -> Kind:
    """The layer's sliding window and chunk; some models give them only in the layer's type."""
    config: Any = getattr(module, "config", None)
    index, kinds = getattr(module, "layer_idx", None), getattr(config, "layer_types", None)
    kind = kinds[index] if kinds and index is not None and index < len(kinds) else None
    if kind == "sliding_attention" and window is None:
        window = config.sliding_window
    return window, config.attention_chunk_size if kind == "chunked_attention" else None


def note_kinds(model: nn.Module) -> set[Kind]:
    """Note in each layer its sliding window and chunk; returns all of them.

    Where torch's compiler looks into our function, it must not read the number of the layer: it would compile each
    layer by itself.
    """
    found = set()
    for layer in model.modules():
        if getattr(layer, "layer_idx", None) is not None:
            kind = _by_layer_type(layer, getattr(layer, "sliding_window", None))
            setattr(layer, _KIND, kind)
            found.add(kind)
    return found or {(None, None)}


def takes_positions(model: nn.Module) -> bool:
    """Whether the model's forward pass can be given positions."""
    return "position_ids" in inspect.signature(model.forward).parameters
