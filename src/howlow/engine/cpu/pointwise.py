"""A gated MLP, RMSNorm and the rotation of rotary positions with frozen weights: fewer passes over activations."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from howlow.engine.cpu.gemm import FrozenWeight

_IN_CACHE = 1 << 17  # numbers of a part that is widened to fp32: it stays in a core's cache for all operations on it


class GatedMlp(torch.autograd.Function):
    """y = (silu(x G^T) * (x U^T)) D^T with all three frozen; keeps the two products, not what is made of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: FrozenWeight, up: FrozenWeight, down: FrozenWeight) -> Tensor:
        """See the class; x: (..., width)."""
        gated, raised = gate.forward(x), up.forward(x)
        ctx.save_for_backward(gated, raised)
        ctx.weights = gate, up, down
        hidden = F.silu(gated).mul_(raised)
        return down.forward(hidden)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None]:
        """The gradient of x."""
        gated, raised = ctx.saved_tensors
        gate, up, down = ctx.weights
        d_hidden = down.backward(dy)
        d_gated = d_hidden * raised
        torch.ops.aten.silu_backward.grad_input(d_gated, gated, grad_input=d_gated)
        dx = gate.backward(d_gated)
        dx += up.backward(d_hidden.mul_(F.silu(gated)))
        return dx, None, None, None


class RmsNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + epsilon) with w frozen (Zhang and Sennrich 2019, equation 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See the class; x: (..., width). In bf16 all sums are in fp32."""
        ctx.weight = weight
        if x.dtype != torch.float32:
            y, scale = _normed(x, epsilon)
            ctx.save_for_backward(x, scale)
            return y.mul_(weight)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale)
        normed: Tensor = (x * scale).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        x, scale = ctx.saved_tensors
        if x.dtype != torch.float32:
            return _norm_backward(dy, x, scale, ctx.weight), None, None
        dx = dy * ctx.weight
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(scale.pow(3)).div_(x.shape[-1])
        return dx.mul_(scale).addcmul_(x, along, value=-1), None, None


def _normed(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + epsilon), rounded to the dtype of x, and the factors of the rows in fp32."""
    y, scale = x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    for part, of_scale, out in _parts(x, scale, y):
        wide = part.float()
        torch.linalg.vector_norm(wide, dim=-1, keepdim=True, out=of_scale)
        of_scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        out.copy_(wide.mul_(of_scale))
    return y, scale


def _norm_backward(dy: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x in RMSNorm, with sums in fp32."""
    dx, wide_weight = x.new_empty(x.shape), weight.float()
    for of_dy, part, of_scale, out in _parts(dy, x, scale, dx):
        wide_dx, wide = of_dy.float().mul_(wide_weight), part.float()
        along = torch.linalg.vecdot(wide_dx, wide).unsqueeze(-1).mul_(of_scale.pow(3)).div_(x.shape[-1])
        out.copy_(wide_dx.mul_(of_scale).addcmul_(wide, along, value=-1))
    return dx


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of tensors that have them in common, a few at a time; the first is the widest."""
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    return zip(*(torch.split(one, max(1, _IN_CACHE // rows[0].shape[-1])) for one in rows), strict=True)


class Rotation(torch.autograd.Function):
    """y = cos * (x1, x2) + sin * (-x2, x1), with x1 and x2 the halves of x (Su et al. 2021, equation 34)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See the class; x: (..., tokens, dimension), cos and sin broadcast to it, both halves given."""
        ctx.cos, ctx.sin = cos, sin
        half, y = x.shape[-1] // 2, x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        cos, sin = ctx.cos, ctx.sin
        half, dx = dy.shape[-1] // 2, dy * cos
        dx[..., half:].addcmul_(dy[..., :half], sin[..., :half], value=-1)
        dx[..., :half].addcmul_(dy[..., half:], sin[..., half:])
        return dx, None, None
