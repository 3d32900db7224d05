"""Which parts of a frozen model run fused on a CPU: linear layers, adapters, gated MLPs, norms, rotations.

A fused form gives what the module's own code gives, in another order of the same arithmetic, with fewer passes over
activations and fewer of them kept for the backward pass. The frozen weights are in fp32, or in bf16 under autocast to
bf16. A module that is not plain (dropout, a variant of LoRA, another dtype, a weight that trains) runs its own code.
Names alone do not say what a module computes, so each module is compared with its fused form once, when the model
enters its execution.
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
from howlow.engine.cpu.gemm import NO_CHOICE, Gemms, is_frozen_linear
from howlow.engine.model import REFUSALS
from howlow.engine.quantization import QuantizedWeight, held
from howlow.engine.values import with_values

GIVEN_THE_SAME = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of a module that probably get the same tensor; `linear.Siblings` finds out when they run."""


@contextmanager
def fused(model: nn.Module, dtype: torch.dtype = torch.float32, gemms: Gemms = NO_CHOICE) -> Iterator[None]:
    """Within this context the model's frozen parts, with their adapters, run fused where possible.

    dtype: that of the frozen weights. gemms: the libraries that compute products with them.
    """
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    rotations: list[Any] = []
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        forwards = {**_linear_forwards(model, dtype, gemms), **_whole_forwards(model, dtype, gemms)}
        rotations = _rotations(model, dtype)
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


def _linear_forwards(model: nn.Module, dtype: torch.dtype, gemms: Gemms) -> dict[nn.Module, Callable[..., Any]]:
    adapters = [module for module in model.modules() if isinstance(module, LoraLayer)]
    adapted = [module for module in adapters if _is_plain_adapter(module, dtype)]
    inside = {module.base_layer for module in adapted}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
    found: dict[nn.Module, Callable[..., Any]] = {
        layer: partial(linear.linear, layer, gemms.frozen(layer)) for layer in layers if is_frozen_linear(layer, dtype)
    }
    alone = {layer: linear.Siblings([layer], gemms).forward_of(layer) for layer in adapted}
    found |= alone
    for parent in model.modules():
        for names in GIVEN_THE_SAME:
            named: list[Any] = [getattr(parent, name, None) for name in names]
            together = [layer for layer in named if layer in alone]
            if len(together) > 1:
                siblings = linear.Siblings(together, gemms)
                found |= {layer: siblings.forward_of(layer) for layer in together}
    return found


def _is_plain_adapter(layer: Any, dtype: torch.dtype) -> bool:
    base, name = layer.base_layer, linear.ADAPTER
    return (
        is_frozen_linear(base, dtype)
        and list(layer.active_adapters) == [name]
        and not layer.merged
        and not layer.disable_adapters
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_A[name].weight.dtype == torch.float32
        and layer.lora_B[name].bias is None
    )


# -- modules that are fused as a whole ----------------------------------------------------------------------------


def _whole_forwards(model: nn.Module, dtype: torch.dtype, gemms: Gemms) -> dict[nn.Module, Callable[..., Any]]:
    found = {}
    for module in model.modules():
        whole = _gated_mlp(module, dtype, gemms) or _norm(module, dtype)
        if whole is not None and _agrees(*with_values((module, whole))):
            found[module] = whole
    return found


@torch.no_grad()
def _agrees(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether a fused form gives what the module's own code gives, on a large and on a small input."""
    weight: Any = getattr(module, "gate_proj", module).weight  # a norm may keep it as a buffer or a plain tensor
    probe = torch.randn((3, weight.shape[-1]), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    try:
        return all(_close(forward(probe * scale), module(probe * scale)) for scale in (2.0, 0.01))
    except REFUSALS:
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 4 * torch.finfo(expected.dtype).eps
    if found.dtype != expected.dtype:
        return False
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _gated_mlp(module: Any, dtype: torch.dtype, gemms: Gemms) -> Callable[[Tensor], Tensor] | None:
    """The fused form of down(silu(gate(x)) * up(x)), for a module that has its parts."""
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    if not isinstance(activation, nn.SiLU | SiLUActivation):
        return None
    if not all(is_frozen_linear(layer, dtype) for layer in layers):
        return None
    if any(layer.bias is not None for layer in layers) or set(module.children()) != {*layers, activation}:
        return None
    fixed = [gemms.frozen(layer) for layer in layers]
    return partial(_apply, pointwise.GatedMlp, held(layers[0]), fixed, module.forward)


def _norm(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The fused form of an RMSNorm with a frozen weight."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not type(module).__name__.endswith("RMSNorm")
        or not isinstance(weight, Tensor)
        or not isinstance(epsilon, float)
    ):
        return None
    if weight.requires_grad or weight.dtype != dtype or weight.device.type != "cpu":
        return None
    return partial(_apply, pointwise.RmsNorm, weight, [weight, epsilon], module.forward)


def _apply(
    function: Any,
    like: Tensor | QuantizedWeight,
    fixed: Sequence[Any],
    own: Callable[..., Any],
    x: Tensor,
    *further: Any,
    **named: Any,
) -> Any:
    """The fused form; the module's own code where it is given anything else. like: has the width and dtype of x."""
    is_another = further or named or x.shape[-1] != like.shape[-1] or x.dtype != like.dtype
    return own(x, *further, **named) if is_another else function.apply(x, *fixed)


# -- rotary positions ---------------------------------------------------------------------------------------------

_ROTATION = "apply_rotary_pos_emb"  # the function's name in the code of transformers' models


def _rotations(model: nn.Module, dtype: torch.dtype) -> list[Any]:
    """The Python modules with the model's code whose function rotates queries and keys as ours does."""
    codes = {sys.modules.get(type(module).__module__) for module in model.modules()}
    return [code for code in codes if hasattr(code, _ROTATION) and _rotates_alike(getattr(code, _ROTATION), dtype)]


@torch.no_grad()
def _rotates_alike(function: Callable[..., Any], dtype: torch.dtype) -> bool:
    """Whether a function rotates as ours does; with another convention its result differs, or it raises."""
    chance = torch.Generator().manual_seed(0)
    query, key = (torch.randn((1, heads, 3, 8), generator=chance).to(dtype) for heads in (2, 1))
    cos, sin = (torch.randn((1, 3, 8), generator=chance).to(dtype) for _ in range(2))
    try:
        pairs = zip(_rotated(function, query, key, cos, sin), function(query, key, cos, sin), strict=True)
        return all(_close(ours, theirs) for ours, theirs in pairs)
    except REFUSALS:
        return False


def _rotated(
    own: Callable[..., Any], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *further: Any, **named: Any
) -> Any:
    """Queries and keys, rotated; by the model's own function where it is given anything else."""
    dtypes = {part.dtype if part.device.type == "cpu" else None for part in (query, key, cos, sin)}
    plain = dtypes in ({torch.float32}, {torch.bfloat16})
    if not plain or further or named or any(part.shape[-1] != query.shape[-1] for part in (key, cos, sin)):
        return own(query, key, cos, sin, *further, **named)
    angles = cos.unsqueeze(1), sin.unsqueeze(1)
    return tuple(pointwise.Rotation.apply(part, *angles) for part in (query, key))  # type: ignore[no-untyped-call]
