"""Products with frozen weights on a CPU in fp32, and adapters on them.

A frozen layer needs two products, y = x W^T and in the backward pass dx = dy W; nothing else has to exist. Adapters on
it (LoRA, h = W x + s B A x) add their part to the same y and dx in place, where PEFT's own code makes four further
passes over them; layers that are given the same x share one product with all their A's. The products run through
oneDNN, whose fp32 kernels reach 1.1 to 1.4 times the rate of the BLAS behind torch's `linear` on the machines that were
measured (`docs/log.md`); weights stay where they are and are shared with every other process that maps them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias through oneDNN."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What a frozen layer gives."""
    return _Frozen.apply(x, layer.weight, layer.bias)  # type: ignore[no-any-return, no-untyped-call]


class _Frozen(torch.autograd.Function):
    """y = x W^T + bias with W and bias frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        return (product(dy, ctx.weight.t()) if ctx.needs_input_grad[0] else None), None, None


class Siblings:
    """Layers with adapters that are given the very same x, as q, k and v of an attention are.

    The first that is called computes all, and keeps what the others will be asked for. Layers that turn out to be given
    different tensors run apart from then on.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers, self._kept = list(layers), dict[Any, Tensor]()
        self._x: Tensor | None = None

    def forward_of(self, layer: Any) -> Callable[[Tensor], Tensor]:
        """The forward pass of one of them."""
        return partial(self._forward, layer)

    def _forward(self, layer: Any, x: Tensor) -> Tensor:
        if self._kept and (x is not self._x or layer not in self._kept):
            self._layers, self._kept = [], {}  # some were not asked for this x
        if not self._kept:
            together = self._layers if layer in self._layers else [layer]
            self._x, self._kept = x, dict(zip(together, _adapted(together, x), strict=True))
        y = self._kept.pop(layer)
        if not self._kept:
            self._x = None
        return y


def _adapted(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    given = []
    for layer in layers:
        base, a, b = layer.base_layer, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        given += [base.weight, base.bias, a, b, layer.scaling[ADAPTER]]
    return _Adapted.apply(x, *given)  # type: ignore[no-any-return, no-untyped-call]


class _Adapted(torch.autograd.Function):
    """y_i = x W_i^T + bias_i + s_i (x A_i^T) B_i^T with W and bias frozen; A: (rank, in), B: (out, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        weights, biases, below, above, scales = (given[start::5] for start in range(5))
        rows, ranks = x.reshape(-1, x.shape[-1]), [a.shape[0] for a in below]
        stacked = torch.cat(below) if len(below) > 1 else below[0]
        low = product(rows, stacked)
        parts, found = torch.split(low, ranks, 1), []
        for weight, bias, b, scale, part in zip(weights, biases, above, scales, parts, strict=True):
            y = product(rows, weight, bias).addmm_(part, b.t(), alpha=scale)
            found.append(y.view(*x.shape[:-1], y.shape[-1]))
        ctx.save_for_backward(rows, low, stacked, *above)
        ctx.weights, ctx.scales, ctx.ranks, ctx.shape = weights, scales, ranks, x.shape
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, stacked, *above = ctx.saved_tensors
        parts = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        d_low = torch.cat(
            [product(dy, b.t()).mul_(scale) for dy, b, scale in zip(parts, above, ctx.scales, strict=True)], 1
        )
        d_below = torch.split(product(d_low.t(), rows.t()), ctx.ranks)
        d_above = [
            product(part.t(), dy.t()).mul_(scale).t()
            for part, dy, scale in zip(torch.split(low, ctx.ranks, 1), parts, ctx.scales, strict=True)
        ]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = product(parts[0], ctx.weights[0].t()).addmm_(d_low, stacked)
            for dy, weight in zip(parts[1:], ctx.weights[1:], strict=True):
                dx.addmm_(dy, weight)  # torch's BLAS, slower than oneDNN, but it adds while it multiplies
            dx = dx.view(ctx.shape)
        return dx, *(one for d_a, d_b in zip(d_below, d_above, strict=True) for one in (None, None, d_a, d_b, None))
