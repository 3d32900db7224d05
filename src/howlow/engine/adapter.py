"""The adapter, through PEFT: which layers can hold one, attaching it, merging it into the matrices, saving.

LoRA (Hu et al. 2021, section 4.1; the paper, section II): h = W x + s B A x. PEFT keeps A as (rank, in) and B as
(out, rank), the other way round than the paper writes them.
"""

import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.pytorch_utils import Conv1D

from howlow.engine.adapter_variants import Variant, initial_weights_of, merged_weight, note_start, save_pretrained
from howlow.engine.cuda.layer_groups import move_apart
from howlow.engine.model import REFUSALS, linear_shapes, runnable, trainable
from howlow.engine.quantization import QuantizedLinear
from howlow.engine.reach import run_on_tokens, runs_on_tokens
from howlow.errors import UserError

_ALL_LINEAR = "all-linear"  # every linear layer but the vocabulary head, as in PEFT
IN_PEFT = "base_model.model."


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


def merge_adapter(model: Any) -> Any:
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


def save_adapter(model: Any, folder: Path, base_model: str, card: str) -> int:
    """Save in PEFT's format with a model card; the folder appears whole. Returns the weights file's size in bytes."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_pretrained(model, temporary, base_model)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return (folder / "adapter_model.safetensors").stat().st_size
