"""Layers that are given the same x, as q, k and v are, run as one product, which their adapters' A's are part of.

    y = [W_q; W_k; W_v; s A_q; s A_k; s A_v] x        and then        h_q = y_Wq + B_q y_Aq

One wide product is faster than several narrow ones, most of all where few tokens pass: a token step of generation reads
each weight once, and the smaller a weight is, the further it stays from the memory's speed. The gradient of x is one
product, too.

The frozen weights become views of one tensor, and stay so: they are not held twice. Where that cannot be (a quantised
base, weights in another dtype than the products, a base that trains) only the A's are one product.

What a layer takes from the product is a view of it. What autograd keeps of that is therefore copied before: a view that
is kept would keep the whole product, of all layers, until the backward pass.

The copies of A and B are leaves of autograd. A hook adds the gradient of a copy to the gradient of its weight, in fp32
as autocast does, and frees it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from howlow.engine.cpu.linear import ADAPTER

ALIGNMENT = 8
"""16 bytes of bf16 or fp16."""
_LARGEST_EXPONENT = 60  # a factor beyond 2^60 is left to the forward pass, where an overflow is a divergence
_MOVED = WeakTensorKeyDictionary()
"""The weights that are views of a tensor with others, as keys."""
_Part = tuple[nn.Parameter, tuple[slice, slice]]
"""A weight of an adapter, and which rows and columns of a copy it fills."""


class Products(NamedTuple):
    """What a layer takes from the product of its group.

    base: W x + b, where the frozen weights are part of the product. reduced: s A x, where the layer has an adapter.
    """

    base: Tensor | None = None
    reduced: Tensor | None = None


class LayerGroup:
    """Layers that are probably given the same x; their adapters, where they have any, have equal scaling factors.

    The first layer that is called computes the product of all, and keeps what is the others' until they are called.
    Layers that turn out to be given different tensors run separately from then on.

    joint: whether the frozen weights are moved into the product.
    below: the copies of all A's, the one below the other: (sum of widths, in).
    above: the copy of each layer's B: (out, width); None for a layer without an adapter.
    folded: the factor that the copies of A hold. factor: the factor that is left for the forward pass.
    """

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype, *, joint: bool = False) -> None:
        self.layers, self.dtype = tuple(layers), dtype
        adapted = [layer for layer in layers if isinstance(layer, LoraLayer)]
        scale = float(adapted[0].scaling[ADAPTER]) if adapted else 1.0
        self.folded = scale if _is_exact(scale, dtype) else 1.0
        self.factor = scale / self.folded
        self._a, self._b = ([_factor(layer, part) for layer in layers] for part in ("lora_A", "lora_B"))
        self._widths = [0 if a is None else -(-len(a) // ALIGNMENT) * ALIGNMENT for a in self._a]
        self._firsts = [sum(self._widths[:place]) for place in range(len(layers))]
        self._joint = _Joint([base_layer_of(layer) for layer in layers], sum(self._widths)) if joint else None
        self.below = self._new_below()
        self.above = [self._new_above(b, width) for b, width in zip(self._b, self._widths, strict=True)]
        self._hand_on_gradients()
        self._x: Tensor | None = None
        self._kept: list[Products | None] = []
        self._is_apart = False

    def __deepcopy__(self, _: Any) -> None:
        """A copied layer, which is not part of the model, runs its own code."""

    @property
    def moved_bytes(self) -> int:
        """How much of the frozen weights was moved for this group."""
        return 0 if self._joint is None else self._joint.moved_bytes

    def _new_below(self) -> nn.Parameter:
        masters = [a for a in self._a if a is not None]
        if self._joint is not None:
            rows = self._joint.below.detach()
        else:
            rows = masters[0].new_zeros((sum(self._widths), masters[0].shape[1]), dtype=self.dtype)
        return _leaf(rows, masters)

    def _new_above(self, b: nn.Parameter | None, width: int) -> nn.Parameter | None:
        return None if b is None else _leaf(b.new_zeros((len(b), width), dtype=self.dtype), [b])

    def copies(self) -> Iterator[tuple[nn.Parameter, nn.Parameter, tuple[slice, slice]]]:
        """Each copy with a weight that it holds, and where."""
        for first, a in zip(self._firsts, self._a, strict=True):
            if a is not None:
                yield self.below, a, (slice(first, first + len(a)), slice(None))
        for copied, b in zip(self.above, self._b, strict=True):
            if copied is not None and b is not None:
                yield copied, b, (slice(None), slice(b.shape[1]))

    def _hand_on_gradients(self) -> None:
        above = [(copied, 1.0) for copied in self.above if copied is not None]
        for copied, factor in [(self.below, self.folded), *above]:
            parts = [(master, place) for one, master, place in self.copies() if one is copied and master.requires_grad]
            if parts:
                copied.register_post_accumulate_grad_hook(_handing_on(parts, factor))  # type: ignore[no-untyped-call]

    def computes(self, x: Tensor) -> bool:
        """Whether the products with this x are to be in the dtype of the copies."""
        kind = x.device.type
        if self.dtype in (torch.bfloat16, torch.float16):
            return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == self.dtype
        return not torch.is_autocast_enabled(kind) and x.dtype == self.dtype

    def products(self, place: int, x: Tensor) -> Products:
        """What one of the layers takes from the product with x: (..., out) and (..., width)."""
        if self._x is not None and (x is not self._x or self._kept[place] is None):
            self._x, self._kept, self._is_apart = None, [], True  # some were not asked for this x
        if self._is_apart:
            return self._alone(place, x)
        if self._x is None:
            self._x, self._kept = x, [*self._of_all(x)]
        found = self._kept[place]
        assert found is not None, "it was kept"
        self._kept[place] = None
        if all(kept is None for kept in self._kept):
            self._x, self._kept = None, []
        return found

    def forget(self) -> None:
        """Drop the products that layers have not asked for."""
        self._x, self._kept = None, []

    def _of_all(self, x: Tensor) -> list[Products]:
        if self._joint is None:
            bases: Sequence[Tensor | None] = [None] * len(self.layers)
            reduced = self._scaled(F.linear(x, self.below))
        else:
            *parts, reduced = torch.split(self._joint.product(x.to(self.dtype), self.below), self._joint.sizes, -1)
            reduced = self._scaled(reduced.contiguous())  # kept for the gradient of B
            bases = [self._handed_on(part, width) for part, width in zip(parts, self._widths, strict=True)]
        narrow = torch.split(reduced, self._widths, -1)
        return [
            Products(base, part if width else None)
            for base, width, part in zip(bases, self._widths, narrow, strict=True)
        ]

    def _alone(self, place: int, x: Tensor) -> Products:
        if self._widths[place] == 0:
            return Products()
        own = self.below[self._firsts[place] :][: self._widths[place]]
        return Products(reduced=self._scaled(F.linear(x, own)))

    def _handed_on(self, base: Tensor, width: int) -> Tensor:
        """The result of a layer without an adapter is that layer's own, which others may keep or write into."""
        is_alone = width == 0 and any(self._widths) and torch.is_grad_enabled()
        return base.contiguous() if is_alone else base

    def _scaled(self, reduced: Tensor) -> Tensor:
        return reduced if self.factor == 1.0 else reduced * self.factor


class _Joint:
    """The frozen weights of layers in one tensor, whose views they become, with room for A's below them.

    sizes: the rows of each weight, and of what is below. moved_bytes: how much was moved; 0 where it was there already.
    """

    def __init__(self, bases: Sequence[nn.Linear], room: int) -> None:
        weights = [base.weight for base in bases]
        self.sizes = [*(len(weight) for weight in weights), room]
        with torch.inference_mode(False), torch.no_grad():  # the weights stay in it, also for a training
            whole, self.moved_bytes = _found_whole(weights, room), 0
            if whole is None:
                whole = weights[0].new_empty((sum(self.sizes), weights[0].shape[1]))
                for weight, place in zip(weights, torch.split(whole, self.sizes), strict=False):
                    place.copy_(weight)
                    weight.data = place
                    _MOVED[weight] = None
                self.moved_bytes = whole.nbytes
            self.below = whole[len(whole) - room :].zero_()
        self._whole = _leaf(whole)
        self._bias = _leaf(_biases(bases, room)) if any(base.bias is not None for base in bases) else None

    def product(self, x: Tensor, below: Tensor) -> Tensor:
        """(..., sum of sizes); below: the leaf whose gradient is that of the rows below."""
        if len(below) == 0 or not torch.is_grad_enabled():
            return F.linear(x, self._whole, self._bias)
        found: Tensor = _JointProduct.apply(x, self._whole, self._bias, below)  # type: ignore[no-untyped-call]
        return found


class _JointProduct(torch.autograd.Function):
    """A product with weights of which only the last rows train."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, bias: Tensor | None, below: Tensor) -> Tensor:
        """x W^T + b; below: the leaf of the last rows."""
        ctx.save_for_backward(x, whole)
        ctx.trained = len(below)
        return F.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        """The gradients of x and of the last rows."""
        x, whole = ctx.saved_tensors
        of_x = gradient @ whole if ctx.needs_input_grad[0] else None
        trained = gradient[..., gradient.shape[-1] - ctx.trained :].flatten(0, -2)
        of_below = trained.t() @ x.flatten(0, -2) if ctx.needs_input_grad[3] else None
        return of_x, None, None, of_below


def base_layer_of(layer: Any) -> Any:
    """The frozen layer of a layer with an adapter; a layer without one itself."""
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def can_move(base: Any, dtype: torch.dtype) -> bool:
    """Whether a layer's weight may become a part of a larger one that computes in this dtype."""
    if type(base) is not nn.Linear or base._forward_hooks or base._forward_pre_hooks:
        return False
    return all(parameter.dtype == dtype and not parameter.requires_grad for parameter in base.parameters())


def _found_whole(weights: Sequence[Tensor], room: int) -> Tensor | None:
    """The tensor of which weights are views since the last time, with that room below them."""
    storages = {weight.untyped_storage()._cdata for weight in weights}
    starts, rows, width = [weight.storage_offset() for weight in weights], 0, weights[0].shape[1]
    for weight, start in zip(weights, starts, strict=True):
        if start != rows * width or not weight.is_contiguous():
            return None
        rows += len(weight)
    size = (rows + room) * width * weights[0].element_size()
    if len(storages) > 1 or weights[0].untyped_storage().nbytes() != size:
        return None
    return weights[0].detach().as_strided((rows + room, width), (width, 1))


def rewrite(weight: nn.Parameter) -> int:
    """Give a weight storage of its own, of that size, which it may have been given before; how many bytes it has."""
    with torch.inference_mode(False), torch.no_grad():
        weight.data = weight.data.clone()
    if weight in _MOVED:
        del _MOVED[weight]
    return weight.nbytes


def move_apart(model: nn.Module) -> None:
    """Give moved weights storage of their own again: where some of them were replaced, the others keep their places."""
    for weight in model.parameters():
        if weight in _MOVED:
            rewrite(weight)


def _biases(bases: Sequence[nn.Linear], room: int) -> Tensor:
    parts = [base.weight.new_zeros(len(base.weight)) if base.bias is None else base.bias for base in bases]
    return torch.cat([*parts, bases[0].weight.new_zeros(room)])


def _leaf(values: Tensor, masters: Sequence[nn.Parameter] = ()) -> nn.Parameter:
    # A parameter, whose shape torch's compiler takes as fixed; no module holds it.
    return nn.Parameter(values, any(master.requires_grad for master in masters))


def _handing_on(parts: Sequence[_Part], factor: float) -> Callable[[Tensor], None]:
    """Adds the gradient of a copy to those of its weights, and frees it."""

    def hand_on(copied: Tensor) -> None:
        gradient, copied.grad = copied.grad, None
        assert gradient is not None, "it was just accumulated"
        for master, place in parts:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad.add_(gradient[place], alpha=factor)

    return hand_on


def _is_exact(factor: float, dtype: torch.dtype) -> bool:
    """Whether multiplying by a factor rounds nothing: by a power of two, in a dtype with the exponents of fp32."""
    mantissa, exponent = math.frexp(factor)
    return dtype != torch.float16 and mantissa == 0.5 and abs(exponent) <= _LARGEST_EXPONENT


def _factor(layer: Any, part: str) -> nn.Parameter | None:
    found: nn.Parameter | None = getattr(layer, part)[ADAPTER].weight if isinstance(layer, LoraLayer) else None
    return found
