"""Which kinds of model howlow can fine-tune: causal language models, as transformers names them."""

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from howlow.errors import UserError

_AUTO_CLASS = "AutoModelForCausalLM"


def refuse_other_kind(name: str, config: Any) -> None:
    """Refuse a model that transformers does not load as a causal language model.

    Raises:
        UserError: it is of another kind, for example an encoder-decoder or a model of images.
    """
    own_code = getattr(config, "auto_map", None) or {}
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or _AUTO_CLASS in own_code:
        return
    classes = ", ".join(getattr(config, "architectures", None) or ()) or type(config).__name__
    raise UserError(
        f"model {name}: {classes} (model type {config.model_type}) is {_kind(config)}; a causal language model is "
        f"needed, one that continues a text and that transformers loads with {_AUTO_CLASS} (Llama, Qwen2, Gemma, ...)"
    )


def _kind(config: Any) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    if config.get_text_config() is not config:
        return "a model of text together with images or sound"
    return "of another kind"
