"""A gated MLP, RMSNorm and the rotation of rotary positions with frozen weights: fewer passes over activations."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from howlow.engine.cpu.linear import product


class GatedMlp(torch.autograd.Function):
    """y = (silu(x G^T) * (x U^T)) D^T with all three frozen; keeps the two products, not what is made of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """See the class; x: (..., width)."""
        gated, raised = product(x, gate), product(x, up)
        ctx.save_for_backward(gated, raised)
        ctx.weights = gate, up, down
        hidden = F.silu(gated).mul_(raised)
        return product(hidden, down)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None]:
        """The gradient of x."""
        gated, raised = ctx.saved_tensors
        gate, up, down = ctx.weights
        d_hidden = product(dy, down.t())
        d_gated = d_hidden * raised
        torch.ops.aten.silu_backward.grad_input(d_gated, gated, grad_input=d_gated)
        dx = product(d_gated, gate.t())
        dx += product(d_hidden.mul_(F.silu(gated)), up.t())
        return dx, None, None, None


class RmsNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + epsilon) with w frozen (Zhang and Sennrich 2019, equation 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See the class; x: (..., width)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale)
        ctx.weight = weight
        y: Tensor = (x * scale).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        x, scale = ctx.saved_tensors
        dx = dy * ctx.weight
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(scale.pow(3)).div_(x.shape[-1])
        return dx.mul_(scale).addcmul_(x, along, value=-1), None, None


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
