"""Rotary positions whose frequencies depend on the longest row of the batch (dynamic NTK, LongRoPE).

In the layout `padded` every row is as long as the sequence length, whatever the examples are. Where examples share a
row, its highest position is that of the longest example, and the frequencies would be others. `as_in_a_full_row` shows
the rotary module one position more, the last of a full row, and drops the angles that it gives for it. So all layouts
have the same frequencies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_DEPENDENT = {"dynamic", "longrope"}


def depends_on_length(model: nn.Module, sequence_length: int) -> bool:
    """Whether some rotary frequencies of the model differ at this length from those of short rows."""
    for module in _dependent(model):
        config: Any = module.config
        parameters = getattr(config, "rope_parameters", None) or {}
        tables = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
        made_for = [table.get("original_max_position_embeddings") for table in tables]
        bounds = [length for length in made_for if length] or [getattr(config, "max_position_embeddings", None) or 0]
        if sequence_length > min(bounds):
            return True
    return False


def _dependent(model: nn.Module) -> list[Any]:
    def kinds(module: nn.Module) -> set[str]:
        kind = getattr(module, "rope_type", None)
        return set(kind.values()) if isinstance(kind, dict) else {kind} if isinstance(kind, str) else set()

    return [module for module in model.modules() if kinds(module) & _DEPENDENT]


@contextmanager
def as_in_a_full_row(model: nn.Module, sequence_length: int) -> Iterator[None]:
    """Within this context frequencies are those of a row of `sequence_length` tokens."""

    def lengthen(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "position_ids" in named:
            return positional, named | {"position_ids": _longer(named["position_ids"], sequence_length)}
        hidden, positions, *rest = positional
        return (hidden, _longer(positions, sequence_length), *rest), named

    def shorten(_: nn.Module, __: Any, angles: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part[:, :-1] for part in angles)

    hooks = []
    for module in _dependent(model):
        hooks.append(module.register_forward_pre_hook(lengthen, with_kwargs=True))
        hooks.append(module.register_forward_hook(shorten))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _longer(positions: Tensor, sequence_length: int) -> Tensor:
    last = positions.new_full((positions.shape[0], 1), sequence_length - 1)
    return torch.cat([positions, last], dim=1)
