"""LoRA without casts: h = W x + s B A x in the dtype of the products, from copies that are cast once a step.

An adapter's own weights are fp32, and autocast computes in bf16 or fp16. PEFT's code casts x to fp32 and autocast casts
it back, in every layer; A and B are cast in every pass. Here copies of A and B in the computing dtype stay where they
are. They are cast when the weights have moved, to the bits that autocast would give. Layers that are given the same x,
as q, k and v are, share one product (`howlow.engine.cuda.layer_groups`). A scaling factor that is a power of two is
folded into the copies of A, where it changes no rounding; any other one multiplies the narrow A x.

Optimizers, checkpoints and saved adapters see PEFT's own parameters only. Each rank is filled up with zeros to a
multiple of 8, without which a GPU's products of 16-bit numbers are slow. An adapter that is not plain (dropout, a
variant such as DoRA) runs PEFT's own code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from howlow.engine.cpu.linear import ADAPTER
from howlow.engine.cpu.patches import GIVEN_THE_SAME
from howlow.engine.cuda.layer_groups import LayerGroup, base_layer_of, can_move, rewrite
from howlow.engine.model import decoder_of

_HOLES_BYTES = 256 << 20
"""What is moved before the memory where it was is given back: so much is held twice for a moment."""


@contextmanager
def joined_adapters(model: Any, dtype: torch.dtype) -> Iterator["CastAdapters"]:
    """Within this context the plain adapters of a model's decoder compute in this dtype, from copies.

    Frozen weights in this dtype stay where they were moved to, in the product of their group.
    """
    groups = _groups(model, dtype)
    for group in groups:
        for place, layer in enumerate(group.layers):
            layer.__class__ = JoinedLayer if isinstance(layer, LoraLayer) else JoinedLinear
            layer.group, layer.place = group, place
    try:
        yield CastAdapters(groups)
    finally:
        for group in groups:
            for layer in group.layers:
                layer.__class__ = LoraLayer if isinstance(layer, LoraLayer) else nn.Linear
                del layer.group, layer.place


class CastAdapters:
    """The copies of all adapters of a model."""

    def __init__(self, groups: Sequence[LayerGroup]) -> None:
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


class JoinedLayer(LoraLayer):  # type: ignore[misc]
    """What a layer with an adapter is while it runs joined."""

    group: LayerGroup | None
    place: int

    def forward(self, x: Tensor, *further: Any, **named: Any) -> Tensor:
        """W x + s B A x; by PEFT's own code where it is asked for anything else."""
        group = self.group
        if group is None or further or named or not group.computes(x):
            own: Tensor = super().forward(x, *further, **named)
            return own
        base, reduced = group.products(self.place, x)
        above = group.above[self.place]
        assert reduced is not None, "it has an adapter"
        assert above is not None, "it has an adapter"
        found: Tensor = (self.base_layer(x) if base is None else base) + F.linear(reduced, above)
        return found


class JoinedLinear(nn.Linear):
    """What a layer without an adapter is while it is part of a group."""

    group: LayerGroup | None
    place: int

    def forward(self, x: Tensor) -> Tensor:
        """W x + b."""
        group = self.group
        base = group.products(self.place, x).base if group is not None and group.computes(x) else None
        return super().forward(x) if base is None else base


def _columns(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [master for master, _ in parts], [copied for _, copied in parts]


def _groups(model: Any, dtype: torch.dtype) -> list[LayerGroup]:
    """Plain adapters, those together that are probably given the same x, and the frozen layers beside them."""
    modules = list(decoder_of(model).modules())
    alone = dict.fromkeys(module for module in modules if _is_plain(module))
    together: list[list[Any]] = []
    for parent in modules:
        for names in GIVEN_THE_SAME:
            named = [getattr(parent, name, None) for name in names]
            together += _alike([layer for layer in named if layer in alone or can_move(layer, dtype)])
    for layer in (layer for layers in together for layer in layers):
        alone.pop(layer, None)
    joint: set[int] = set()
    plans: dict[Any, tuple[list[Any], bool]] = {}
    for layers in [*together, *([layer] for layer in alone)]:
        bases = [base_layer_of(layer) for layer in layers]
        weights = {id(base.weight) for base in bases}
        if len(weights - joint) == len(bases) and all(can_move(base, dtype) for base in bases):
            joint |= weights
            plans[layers[0]] = layers, True
        elif adapted := [layer for layer in layers if isinstance(layer, LoraLayer)]:
            plans[adapted[0]] = adapted, False
    return list(_moved_in_order(modules, dtype, plans, joint))


def _moved_in_order(
    modules: Sequence[nn.Module], dtype: torch.dtype, plans: dict[Any, tuple[list[Any], bool]], joint: set[int]
) -> Iterator[LayerGroup]:
    """The planned groups in the order of the model, whose other weights are moved, too, where any is.

    A weight that stayed would keep a hole before it, which fits nothing, from being given back.
    """
    in_holes, has_moved = 0, False
    for module in modules:
        if module in plans:
            layers, is_joint = plans[module]
            group = LayerGroup(layers, dtype, joint=is_joint)
            yield group
            moved_bytes = group.moved_bytes
        elif has_moved and can_move(module, dtype) and id(module.weight) not in joint:
            moved_bytes = rewrite(module.weight)  # type: ignore[arg-type]
        else:
            continue
        has_moved |= moved_bytes > 0
        in_holes += moved_bytes
        if in_holes > _HOLES_BYTES:
            in_holes = 0
            torch.cuda.empty_cache()
    if in_holes:
        torch.cuda.empty_cache()


def _alike(layers: Sequence[Any]) -> list[list[Any]]:
    """Layers of one input width: adapters of one scaling factor, and those without one beside the first of them."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for layer in sorted(layers, key=lambda one: not isinstance(one, LoraLayer)):  # adapters first
        alike = [key for key in found if key[0] == layer.in_features]
        scale = layer.scaling[ADAPTER] if isinstance(layer, LoraLayer) else (alike[0][1] if alike else None)
        found.setdefault((layer.in_features, scale), []).append(layer)
    return [group for group in found.values() if len(group) > 1 or isinstance(group[0], LoraLayer)]


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
