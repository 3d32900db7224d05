"""What a trial saves after its training for others to use: the adapter with its card."""

from collections.abc import Sequence
from typing import Any

from howlow.engine import model as models
from howlow.engine.references import locate
from howlow.records import ModelRecord
from howlow.trial.card import model_card
from howlow.trial.state import TrialState


def save_trained_adapter(state: TrialState, model: Any) -> None:
    """Save the adapter of a trial that has one."""
    if state.kind == "lora":
        reference = locate(state.settings.model, state.settings.random_weights)
        size = models.save_adapter(model, state.folder / "adapter", reference.location, _card(state))
        state.found.model = with_adapter_bytes(state.found.model, size)


def with_adapter_bytes(model: ModelRecord | None, size: int | None) -> ModelRecord:
    """The model's record once the adapter is saved."""
    assert model is not None, "the model is loaded"
    return model.model_copy(update={"adapter_bytes": size})


def _targets(asked: Sequence[str], ends: Sequence[str]) -> str:
    """The target modules as asked for, and the ends of the adapted layers' names where these are others."""
    adapted = "" if set(asked) == set(ends) else f" ({', '.join(ends)})"
    return ", ".join(asked) + adapted


def _card(state: TrialState) -> str:
    lora, training, found = state.settings.lora, state.settings.training, state.found
    assert found.data is not None, "the data is read before training"
    assert found.environment is not None, "the environment is looked at before training"
    facts = {
        "rank": lora.rank,
        "alpha": lora.alpha_value,
        "scaling": f"{lora.scaling}, factor {lora.scaling_factor:g}",
        "target modules": _targets(lora.target_modules, found.resolved.target_modules or ()),
        "task": state.settings.task.name,
        "training examples": f"{found.data.train_examples}, {training.epochs} epoch(s)",
        "learning rate": training.learning_rate,
        "batch size": training.effective_batch_size or state.training_batch_size,
        "sequence length": training.sequence_length,
        "seed": state.settings.seed,
        "howlow": found.environment.versions["howlow"],
    }
    settings = state.settings
    reference = locate(settings.model, settings.random_weights)
    return model_card(reference, facts, revision=settings.revision, random=settings.random_weights)
