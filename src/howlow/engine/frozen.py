"""Frozen linear layers, and adapters on them, on a CPU in fp32.

A frozen layer needs two products, y = x W^T and in the backward pass dx = dy W; nothing else has to exist. An adapter
on it (LoRA, h = W x + s B A x) adds its part to the same y and dx in place, where PEFT's own code makes four further
passes over them. The products run through oneDNN, whose fp32 kernels reach 1.1 to 1.4 times the rate of the BLAS
behind torch's `linear` on the machines that were measured (`docs/log.md`); weights stay where they are and are shared
with every other process that maps them.

Only the arithmetic's order differs from PEFT's. Where a layer is anything but plain (dropout, a variant of LoRA,
another dtype, a weight that trains) its own code runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn

_ADAPTER = "default"


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Within this context the model's frozen linear layers, with their adapters, run fused where they can."""
    changed = []
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        adapted = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain_adapter(module)]
        inside = {id(module.base_layer) for module in adapted}
        for module in model.modules():
            if isinstance(module, nn.Linear) and id(module) not in inside and _is_frozen(module):
                changed.append(module)
                module.forward = partial(_frozen_forward, module)  # type: ignore[method-assign]
        for module in adapted:
            changed.append(module)
            module.forward = partial(_adapted_forward, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_frozen(layer: nn.Linear) -> bool:
    weight = layer.weight
    plain = type(layer) is nn.Linear and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and not any(parameter.requires_grad for parameter in layer.parameters())


def _is_plain_adapter(layer: Any) -> bool:
    base = layer.base_layer
    return (
        isinstance(base, nn.Linear)
        and _is_frozen(base)
        and list(layer.active_adapters) == [_ADAPTER]
        and not layer.merged
        and not layer.disable_adapters
        and _ADAPTER not in layer.lora_variant
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and layer.lora_A[_ADAPTER].weight.dtype == torch.float32
        and layer.lora_B[_ADAPTER].bias is None
    )


def _frozen_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return _Frozen.apply(x, layer.weight, layer.bias)  # type: ignore[no-any-return, no-untyped-call]


def _adapted_forward(layer: Any, x: Tensor) -> Tensor:
    a, b, scale = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, layer.scaling[_ADAPTER]
    base = layer.base_layer
    return _Adapted.apply(x, base.weight, base.bias, a, b, scale)  # type: ignore[no-any-return, no-untyped-call]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias through oneDNN."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Frozen(torch.autograd.Function):
    """y = x W^T + bias with W and bias frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        return (_product(dy, ctx.weight.t()) if ctx.needs_input_grad[0] else None), None, None


class _Adapted(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T with W and bias frozen; A: (rank, in), B: (out, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = _product(rows, weight, bias)
        low = rows @ a.t()
        y.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.weight, ctx.scale = weight, scale
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        dy = gradient.reshape(-1, gradient.shape[-1])
        d_low = (dy @ b).mul_(ctx.scale)
        d_a, d_b = d_low.t() @ rows, (dy.t() @ low).mul_(ctx.scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None, d_a, d_b, None
        dx = _product(dy, ctx.weight.t()).addmm_(d_low, a)
        return dx.view(*gradient.shape[:-1], dx.shape[-1]), None, None, d_a, d_b, None
