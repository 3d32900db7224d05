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
from torch.nn import functional as F
from transformers.activations import SiLUActivation

_ADAPTER = "default"


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Within this context the model's frozen layers, with their adapters, run fused where they can."""
    forwards: dict[nn.Module, Any] = {}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        adapted = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain_adapter(module)]
        inside = {module.base_layer for module in adapted}
        frozen = [module for module in model.modules() if isinstance(module, nn.Linear) and _is_frozen(module)]
        forwards |= {module: partial(_frozen_forward, module) for module in frozen if module not in inside}
        forwards |= {module: partial(_adapted_forward, module) for module in adapted}
        for module in model.modules():
            whole = _gated_mlp(module) or _norm(module)
            if whole is not None and _agrees(module, whole):
                forwards[module] = whole
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


@torch.no_grad()
def _agrees(module: nn.Module, forward: Any) -> bool:
    """Whether a fused form gives what the module's own code gives: names alone do not say what a module computes."""
    width = next(module.parameters()).shape[-1]
    probe = torch.randn((3, width), generator=torch.Generator().manual_seed(0)) * 2
    expected = module(probe)
    return torch.allclose(forward(probe), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def _gated_mlp(module: Any) -> Any:
    """The fused form of down(silu(gate(x)) * up(x)), where a module looks like it and is frozen."""
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    if not isinstance(activation, nn.SiLU | SiLUActivation) or not all(map(_is_frozen, layers)):
        return None
    if any(layer.bias is not None for layer in layers) or set(module.children()) != {*layers, activation}:
        return None
    return partial(_apply, _GatedMlp, [layer.weight for layer in layers])


def _norm(module: Any) -> Any:
    """The fused form of an RMSNorm with a frozen weight."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not type(module).__name__.endswith("RMSNorm")
        or not isinstance(weight, Tensor)
        or not isinstance(epsilon, float)
    ):
        return None
    if weight.requires_grad or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    return partial(_apply, _RmsNorm, [weight, epsilon])


def _apply(function: Any, fixed: list[Any], x: Tensor) -> Tensor:
    return function.apply(x, *fixed)  # type: ignore[no-any-return]


def _is_frozen(layer: Any) -> bool:
    if type(layer) is not nn.Linear:
        return False
    plain = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
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
        low = _product(rows, a)
        y.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.weight, ctx.scale = weight, scale
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        dy = gradient.reshape(-1, gradient.shape[-1])
        d_low = _product(dy, b.t()).mul_(ctx.scale)
        d_a, d_b = _product(d_low.t(), rows.t()), _product(low.t(), dy.t()).mul_(ctx.scale).t()
        if not ctx.needs_input_grad[0]:
            return None, None, None, d_a, d_b, None
        dx = _product(dy, ctx.weight.t()).addmm_(d_low, a)
        return dx.view(*gradient.shape[:-1], dx.shape[-1]), None, None, d_a, d_b, None


class _GatedMlp(torch.autograd.Function):
    """y = (silu(x G^T) * (x U^T)) D^T with all three frozen; keeps the two products, not what is made of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gated, raised = _product(x, gate), _product(x, up)
        ctx.save_for_backward(gated, raised)
        ctx.weights = gate, up, down
        hidden = F.silu(gated).mul_(raised)
        return _product(hidden, down)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None]:
        gated, raised = ctx.saved_tensors
        gate, up, down = ctx.weights
        d_hidden = _product(dy, down.t())
        d_gated = torch.ops.aten.silu_backward(d_hidden * raised, gated)
        dx = _product(d_gated, gate.t())
        dx += _product(d_hidden.mul_(F.silu(gated)), up.t())
        return dx, None, None, None


class _RmsNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + epsilon) with w frozen (Zhang and Sennrich 2019, equation 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale)
        ctx.weight = weight
        y: Tensor = (x * scale).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        dx = dy * ctx.weight
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(scale.pow(3)).div_(x.shape[-1])
        return dx.mul_(scale).addcmul_(x, along, value=-1), None, None
