"""What settings ask of a model that not every model, machine or rank can give: found before the first trial."""

from collections.abc import Sequence
from typing import Any

from howlow.engine import model as models
from howlow.engine.adapter import matched_layers, refuse_unadaptable
from howlow.engine.adapter_variants import Variant
from howlow.engine.execution import decide
from howlow.engine.quantization import Quantization, no_layers, quantized_already, refuse_unusable
from howlow.errors import UserError
from howlow.meters.machine import choose_device
from howlow.settings import Settings
from howlow.trial.loading import choose_precision, config_of_base

Adapter = tuple[Variant, int, tuple[str, ...]]
"""A variant, its rank and its target modules."""


def refuse_what_cannot_be(settings: Settings, adapters: Sequence[Adapter], kinds: Sequence[Quantization]) -> None:
    """Refuse variants of LoRA, and kinds of quantisation, that cannot be had with this model on this machine.

    Raises:
        UserError: names the setting.
    """
    if adapters or kinds:
        config = config_of_base(settings)
        structure = models.structure(config, settings.trust_remote_code)
        _refuse_unadaptable(settings, config, structure, adapters)
        for kind in kinds:
            _refuse_unquantizable(settings, config, structure, kind)


def _refuse_unquantizable(settings: Settings, config: Any, structure: models.Structure, kind: Quantization) -> None:
    if getattr(config, "quantization_config", None) is not None and not settings.random_weights:
        raise quantized_already(settings.model, config.quantization_config)
    if not structure.linear_shapes:
        raise no_layers(structure.architecture, kind)
    device = choose_device(settings.run.device)
    refuse_unusable(kind, device, decide(device=device, precision=choose_precision(settings, device)).storage)


def _refuse_unadaptable(
    settings: Settings, config: Any, structure: models.Structure, adapters: Sequence[Adapter]
) -> None:
    shapes, idle = structure.linear_shapes, structure.unreached_layers
    for variant, targets in sorted({(variant, targets) for variant, _, targets in adapters}):
        refuse_unadaptable(config, settings.trust_remote_code, targets, idle, variant)
    for variant, rank, targets in sorted(adapters):
        sides = {name: min(shapes[name]) for name in matched_layers(shapes, targets, idle)}
        small = [name for name, side in sides.items() if side < rank]
        if variant == "pissa" and small:
            raise UserError(
                f'lora.rank = {rank} with lora.variant = "pissa": {small[0]} has only {sides[small[0]]} singular '
                f"directions to start from; leave out ranks above {min(sides.values())}, or name other target modules"
            )
