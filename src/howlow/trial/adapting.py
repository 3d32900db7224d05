"""The adapter that a trial's settings ask for, attached to a model."""

from typing import Any

from howlow.engine import model as models
from howlow.engine.adapter import attach_lora
from howlow.settings import Settings


def with_adapter(model: Any, settings: Settings, structure: models.Structure) -> Any:
    """The model with its adapter; structure: the base's, whose unreached layers get none."""
    lora = settings.lora
    return attach_lora(
        model,
        rank=lora.rank,
        alpha=lora.alpha_value,
        scaling=lora.scaling,
        target_modules=lora.target_modules,
        dropout=lora.dropout,
        seed=settings.seed,
        unreached_layers=structure.unreached_layers,
        variant=lora.variant,
    )
