"""The last layer's feed-forward part, for the tokens whose hidden state is read.

Behind the last layer's attention tokens no longer meet. A loss reads the hidden states that predict a target, and a
generation those that end a prompt: 220 of the 2,261 tokens of a row of SQuAD's questions in the layout `shared`. What
the last layer's feed-forward part would make of the others reaches no result and no gradient, so it is not computed.
Which part that is no list of names says: a module of the last layer that gives a single token what it gives it among
others.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from howlow.engine.model import REFUSALS, decoder_of

_PROBED, _PROBED_ALONE = 6, (1, 4)  # tokens; those of them that are also run by themselves


@contextmanager
def reading(model: nn.Module, rows: Tensor) -> Iterator[None]:
    """Within this context, which must hold forward and backward, only some hidden states of the decoder count.

    rows: (count,) int64, which of the batch's tokens, all rows one after the other; each once. The decoder's other
    hidden states are wrong.
    """
    with ExitStack() as stack:
        for module in _feed_forward(model):
            part = _Part(rows)
            stack.callback(module.register_forward_pre_hook(part.select, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(part.spread).remove)
        yield


class _Part:
    """What a module is given, cut to the rows that are read; what it gives, back in its place among zeros."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._shape: torch.Size | None = None

    def select(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the module runs; given more than hidden states it runs whole."""
        self._shape = given[0].shape[:-1] if len(given) == 1 and not named else None
        return (given if self._shape is None else (given[0].flatten(0, -2)[self._rows][None],)), named

    def spread(self, _: nn.Module, __: Any, y: Tensor) -> Tensor:
        """After it has run."""
        if self._shape is None:
            return y
        whole = y.new_zeros((self._shape.numel(), y.shape[-1]))
        return whole.index_copy(0, self._rows, y[0]).view(*self._shape, y.shape[-1])


def _feed_forward(model: nn.Module) -> list[nn.Module]:
    """The modules with weights of the decoder's last layer that treat each token by itself; none where unsure."""
    stacks = [part for part in decoder_of(model).children() if isinstance(part, nn.ModuleList) and len(part)]
    if len(stacks) != 1 or stacks[0][-1]._compiled_call_impl is not None:  # it would be compiled anew for each batch
        return []
    parts = [part for part in stacks[0][-1].children() if any(isinstance(one, nn.Linear) for one in part.modules())]
    return [part for part in parts if _is_by_token(part)]


@torch.no_grad()
def _is_by_token(module: nn.Module) -> bool:
    """Whether each token's result is the same among others and alone, up to rounding."""
    width = next(one.in_features for one in module.modules() if isinstance(one, nn.Linear))
    weight = next(module.parameters())
    probe = torch.randn((1, _PROBED, width), generator=torch.Generator().manual_seed(0)).to(weight)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()  # dropout would draw, and change what is drawn afterwards
        together, alone = module(probe), module(probe[:, _PROBED_ALONE])
    except REFUSALS:
        return False  # it needs more than hidden states: an attention, a mixer
    finally:
        for part, mode in modes:
            part.training = mode
    if not isinstance(together, Tensor) or together.shape[:-1] != probe.shape[:-1]:
        return False
    scale = float(together.abs().max())
    difference = float((together[:, _PROBED_ALONE] - alone).abs().max())
    roundings = 64 if together.dtype in (torch.float32, torch.float64) else 4
    return difference <= roundings * torch.finfo(together.dtype).eps * scale
