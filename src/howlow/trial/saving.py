"""What a trial saves after its training for others to use: the adapter with its card."""

from collections.abc import Sequence
from typing import Any

from howlow.engine.adapter import save_adapter
from howlow.engine.references import locate
from howlow.records import ModelRecord
from howlow.settings import Settings, adapts
from howlow.trial.card import model_card
from howlow.trial.state import TrialState


def save_trained_adapter(state: TrialState, model: Any) -> None:
    """Save the adapter of a trial that has one."""
    if adapts(state.kind):
        reference = locate(state.settings.model, state.settings.random_weights)
        size = save_adapter(model, state.folder / "adapter", reference.location, _card(state))
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
    made = {
        "rank": lora.rank,
        "alpha": lora.alpha_value,
        "scaling": f"{lora.scaling}, factor {lora.scaling_factor:g}",
        **_other_than_usual(state),
        "target modules": _targets(lora.target_modules, found.resolved.target_modules or ()),
        **_cut(state),
    }
    trained = {
        "task": state.settings.task.name,
        "training examples": f"{found.data.train_examples}, {_length(state)}",
        "learning rate": training.learning_rate,
        "batch size": training.effective_batch_size or state.training_batch_size,
        "sequence length": training.sequence_length,
        "seed": state.settings.seed,
    }
    settings = state.settings
    facts = made | (trained if state.trains else {}) | {"howlow": found.environment.versions["howlow"]}
    reference = locate(settings.model, settings.random_weights)
    return model_card(
        reference,
        facts,
        revision=settings.revision,
        random=settings.random_weights,
        stored=_config_of_storage(settings),
    )


def _other_than_usual(state: TrialState) -> dict[str, str]:
    """The variant, where it is not plain LoRA, and how the base was stored, where it was quantised."""
    variant, quantization = state.settings.lora.variant, state.settings.quantization
    double = " with double quantisation" if quantization == "nf4" and state.settings.double_quantization else ""
    found: dict[str, str] = {} if variant == "lora" else {"variant": variant}
    if variant == "pissa":
        found["saved as"] = f"plain LoRA of rank {state.settings.lora.saved_rank}, for the base as it came"
    return found | ({} if quantization == "none" else {"base stored in": f"{quantization}{double}"})


def _config_of_storage(settings: Settings) -> str | None:
    """The code of transformers' config that stores the base in the same codes; random weights cannot be loaded so."""
    if settings.quantization == "none" or settings.random_weights:
        return None
    if settings.quantization == "int8":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    double = f"bnb_4bit_use_double_quant={settings.double_quantization}"
    return f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", {double})'


def _length(state: TrialState) -> str:
    steps = state.settings.lora.continue_steps
    return f"{steps} step(s) after the cut" if steps else f"{state.settings.training.epochs} epoch(s)"


def _cut(state: TrialState) -> dict[str, str]:
    """What a shrunk adapter was cut from."""
    found = state.found.shrunk
    if found is None:
        return {}
    kept = "" if found.energy_kept is None else f", {found.energy_kept:.1%} of its squared singular values kept"
    return {"cut from": f"{found.start}, rank {found.start_rank}{kept}"}
