"""The model and its adapter: config, weights, tokenizer, LoRA through PEFT, saving.

LoRA (Hu et al. 2021, section 4.1; the paper, section II): h = W x + s B A x. PEFT keeps A as (rank, in) and B as
(out, rank), the other way round than the paper writes them.
"""

import copy
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from howlow import hub
from howlow.engine.adapter_variants import Variant, initial_weights_of, merged_weight, note_start, save_pretrained
from howlow.engine.cuda.layer_groups import move_apart
from howlow.engine.encoding import tried
from howlow.engine.kinds import refuse_other_kind
from howlow.engine.quantization import Quantization, QuantizedLinear, not_quantized, quantize
from howlow.engine.reach import Unreached, run_on_tokens, runs_on_tokens, unreached
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
_ALL_LINEAR = "all-linear"  # every linear layer but the vocabulary head, as in PEFT
IN_PEFT = "base_model.model."


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
    shapes, names_decoder = linear_shapes(model), _names_decoder(model)
    idle = _unreached(config, trust_remote_code, names_decoder)
    return Structure(
        architecture=type(model).__name__,
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=vocabulary.num_embeddings,
        linear_shapes={name: shape for name, shape in shapes.items() if name not in idle.modules},
        unreached_layers=idle.modules & shapes.keys(),
        unreached_parameters=idle.parameters,
        max_positions=positions,
        learned_positions=any(positions and table.num_embeddings in (positions, positions + 2) for table in tables),
        names_decoder=names_decoder,
    )


def _unreached(config: Any, trust_remote_code: bool, names_decoder: bool) -> Unreached:
    """What no text reaches."""
    model = runnable(config, trust_remote_code)
    return unreached(model, decoder_of(model) if names_decoder else model, REFUSALS)


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


def matched_layers(
    shapes: dict[str, tuple[int, int]], target_modules: Sequence[str], unreached_layers: Collection[str] = ()
) -> list[str]:
    """The layers that match the target modules by PEFT's rule: by the whole name, or by its end after a dot.

    unreached_layers: further layers, which no text reaches; they are never matched.

    Raises:
        UserError: a target matches no layer; the message names the targets that would.
    """
    found: list[str] = []
    for target in target_modules:
        named = matching(shapes, target)
        if not named:
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in shapes))
            idle = matching(sorted(unreached_layers), target)
            where = f"only layers in which no text could train an adapter ({idle[0]})" if idle else "no layer"
            raise UserError(
                f"lora.target_modules {target!r} matched {where}; linear layers here end in: {' '.join(ends)}"
            )
        found += named
    return list(dict.fromkeys(found))


def matching(names: Iterable[str], target: str) -> list[str]:
    """The layers among `names` that a target module means, by PEFT's rule (`matched_layers`); all-linear means all."""
    if target == _ALL_LINEAR:
        return list(names)
    return [name for name in names if name == target or name.endswith(f".{target}")]


def refuse_unadaptable(
    config: Any,
    trust_remote_code: bool,
    target_modules: Sequence[str],
    unreached_layers: Collection[str] = (),
    variant: Variant = "lora",
) -> int:
    """Attach an adapter of rank 1 to a model without storage, and run it where the model itself runs so.

    Returns:
        Its parameters. PEFT may put it elsewhere than the names of the targets say: into experts that are fused.

    Raises:
        UserError: PEFT refuses one of the layers, or the model's code fails with adapters in them.
    """
    model = runnable(config, trust_remote_code)
    runs = runs_on_tokens(model, REFUSALS)
    ends = " ".join(dict.fromkeys(target.rpartition(".")[2] for target in target_modules))
    options: dict[str, Any] = {"target_modules": target_modules, "unreached_layers": unreached_layers, "seed": 0}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            model = attach_lora(model, rank=1, alpha=1.0, scaling="standard", dropout=0.0, variant=variant, **options)
        output = _output_with_adapters(model.to(torch.bfloat16)) if runs else None
    except REFUSALS as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"lora.target_modules: no adapter can be put into {ends} of this model ({said})") from error
    if output is not None and not output.logits.requires_grad:
        raise UserError(f"lora.target_modules: the model's output does not depend on {ends}; name other layers")
    return sum(parameter.numel() for parameter in trainable(model).values())


def _output_with_adapters(model: Any) -> Any:
    """The output for a few tokens. PEFT asks the device of fused experts for autocast, which there is on a CPU only."""
    if not any(hasattr(module, "parameter_name") for module in model.modules()):
        return run_on_tokens(model, with_gradients=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model._apply(lambda tensor: FakeTensor(mode, tensor.detach(), torch.device("cpu")))
        return run_on_tokens(model, with_gradients=True)


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


def attach_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    scaling: Literal["standard", "rank_stabilized"],
    target_modules: Sequence[str],
    dropout: float,
    seed: int,
    unreached_layers: Collection[str] = (),
    variant: Variant = "lora",
) -> Any:
    """Attach an adapter to the model: A uniform (Kaiming), B zero, so that training starts from the base model.

    PiSSA starts otherwise. The base is frozen; the adapter is stored in fp32 whatever the base's dtype. PEFT gets
    whole names where target modules are "all-linear" or match layers that no text reaches.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    if _ALL_LINEAR in target_modules or any(matching(unreached_layers, target) for target in target_modules):
        shapes = {name: shape for name, shape in linear_shapes(model).items() if name not in unreached_layers}
        target_modules = matched_layers(shapes, target_modules, unreached_layers)
    ends = tuple(f".{target}" for target in target_modules)
    matched = [module for name, module in model.named_modules() if f".{name}".endswith(ends)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        use_rslora=scaling == "rank_stabilized",
        target_modules=list(target_modules),
        lora_dropout=dropout,
        fan_in_fan_out=bool(matched) and all(isinstance(module, Conv1D) for module in matched),
        use_dora=variant == "dora",
        init_lora_weights=initial_weights_of(variant, model),
    )
    with warnings.catch_warnings():
        # PEFT gives fused experts ranks of their own, and then says of these that they match no module.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        return note_start(get_peft_model(model, config, autocast_adapter_dtype=True), variant)


def adapters_of(model: Any) -> dict[str, tuple[int, int]]:
    """Of each adapted layer, by its name in the base model: its adapter's rank, and the smaller side of its matrix."""
    return {
        name.removeprefix(IN_PEFT): (module.r["default"], min(module.in_features, module.out_features))
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def base_of(model: Any) -> Any:
    """The causal language model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: Any) -> Any:
    """The part of a model whose result is the hidden states.

    Raises:
        UserError: the model does not name it.
    """
    base = base_of(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or decoder is base or decoder is base.get_output_embeddings():  # which some call a decoder
        raise UserError(f"{type(base).__name__} does not name its decoder")
    return decoder


def _names_decoder(model: Any) -> bool:
    with suppress(UserError):
        return decoder_of(model) is not None
    return False


def merged(model: Any) -> Any:
    """The base model with the adapter's product added to copies of the adapted matrices, and without the adapter.

    W + s B A is summed in fp32 and cast to the dtype of W; the matrices as loaded are left as they are. Quantised ones
    become dense: quantised again, they would lose much of what training changed.
    """
    copies = []
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            layer, name = module.get_base_layer(), getattr(module, "parameter_name", "weight")  # of fused experts
            if isinstance(layer, QuantizedLinear):
                layer = module.base_layer = layer.dense()
            weight = getattr(layer, name)
            copies.append((layer, name, merged_weight(module, weight).to(weight.dtype)))
    base = model.unload()
    for layer, name, weight in copies:
        setattr(layer, name, nn.Parameter(weight, requires_grad=False))
    move_apart(base)
    return base


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(model: Any, folder: Path, base_model: str, card: str) -> int:
    """Save in PEFT's format with a model card; the folder appears whole. Returns the weights file's size in bytes."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_pretrained(model, temporary, base_model)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return (folder / "adapter_model.safetensors").stat().st_size
