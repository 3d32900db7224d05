"""PEFT's variants of LoRA: how their layers are merged, and what is saved of them.

    lora     h = W x + s B A x, with B = 0 at the start (Hu et al. 2021)
    dora     h = m (W + s B A) x / ||W + s B A||, the norm that of each row; m trains, too (Liu et al. 2024, equation 5)
    pissa    h = W' x + s B A x with W' = W - s B0 A0, where s B0 A0 is the best approximation of W of that rank and B A
             starts from it (Meng et al. 2024, equations 2 to 5)

PiSSA changes the base, and its adapter alone fits no model that anybody can load. What training adds to W itself is
s (B A - B0 A0), which is plain LoRA of twice the rank: A above A0, and B beside -B0. It is saved in that form, as PEFT
does with `path_initial_model_for_weight_conversion`.
"""

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Variant = Literal["lora", "dora", "pissa"]
_ADAPTER = "default"
_START_A, _START_B = "start_a", "start_b"


def initial_weights_of(variant: Variant, model: nn.Module) -> Literal["pissa", True]:
    """What PEFT is told to start an adapter from; a model without storage has nothing that PiSSA could start from."""
    has_values = not any(parameter.is_meta for parameter in model.parameters())
    return "pissa" if variant == "pissa" and has_values else True


def note_start(model: Any, variant: Variant) -> Any:
    """The model, in whose layers the matrices from which PiSSA starts are kept.

    Raises:
        ValueError: PiSSA is to start in experts that are fused.
    """
    for layer in model.modules():
        if variant == "pissa" and hasattr(layer, "get_delta_weight"):
            if hasattr(layer, "parameter_name"):
                raise ValueError("PEFT has no PiSSA for experts that are fused")
            a, b = own_factors(layer)
            layer.register_buffer(_START_A, a.detach().clone(), persistent=False)
            layer.register_buffer(_START_B, b.detach().clone(), persistent=False)
    return model


def own_factors(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B of an adapted layer, as PEFT keeps them: (r, in) and (out, r)."""
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def update_factors(layer: Any) -> tuple[Tensor, Tensor]:
    """The factors of what an adapted layer adds to the base as it came: A and B, or those of PiSSA's difference."""
    a, b = own_factors(layer)
    if not hasattr(layer, _START_A):
        return a, b
    return torch.cat([a, getattr(layer, _START_A)], 0), torch.cat([b, -getattr(layer, _START_B)], 1)


def has_magnitudes(layer: Any) -> bool:
    """Whether an adapted layer is DoRA's: what it adds to the base is no product of two matrices."""
    return _ADAPTER in layer.lora_magnitude_vector


def merged_weight(layer: Any, weight: Tensor) -> Tensor:
    """The weight of a base layer with its adapter, summed in fp32."""
    summed: Tensor = weight.detach().float() + layer.get_delta_weight(_ADAPTER).detach().float()
    if not has_magnitudes(layer):
        return summed
    inputs, rows = (0, (1, -1)) if layer.fan_in_fan_out else (1, (-1, 1))
    scale = layer.lora_magnitude_vector[_ADAPTER].weight.detach().float() / torch.linalg.norm(summed, dim=inputs)
    whole: Tensor = summed * scale.view(rows)
    return whole


def save_pretrained(model: Any, folder: Path, base_model: str) -> None:
    """Save an adapter in PEFT's format; PiSSA's as plain LoRA of twice the rank."""
    config, tensors = _saved_form(model)
    config.base_model_name_or_path = base_model
    own, model.peft_config[_ADAPTER] = model.peft_config[_ADAPTER], config
    try:
        # "auto" would ask the hub whether the vocabulary was resized; it never is here.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=tensors)
    finally:
        model.peft_config[_ADAPTER] = own


def _saved_form(model: Any) -> tuple[Any, dict[str, Tensor] | None]:
    """The config with which an adapter is saved, and its tensors where they are not the model's own."""
    config = copy.deepcopy(model.peft_config[_ADAPTER])
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, _START_A)}
    if not layers:
        return config, None
    config.init_lora_weights, config.r = True, 2 * config.r
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # s stays what it is
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = update_factors(layer)
        tensors |= {f"{name}.lora_A.{_ADAPTER}.weight": a.detach(), f"{name}.lora_B.{_ADAPTER}.weight": b.detach()}
    return config, tensors
