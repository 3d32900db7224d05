"""The matrices of a saved adapter: read from `adapter_model.safetensors`, and checked against a model's layers.

PEFT names them `base_model.model.LAYER.lora_A.weight` and `.lora_B.weight`.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from howlow.engine.adapter import IN_PEFT
from howlow.engine.spectra import Factors
from howlow.errors import UserError, lacks_access
from howlow.places import told

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


def read_factors(folder: Path) -> dict[str, Factors]:
    """The factors of every adapted layer, by the layer's name in the base model.

    Raises:
        UserError: the file is missing or damaged, holds other tensors than pairs of matrices, or values that are no
            numbers.
    """
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in _tensors(folder).items():
        layer, _, end = name.removesuffix(".weight").removeprefix(IN_PEFT).rpartition(".")
        if end not in ("lora_A", "lora_B") or tensor.ndim != 2 or not name.endswith(".weight"):
            raise UserError(
                f"adapter {folder}: {WEIGHTS} holds {name} of shape {list(tensor.shape)}: only pairs of matrices "
                "lora_A and lora_B of linear layers can be cut to a smaller rank"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"adapter {folder}: {name} holds values that are not finite; the training diverged")
        pairs[layer][end] = tensor
    for layer, pair in pairs.items():
        if len(pair) != 2:
            raise UserError(f"adapter {folder}: {WEIGHTS} has {next(iter(pair))} of {layer} and not its other matrix")
    return {layer: Factors(pair["lora_B"], pair["lora_A"]) for layer, pair in pairs.items()}


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / _PICKLE).exists():
            raise UserError(
                f"adapter {folder}: {_PICKLE} holds pickled weights, which can run code and are refused; save the "
                f"adapter as {WEIGHTS}"
            )
        raise UserError(f"adapter {folder}: {WEIGHTS} is missing; copy the folder again")
    try:
        with path.open("rb"), safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        why = told(error) if lacks_access(error) else f"{WEIGHTS} cannot be read ({error}); copy it again"
        raise UserError(f"adapter {folder}: {why}") from None


def check_factors(
    folder: Path, factors: Mapping[str, Factors], rank: int, shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse an adapter that is not of this rank everywhere, or is not made for these layers.

    shapes: the layers that `target_modules` match in the base model, as name -> (in, out).

    Raises:
        UserError: names the first layer that does not fit, and both values.
    """
    for layer, pair in factors.items():
        ranks = {pair.a.shape[0], pair.b.shape[1]}
        if ranks != {rank}:
            found = " and ".join(map(str, sorted(ranks)))
            raise UserError(
                f"adapter {folder}: its ranks differ by module: {layer} has {found}, its config says {rank}; an "
                "adapter with one rank for all modules is expected"
            )
        own = pair.a.shape[1], pair.b.shape[0]
        if layer in shapes and shapes[layer] != own:
            raise UserError(
                f"adapter {folder}: it was made for another model: {layer} maps {own[0]} to {own[1]} numbers in the "
                f"adapter, {shapes[layer][0]} to {shapes[layer][1]} in the model; give its own base with --model"
            )
    for names, where, other in (
        (factors.keys() - shapes.keys(), "the adapter has", "the model does not match"),
        (shapes.keys() - factors.keys(), "the model matches", "the adapter does not have"),
    ):
        if names:
            raise UserError(
                f"adapter {folder}: it was made for another model, or for part of its layers: {where} {min(names)}, "
                f"which {other} ({len(names)} such layers); give its own base with --model"
            )
