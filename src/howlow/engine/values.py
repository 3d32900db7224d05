"""Values for modules that were built without any, so that their code can be probed."""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_T = TypeVar("_T")


def with_values(parts: _T) -> _T:
    """Modules (or functions of them) whose code can be probed: the very same where their weights have values.

    A model that is built from its config alone has none. Then this is a copy with random values on the CPU.
    """
    memo: dict[int, Any] = {}
    for module in parts if isinstance(parts, tuple) else (parts,):
        for tensor in _tensors(module):
            if tensor.is_meta or isinstance(tensor, FakeTensor):
                values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
    return copy.deepcopy(parts, memo) if memo else parts


def _tensors(module: Any) -> Iterator[Tensor]:
    if isinstance(module, nn.Module):
        yield from module.parameters()
        yield from module.buffers()
