"""The base model: config, weights, tokenizer, and what its structure is. (The adapter: `howlow.engine.adapter`.)"""

import copy
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from howlow import hub
from howlow.engine.encoding import tried
from howlow.engine.kinds import refuse_other_kind
from howlow.engine.quantization import Quantization, not_quantized, quantize
from howlow.engine.reach import Unreached, unreached
from howlow.engine.references import PACKAGED, ModelReference, from_hub, locate, locate_tokenizer
from howlow.engine.weights import refuse_broken
from howlow.errors import UserError

REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    StopIteration,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What a model's own code raises when it is given something that it was not written for."""


@dataclass(frozen=True)
class Structure:
    """What a model's config alone says of it."""

    architecture: str
    total_parameters: int
    vocabulary: int
    linear_shapes: dict[str, tuple[int, int]]  # module name -> (in, out), of the layers that a text reaches
    unreached_layers: frozenset[str]
    unreached_parameters: frozenset[str]
    max_positions: int | None
    learned_positions: bool
    names_decoder: bool


def load_config(reference: ModelReference, revision: str | None, trust_remote_code: bool) -> Any:
    """The model's config."""
    options = _source_options(reference, revision, trust_remote_code)
    load = partial(AutoConfig.from_pretrained, reference.location, **options)
    config = from_hub("model", reference.name, load, reference.is_local)
    refuse_other_kind(reference.name, config)
    return config


def _source_options(reference: ModelReference, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """The options of every loader of transformers; without a network it looks on the disk and in the cache only."""
    if reference.is_local:
        return {"local_files_only": True, "trust_remote_code": trust_remote_code}
    offline = not hub.is_reachable()
    return {"revision": revision, "trust_remote_code": trust_remote_code, "local_files_only": offline}


def load_tokenizer(
    model: ModelReference, tokenizer: str | None, revision: str | None, trust_remote_code: bool
) -> tuple[Any, str, bool]:
    """The tokenizer, its name, and whether the packaged one replaces that of a model that has none."""
    reference = locate_tokenizer(tokenizer) if tokenizer is not None else model
    substituted = tokenizer is None and not reference.has_tokenizer
    if substituted:
        reference = locate(PACKAGED)
    options = _source_options(reference, revision if tokenizer is None else None, trust_remote_code)
    load = partial(AutoTokenizer.from_pretrained, reference.location, **options)
    loaded = from_hub("tokenizer", reference.name, lambda: tried(load()), reference.is_local)
    return loaded, reference.name, substituted


def structure(config: Any, trust_remote_code: bool) -> Structure:
    """Shapes and counts, from a model without storage (the meta device).

    Raises:
        UserError: transformers cannot build a causal language model from this config.
    """
    model = _without_storage(config, trust_remote_code)
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    vocabulary = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not vocabulary]
    shapes, decoder = linear_shapes(model), find_decoder(model)
    idle = _unreached(config, trust_remote_code)
    return Structure(
        architecture=type(model).__name__,
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=vocabulary.num_embeddings,
        linear_shapes={name: shape for name, shape in shapes.items() if name not in idle.modules},
        unreached_layers=idle.modules & shapes.keys(),
        unreached_parameters=idle.parameters,
        max_positions=positions,
        learned_positions=any(positions and table.num_embeddings in (positions, positions + 2) for table in tables),
        names_decoder=decoder is not None,
    )


def _unreached(config: Any, trust_remote_code: bool) -> Unreached:
    """What no text reaches."""
    model = runnable(config, trust_remote_code)
    decoder = find_decoder(model)
    return unreached(model, model if decoder is None else decoder, REFUSALS)


def runnable(config: Any, trust_remote_code: bool) -> Any:
    """A model without storage, in the form in which most run."""
    form = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = _without_storage(copy.deepcopy(config), trust_remote_code, **form)
    with suppress(StrictDataclassError):  # a config that cannot be without one
        model.config.pad_token_id = None  # else some models look for padding among the tokens
    return model


def _without_storage(config: Any, trust_remote_code: bool, **form: Any) -> Any:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **form)
    except REFUSALS as error:
        kind, said = type(config).__name__, " ".join(str(error).split())
        what = f"transformers cannot build it ({type(error).__name__}: {said[:200]})"
        raise UserError(f"model {getattr(config, 'name_or_path', '') or kind} ({kind}): {what}") from error


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The layers that can hold an adapter, by name: (in, out); the vocabulary head is left out."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1])
    return shapes


def load_model(
    reference: ModelReference,
    config: Any,
    *,
    random_weights: bool,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None,
    trust_remote_code: bool,
    quantization: Quantization = "none",
    double_quantization: bool = True,
) -> Any:
    """The base model on its device, in evaluation mode; dtype is that of its weights, also of quantised ones.

    Random weights are initialised on the device itself, from a fixed seed, so that every trial has the same.
    """
    if random_weights:
        torch.manual_seed(0)
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    else:
        model = _pretrained(reference, config, dtype, revision, trust_remote_code)
    if quantization != "none":
        refuse_broken(reference.name, model)  # codes would hide it
        quantize(model, quantization, double=double_quantization, device=device)
    return model.to(device).eval()


def _pretrained(
    reference: ModelReference, config: Any, dtype: torch.dtype, revision: str | None, trust_remote_code: bool
) -> Any:
    options = _source_options(reference, revision, trust_remote_code)
    options |= {"use_safetensors": True, "config": config, "output_loading_info": True}
    model, loading = from_hub(
        "model",
        reference.name,
        lambda: AutoModelForCausalLM.from_pretrained(reference.location, dtype=dtype, **options),
        reference.is_local,
    )
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would initialise them at random
        raise UserError(
            f"model {reference.name}: its weights lack {len(missing)} of the model's tensors ({missing[0]}, ...); "
            "the files belong to another model or are incomplete"
        )
    return not_quantized(reference.name, model)


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a generation: the EOS of the generation config, the config and the tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(token for token in found if not isinstance(token, int) or token >= 0)  # -1 stands for none


def base_of(model: Any) -> Any:
    """The causal language model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: Any) -> Any:
    """The part of a model whose result is the hidden states.

    Raises:
        UserError: the model does not name it.
    """
    decoder = find_decoder(model)
    if decoder is None:
        raise UserError(f"{type(base_of(model)).__name__} does not name its decoder")
    return decoder


def find_decoder(model: Any) -> Any | None:
    """The part of a model whose result is the hidden states, if the model names it."""
    base = base_of(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or decoder is base or decoder is base.get_output_embeddings():  # which some call a decoder
        return None
    return decoder


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
