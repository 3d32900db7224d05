"""LoRA without casts: h = W x + s B A x in the dtype of the products, from copies that are cast once a step.

An adapter's own weights are fp32, and autocast computes in bf16 or fp16. PEFT's code casts x to fp32 and autocast casts
it back, in every layer; A and B are cast in every pass. Here copies of A and B in the computing dtype stay where they
are. They are cast when the weights have moved, to the bits that autocast would give. Layers that are given the same x,
as q, k and v are, share one product with all their A's. A scaling factor that is a power of two is folded into the
copies of A, where it changes no rounding; any other one multiplies the narrow A x.

The copies are leaves of autograd. A hook adds the gradient of a copy to the gradient of its weight, in fp32 as autocast
does, and frees it. So optimizers, checkpoints and saved adapters see PEFT's own parameters only.

Each rank is filled up with zeros to a multiple of `ALIGNMENT`, without which a GPU's products of 16-bit numbers are
slow. An adapter that is not plain (dropout, a variant such as DoRA) runs PEFT's own code.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from howlow.engine.cpu.linear import ADAPTER
from howlow.engine.cpu.patches import GIVEN_THE_SAME
from howlow.engine.model import decoder_of

ALIGNMENT = 8
"""16 bytes of bf16 or fp16."""
_LARGEST_EXPONENT = 60  # a factor beyond 2^60 is left to the forward pass, where an overflow is a divergence
_Part = tuple[nn.Parameter, tuple[slice, slice]]
"""A weight of an adapter, and which rows and columns of a copy it fills."""


@contextmanager
def joined_adapters(model: Any, dtype: torch.dtype) -> Iterator["CastAdapters"]:
    """Within this context the plain adapters of a model's decoder compute in this dtype, from copies."""
    groups = [AdapterGroup(layers, dtype) for layers in _groups(model)]
    for group in groups:
        for place, layer in enumerate(group.layers):
            layer.__class__, layer.group, layer.place = JoinedLayer, group, place
    try:
        yield CastAdapters(groups)
    finally:
        for group in groups:
            for layer in group.layers:
                layer.__class__ = LoraLayer
                del layer.group, layer.place


class CastAdapters:
    """The copies of all adapters of a model."""

    def __init__(self, groups: Sequence["AdapterGroup"]) -> None:
        self.groups = tuple(groups)
        parts = [(master, copied.detach()[place]) for group in groups for copied, master, place in group.copies()]
        self._masters = [master for master, _ in parts]
        # One kernel casts many tensors, if all of them are contiguous.
        dense, strided = ([part for part in parts if part[1].is_contiguous() is kind] for kind in (True, False))
        self._lists = [_columns(some) for some in (dense, strided) if some]
        factors = {group.below: group.folded for group in groups if group.folded != 1.0}
        self._folded, self._factors = [below.detach() for below in factors], list(factors.values())
        self._versions: list[int] = []
        self.cast_if_moved()

    @torch.no_grad()
    def cast_if_moved(self) -> None:
        """Cast the weights again if anything was written into one of them since the last time."""
        versions = [master._version for master in self._masters]
        if versions == self._versions:
            return
        self._versions = versions
        for masters, copies in self._lists:
            torch._foreach_copy_(copies, masters)
        if self._folded:
            torch._foreach_mul_(self._folded, self._factors)

    def forget(self) -> None:
        """To be called when a pass has ended with an error: what was kept for the layers that it did not reach."""
        for group in self.groups:
            group.forget()


class AdapterGroup:
    """The adapters of layers that are probably given the same x, with equal scaling factors.

    The first layer that is called computes x A^T of all, and keeps those of the others until they are called. Layers
    that turn out to be given different tensors run separately from then on.

    below: the copies of all A's, the one below the other: (sum of widths, in).
    above: the copy of each B: (out, width).
    folded: the factor that the copies of A hold. factor: the factor that is left for the forward pass.
    """

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        self.layers, self.dtype = tuple(layers), dtype
        scale = float(layers[0].scaling[ADAPTER])
        self.folded = scale if _is_exact(scale, dtype) else 1.0
        self.factor = scale / self.folded
        self._a, self._b = _weights(layers, "lora_A"), _weights(layers, "lora_B")
        self._widths = [-(-len(a) // ALIGNMENT) * ALIGNMENT for a in self._a]
        self._firsts = [sum(self._widths[:place]) for place in range(len(layers))]
        self.below = self._copy(self._a, sum(self._widths), self._a[0].shape[1])
        self.above = [self._copy([b], len(b), width) for b, width in zip(self._b, self._widths, strict=True)]
        self._hand_on_gradients()
        self._x: Tensor | None = None
        self._kept: list[Tensor | None] = []
        self._is_apart = False

    def __deepcopy__(self, _: Any) -> None:
        """A copied layer, which is not part of the model, runs PEFT's own code."""

    def _copy(self, masters: Sequence[nn.Parameter], rows: int, columns: int) -> nn.Parameter:
        # A parameter, whose shape torch's compiler takes as fixed; no module holds it.
        trains = any(master.requires_grad for master in masters)
        return nn.Parameter(masters[0].new_zeros((rows, columns), dtype=self.dtype), trains)

    def copies(self) -> Iterator[tuple[nn.Parameter, nn.Parameter, tuple[slice, slice]]]:
        """Each copy with a weight that it holds, and where."""
        for first, a in zip(self._firsts, self._a, strict=True):
            yield self.below, a, (slice(first, first + len(a)), slice(None))
        for copied, b in zip(self.above, self._b, strict=True):
            yield copied, b, (slice(None), slice(b.shape[1]))

    def _hand_on_gradients(self) -> None:
        for copied, factor in [(self.below, self.folded), *((above, 1.0) for above in self.above)]:
            parts = [(master, place) for one, master, place in self.copies() if one is copied and master.requires_grad]
            if parts:
                copied.register_post_accumulate_grad_hook(_handing_on(parts, factor))  # type: ignore[no-untyped-call]

    def computes(self, x: Tensor) -> bool:
        """Whether the products with this x are to be in the dtype of the copies."""
        kind = x.device.type
        if self.dtype in (torch.bfloat16, torch.float16):
            return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == self.dtype
        return not torch.is_autocast_enabled(kind) and x.dtype == self.dtype

    def reduced(self, place: int, x: Tensor) -> Tensor:
        """s x A^T of one of the layers: (..., width)."""
        if self._x is not None and (x is not self._x or self._kept[place] is None):
            self._x, self._kept, self._is_apart = None, [], True  # some were not asked for this x
        if self._is_apart:
            return self._product(x, self.below[self._firsts[place] :][: self._widths[place]])
        if self._x is None:
            self._x, self._kept = x, list(torch.split(self._product(x, self.below), self._widths, -1))
        found = self._kept[place]
        assert found is not None, "it was kept"
        self._kept[place] = None
        if all(kept is None for kept in self._kept):
            self._x, self._kept = None, []
        return found

    def forget(self) -> None:
        """Drop the products that layers have not asked for."""
        self._x, self._kept = None, []

    def _product(self, x: Tensor, below: Tensor) -> Tensor:
        product = F.linear(x, below)
        return product if self.factor == 1.0 else product * self.factor


class JoinedLayer(LoraLayer):  # type: ignore[misc]
    """What a layer with an adapter is while it runs joined."""

    group: AdapterGroup | None
    place: int

    def forward(self, x: Tensor, *further: Any, **named: Any) -> Tensor:
        """W x + s B A x; by PEFT's own code where it is asked for anything else."""
        group = self.group
        if group is None or further or named or not group.computes(x):
            own: Tensor = super().forward(x, *further, **named)
            return own
        reduced = group.reduced(self.place, x)
        found: Tensor = self.base_layer(x) + F.linear(reduced, group.above[self.place])
        return found


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


def _columns(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [master for master, _ in parts], [copied for _, copied in parts]


def _weights(layers: Sequence[Any], part: str) -> list[nn.Parameter]:
    return [getattr(layer, part)[ADAPTER].weight for layer in layers]


def _groups(model: Any) -> list[list[Any]]:
    """The plain adapters, those together that are probably given the same x."""
    modules = list(decoder_of(model).modules())
    alone = dict.fromkeys(module for module in modules if _is_plain(module))
    found: list[list[Any]] = []
    for parent in modules:
        for names in GIVEN_THE_SAME:
            alike: dict[tuple[float, int], list[Any]] = {}
            named: list[Any] = [getattr(parent, name, None) for name in names]
            for layer in named:
                if layer in alone:
                    del alone[layer]
                    alike.setdefault((layer.scaling[ADAPTER], layer.in_features), []).append(layer)
            found += alike.values()
    return [*found, *([layer] for layer in alone)]


def _is_plain(layer: Any) -> bool:
    return (
        type(layer) is LoraLayer
        and isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
        and list(layer.active_adapters) == [ADAPTER]
        and not layer.merged
        and not layer.disable_adapters
        and ADAPTER not in layer.lora_variant
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and layer.lora_B[ADAPTER].bias is None
    )
