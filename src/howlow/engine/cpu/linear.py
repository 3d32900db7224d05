"""Frozen linear layers on a CPU, and adapters on them.

A frozen layer needs two products, y = x W^T and in the backward pass dx = dy W (`howlow.engine.cpu.gemm`). Adapters on
it (LoRA, h = W x + s B A x) add their part to the same y and dx in place; PEFT's own code makes four further passes
over them. Layers that are given the same x share one product with all their A's. Weights are not copied, so processes
that map the same file share them.

All products are in the dtype of the frozen weight. Where that is bf16, the adapter's fp32 factors are rounded to it in
each call, as under autocast, and their gradients are fp32.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from howlow.engine.cpu.gemm import FrozenWeight, Gemms, product
from howlow.engine.quantization import held

ADAPTER = "default"


def linear(layer: nn.Linear, frozen: FrozenWeight, x: Tensor) -> Tensor:
    """The result of a frozen layer; by torch's own code where its weight is for now another one.

    PEFT adapts a router by adding the product of the adapter's matrices to the weight while the model runs.
    """
    if held(layer) is not frozen.weight:
        return functional.linear(x, layer.weight, layer.bias)
    y: Tensor = _Frozen.apply(_rows(x, frozen), frozen)  # type: ignore[no-untyped-call]
    # Outside of the function: a model may change this result in place, but not a view made within.
    return y.view(*x.shape[:-1], y.shape[-1])


def _rows(x: Tensor, frozen: FrozenWeight) -> Tensor:
    """x as (tokens, in), in the weight's dtype."""
    return x.reshape(-1, x.shape[-1]).to(frozen.weight.dtype)


class _Frozen(torch.autograd.Function):
    """y = x W^T + bias with W and bias frozen; x: (tokens, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenWeight) -> Tensor:
        ctx.frozen = frozen
        return frozen.forward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        return (ctx.frozen.backward(dy) if ctx.needs_input_grad[0] else None), None


class Siblings:
    """Layers with adapters that are given the same x, as q, k and v of an attention are.

    The first layer that is called computes all results, and keeps those of the others until they are called. Layers
    that turn out to be given different tensors run separately from then on.
    """

    def __init__(self, layers: Sequence[Any], gemms: Gemms) -> None:
        self._layers, self._kept = list(layers), dict[Any, Tensor]()
        self._bases = {layer: _Base(gemms.frozen(layer.base_layer), layer.scaling[ADAPTER]) for layer in layers}
        self._x: Tensor | None = None

    def forward_of(self, layer: Any) -> Callable[[Tensor], Tensor]:
        """The forward pass of one of them."""
        return partial(self._forward, layer)

    def _forward(self, layer: Any, x: Tensor) -> Tensor:
        if self._kept and (x is not self._x or layer not in self._kept):
            self._layers, self._kept = [], {}  # some were not asked for this x
        if not self._kept:
            together = self._layers if layer in self._layers else [layer]
            found = _adapted({one: self._bases[one] for one in together}, x)
            self._x, self._kept = x, dict(zip(together, found, strict=True))
        y = self._kept.pop(layer)
        if not self._kept:
            self._x = None
        return y


class _Base(NamedTuple):
    """The frozen part of a layer with an adapter."""

    frozen: FrozenWeight
    scale: float


def _adapted(layers: Mapping[Any, _Base], x: Tensor) -> tuple[Tensor, ...]:
    bases = list(layers.values())
    factors = [part[ADAPTER].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
    found: tuple[Tensor, ...] = _Adapted.apply(_rows(x, bases[0].frozen), bases, *factors)  # type: ignore[no-untyped-call]
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in found)


class _Adapted(torch.autograd.Function):
    """y_i = x W_i^T + bias_i + s_i (x A_i^T) B_i^T, W and bias frozen; x: (tokens, in), A: (r, in), B: (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bases: Sequence[_Base], *trained: Tensor) -> tuple[Tensor, ...]:
        factors = [factor.to(x.dtype) for factor in trained]
        below, above = factors[::2], factors[1::2]
        low, found = product(x, _stacked(below)), []
        for base, b, part in zip(bases, above, _parts(low, below, 1), strict=True):
            found.append(base.frozen.forward(x).addmm_(part, b.t(), alpha=base.scale))
        ctx.save_for_backward(x, low, *factors)
        ctx.bases, ctx.trained_in = bases, trained[0].dtype
        ctx.set_materialize_grads(False)  # a layer that nothing uses gets no gradient, as without its siblings
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        x, low, *factors = ctx.saved_tensors
        lows = _parts(low, factors[::2], 1)
        used = [
            (gradient.contiguous(), *layer)
            for gradient, *layer in zip(gradients, ctx.bases, factors[::2], factors[1::2], lows, strict=True)
            if gradient is not None
        ]
        below = [a for _, _, a, _, _ in used]
        d_low = torch.cat([product(dy, b.t()).mul_(base.scale) for dy, base, _, b, _ in used], 1)
        d_below = iter(_parts(product(d_low.t(), x.t()), below, 0))
        d_above = iter([product(part.t(), dy.t()).mul_(base.scale).t() for dy, base, _, _, part in used])
        d_factors = [
            None if dy is None else next(found).to(ctx.trained_in) for dy in gradients for found in (d_below, d_above)
        ]
        if not ctx.needs_input_grad[0]:
            return None, None, *d_factors
        dx = used[0][1].frozen.backward(used[0][0]).addmm_(d_low, _stacked(below))
        for dy, base, _, _, _ in used[1:]:
            dx += base.frozen.backward(dy)
        return dx, None, *d_factors


def _stacked(below: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(below)) if len(below) > 1 else below[0]


def _parts(whole: Tensor, below: Sequence[Tensor], dimension: int) -> tuple[Tensor, ...]:
    """The rows or columns of each A."""
    return torch.split(whole, [len(a) for a in below], dimension)
