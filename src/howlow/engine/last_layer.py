"""The last layer's feed-forward part runs only for the tokens whose hidden state is used.

After the last layer's attention, no token depends on another. A loss uses the hidden states that predict a target,
and a generation uses those that end a prompt: often a tenth of the tokens of a row in the layout `shared`. The hidden
states of the other tokens affect no result and no gradient, so the feed-forward part does not compute them.

No list of names decides which modules these are. Each module of the last layer is probed once, when the model enters
its execution: it has to give a single token what it gives the same token among others.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from howlow.engine.model import REFUSALS, decoder_of
from howlow.engine.values import with_values

_PROBED, _PROBED_ALONE = 6, (1, 4)  # tokens; those of them that are also run by themselves


@contextmanager
def only_rows(modules: Sequence[nn.Module], rows: Tensor) -> Iterator[None]:
    """Within this context, which must hold forward and backward, the modules run for some tokens of the batch.

    modules: what `modules_by_token` gave for the model.
    rows: (count,) int64, the tokens, counted through all rows of the batch; each once. The decoder's other hidden
        states are wrong.
    """
    with ExitStack() as stack:
        for module in modules:
            selection = _Selection(rows)
            stack.callback(module.register_forward_pre_hook(selection.select, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(selection.spread).remove)
        yield


class _Selection:
    """Cuts what a module is given to the selected tokens, and puts its result back in place among zeros."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._shape: torch.Size | None = None

    def select(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the module runs; a module that is given more than hidden states runs for all tokens."""
        self._shape = given[0].shape[:-1] if len(given) == 1 and not named else None
        return (given if self._shape is None else (given[0].flatten(0, -2)[self._rows][None],)), named

    def spread(self, _: nn.Module, __: Any, y: Tensor) -> Tensor:
        """After the module has run."""
        if self._shape is None:
            return y
        whole = y.new_zeros((self._shape.numel(), y.shape[-1]))
        return whole.index_copy(0, self._rows, y[0]).view(*self._shape, y.shape[-1])


def modules_by_token(model: nn.Module) -> list[nn.Module]:
    """The modules with weights of the decoder's last layer that treat each token by itself; none where unsure."""
    stacks = [part for part in decoder_of(model).children() if isinstance(part, nn.ModuleList) and len(part)]
    if len(stacks) != 1 or stacks[0][-1]._compiled_call_impl is not None:  # each batch would compile it again
        return []
    parts = [part for part in stacks[0][-1].children() if any(isinstance(one, nn.Linear) for one in part.modules())]
    return [part for part in parts if _is_by_token(with_values(part))]


@torch.no_grad()
def _is_by_token(module: nn.Module) -> bool:
    """Whether each token's result is the same among others and alone, up to rounding."""
    linear = next(one for one in module.modules() if isinstance(one, nn.Linear))
    probe = torch.randn((1, _PROBED, linear.in_features), generator=torch.Generator().manual_seed(0)).to(linear.weight)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()  # dropout would draw random numbers, and change those drawn afterwards
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
