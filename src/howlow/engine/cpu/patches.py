"""Which parts of a frozen model run fused on a CPU in fp32: linear layers, adapters, gated MLPs, norms, rotations.

A fused form gives what the module's own code gives, in another order of the same arithmetic, with fewer passes over
activations and fewer of them kept for the backward pass. A module that is not plain (dropout, a variant of LoRA,
another dtype, a weight that trains) runs its own code. Names alone do not say what a module computes, so each module is
compared with its fused form once, when the model enters its execution.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from howlow.engine.cpu import linear, pointwise
from howlow.engine.model import REFUSALS, with_values

GIVEN_THE_SAME = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of a module that probably get the same tensor; `linear.Siblings` finds out when they run."""


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Within this context the model's frozen parts, with their adapters, run fused where possible."""
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    rotations: list[Any] = []
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        forwards = {**_linear_forwards(model), **_whole_forwards(model)}
        rotations = _rotations(model)
    with ExitStack() as stack:
        for code in rotations:
            own = getattr(code, _ROTATION)
            setattr(code, _ROTATION, partial(_rotated, own))
            stack.callback(setattr, code, _ROTATION, own)
        for module, forward in forwards.items():
            module.forward = forward
            stack.callback(delattr, module, "forward")
        yield


# -- linear layers and adapters -----------------------------------------------------------------------------------


def _linear_forwards(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain_adapter(module)]
    inside = {module.base_layer for module in adapted}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and _is_frozen(module)]
    found: dict[nn.Module, Callable[..., Any]] = {
        layer: partial(linear.linear, layer) for layer in layers if layer not in inside
    }
    alone = {layer: linear.Siblings([layer]).forward_of(layer) for layer in adapted}
    found |= alone
    for parent in model.modules():
        for names in GIVEN_THE_SAME:
            named: list[Any] = [getattr(parent, name, None) for name in names]
            together = [layer for layer in named if layer in alone]
            if len(together) > 1:
                siblings = linear.Siblings(together)
                found |= {layer: siblings.forward_of(layer) for layer in together}
    return found


def _is_frozen(layer: Any) -> bool:
    if type(layer) is not nn.Linear:
        return False
    plain = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    return plain and not any(parameter.requires_grad for parameter in layer.parameters())


def _is_plain_adapter(layer: Any) -> bool:
    base, name = layer.base_layer, linear.ADAPTER
    return (
        isinstance(base, nn.Linear)
        and _is_frozen(base)
        and list(layer.active_adapters) == [name]
        and not layer.merged
        and not layer.disable_adapters
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_A[name].weight.dtype == torch.float32
        and layer.lora_B[name].bias is None
    )


# -- modules that are fused as a whole ----------------------------------------------------------------------------


def _whole_forwards(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    found = {}
    for module in model.modules():
        whole = _gated_mlp(module) or _norm(module)
        if whole is not None and _agrees(*with_values((module, whole))):
            found[module] = whole
    return found


@torch.no_grad()
def _agrees(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether a fused form gives what the module's own code gives, on a large and on a small input."""
    weight: Any = getattr(module, "gate_proj", module).weight  # a norm may keep it as a buffer or a plain tensor
    probe = torch.randn((3, weight.shape[-1]), generator=torch.Generator().manual_seed(0))
    try:
        return all(_close(forward(probe * scale), module(probe * scale)) for scale in (2.0, 0.01))
    except REFUSALS:
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def _gated_mlp(module: Any) -> Callable[[Tensor], Tensor] | None:
    """The fused form of down(silu(gate(x)) * up(x)), for a module that has its parts."""
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    if not isinstance(activation, nn.SiLU | SiLUActivation) or not all(map(_is_frozen, layers)):
        return None
    if any(layer.bias is not None for layer in layers) or set(module.children()) != {*layers, activation}:
        return None
    return partial(_apply, pointwise.GatedMlp, [layer.weight for layer in layers], module.forward)


def _norm(module: Any) -> Callable[[Tensor], Tensor] | None:
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
    return partial(_apply, pointwise.RmsNorm, [weight, epsilon], module.forward)


def _apply(function: Any, fixed: Sequence[Any], own: Callable[..., Any], x: Tensor, *further: Any, **named: Any) -> Any:
    """The fused form; the module's own code where it is given anything else."""
    is_another = further or named or x.shape[-1] != fixed[0].shape[-1]
    return own(x, *further, **named) if is_another else function.apply(x, *fixed)


# -- rotary positions ---------------------------------------------------------------------------------------------

_ROTATION = "apply_rotary_pos_emb"  # the function's name in the code of transformers' models


def _rotations(model: nn.Module) -> list[Any]:
    """The Python modules with the model's code whose function rotates queries and keys as ours does."""
    codes = {sys.modules.get(type(module).__module__) for module in model.modules()}
    return [code for code in codes if hasattr(code, _ROTATION) and _rotates_alike(getattr(code, _ROTATION))]


@torch.no_grad()
def _rotates_alike(function: Callable[..., Any]) -> bool:
    """Whether a function rotates as ours does; with another convention its result differs, or it raises."""
    chance = torch.Generator().manual_seed(0)
    query, key = (torch.randn((1, heads, 3, 8), generator=chance) for heads in (2, 1))
    cos, sin = (torch.randn((1, 3, 8), generator=chance) for _ in range(2))
    try:
        pairs = zip(_rotated(function, query, key, cos, sin), function(query, key, cos, sin), strict=True)
        return all(_close(ours, theirs) for ours, theirs in pairs)
    except REFUSALS:
        return False


def _rotated(
    own: Callable[..., Any], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *further: Any, **named: Any
) -> Any:
    """Queries and keys, rotated; by the model's own function where it is given anything else."""
    plain = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (query, key, cos, sin))
    if not plain or further or named or any(part.shape[-1] != query.shape[-1] for part in (key, cos, sin)):
        return own(query, key, cos, sin, *further, **named)
    angles = cos.unsqueeze(1), sin.unsqueeze(1)
    return tuple(pointwise.Rotation.apply(part, *angles) for part in (query, key))  # type: ignore[no-untyped-call]
