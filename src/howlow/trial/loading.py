"""What a trial loads: the model with the parameters that train, and its tokenizer; and how the model will run."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch

from howlow.engine import model as models
from howlow.engine.adapter import adapters_of, matched_layers, refuse_unadaptable
from howlow.engine.chat_template import special_token, turn_end
from howlow.engine.cpu.gemm import NO_CHOICE, GemmChoice, Gemms
from howlow.engine.execution import Execution, Precision, decide
from howlow.engine.quantization import count_parameters, stored_bytes
from howlow.engine.references import locate
from howlow.memory.heap import release
from howlow.records import ModelRecord, Resolved
from howlow.settings import Settings, adapts
from howlow.trial import foretold
from howlow.trial.adapting import with_adapter
from howlow.trial.state import TrialState


def choose_precision(settings: Settings, device: torch.device) -> Precision:
    """The precision of a trial with these settings on this device."""
    return settings.training.precision_on(device.type)


def decide_execution(
    settings: Settings,
    device: torch.device,
    kernels_kept: int,
    *,
    attention: Literal["own", "sdpa", "flex"],
    trains_base: bool = False,
    has_adapter: bool = False,
    gemms: Gemms = NO_CHOICE,
) -> Execution:
    """How a model with these settings runs while it trains; inference follows from it (`Execution.for_evaluation`)."""
    training = settings.training
    is_cuda, is_plain = device.type == "cuda", settings.lora.dropout == 0
    devices = settings.run.devices_per_trial
    compiles = is_cuda and devices == 1 if training.compile == "auto" else training.compile
    return decide(
        device=device,
        precision=choose_precision(settings, device),
        attention=attention,
        kernels_kept=kernels_kept,
        head=training.head,
        joins_adapters=compiles and is_cuda and has_adapter and is_plain and settings.lora.variant != "dora",
        compiles=compiles,
        graphs=compiles and is_plain,  # a recorded step draws no random numbers
        trains_base=trains_base,
        full_row=training.sequence_length,
        gemms=gemms,
        devices=devices,
        quantization=settings.quantization,
        double_quantization=settings.double_quantization,
    )


def execution_of(state: TrialState, device: torch.device, kernels_kept: int) -> Execution:
    """How the trial's model runs, in the layout and with the kernel that were chosen for it."""
    attention: Literal["own", "sdpa", "flex"] = state.choice.kernel or "sdpa"
    if state.choice.layout == "padded":
        attention = "own"
    return decide_execution(
        state.settings,
        device,
        kernels_kept,
        attention=attention,
        trains_base=state.kind == "full",
        has_adapter=adapts(state.kind),
        gemms=Gemms(tuple(GemmChoice(**dict(one)) for one in state.choice.gemms)),
    )


def with_execution(decided: Resolved, execution: Execution, devices: Sequence[torch.device] = ()) -> Resolved:
    """What is decided for a trial, once its heap is set up and it is known how its model runs.

    devices: those of the trial.
    """
    several = tuple(map(str, devices)) if len(devices) > 1 else None
    facts = execution.facts()
    same = ("precision", "kernels_kept", "fused", "joined_adapters", "compiled", "graphed", "quantization")
    named = {key: facts[key] for key in same}
    return decided.model_copy(
        update={
            **named,
            "attention_kernel": facts["attention"],
            "threads": torch.get_num_threads(),
            "devices": several,
        }
    )


def config_of_base(settings: Settings, commit: str | None = None) -> Any:
    """The base model's config; commit: see `load_base`."""
    reference = locate(settings.model, settings.random_weights)
    return models.load_config(reference, commit or settings.revision, settings.trust_remote_code)


def parameters_a_rank(
    settings: Settings, config: Any, structure: models.Structure, targets: Collection[tuple[str, ...]]
) -> dict[tuple[str, ...], int]:
    """The parameters that an adapter has for each rank, by its target modules; PEFT is asked whether it allows them."""
    found, idle = {}, structure.unreached_layers
    for one in sorted(targets):
        matched_layers(structure.linear_shapes, one, idle)
        found[one] = refuse_unadaptable(config, settings.trust_remote_code, one, idle)
    return found


def load_base(settings: Settings, execution: Execution, *, trains: bool = False, commit: str | None = None) -> Any:
    """The base model on its device, frozen unless it `trains`; on the CPU where it is to be sharded.

    commit: of a hub model, the commit with which the sweep was prepared.
    """
    reference, revision = locate(settings.model, settings.random_weights), commit or settings.revision
    model = models.load_model(
        reference,
        config_of_base(settings, commit),
        random_weights=settings.random_weights,
        dtype=execution.storage,
        device=execution.device if execution.devices == 1 else torch.device("cpu"),
        revision=revision,
        trust_remote_code=settings.trust_remote_code,
        quantization=execution.quantization,
        double_quantization=execution.double_quantization,
    )
    if execution.quantization != "none":
        release(execution.device)  # what quantising took, which would count in the peaks of what follows
    return model.requires_grad_(trains)


def load_trial_model(state: TrialState, execution: Execution, tokenizer_name: str) -> tuple[Any, Any, frozenset[int]]:
    """The model with the parameters that train, its tokenizer, and the tokens that end a generation."""
    settings, lora = state.settings, state.settings.lora
    reference = locate(settings.model, settings.random_weights)
    named = settings.tokenizer, settings.revision, settings.trust_remote_code
    tokenizer, _, _ = models.load_tokenizer(reference, *named)
    commit = state.found.data.model_commit if state.found.data else None
    model = load_base(settings, execution, trains=state.kind == "full", commit=commit)
    eos = answer_ends(settings, model, tokenizer)
    state.keep_all(foretold.of_model(settings, model))
    architecture, total, base_bytes = type(model).__name__, count_parameters(model), stored_bytes(model)
    if adapts(state.kind):
        structure = _structure_of_base(settings, commit)
        model = with_adapter(model, settings, structure)
        adapters = adapters_of(model)
        state.resolve(target_modules=foretold.ends_of(adapters))
        state.keep_all(foretold.of_adapters(settings.lora, structure, adapters, state.choice))
    if state.kind == "full":
        idle = _structure_of_base(settings, commit).unreached_parameters
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in idle)
    if execution.devices > 1:
        model = state.followers.place(model, execution.device)
    torch.manual_seed(settings.seed)
    has_adapter = adapts(state.kind)
    state.found.model = ModelRecord(
        reference=settings.model,
        architecture=architecture,
        total_parameters=total,
        base_bytes=base_bytes,
        trainable_parameters=sum(parameter.numel() for parameter in models.trainable(model).values()),
        scaling_factor=lora.scaling_factor if has_adapter else None,
        alpha=lora.alpha_value if has_adapter else None,
        tokenizer=tokenizer_name,
        weights="random" if settings.random_weights else "pretrained",
    )
    return model, tokenizer, eos


def _structure_of_base(settings: Settings, commit: str | None) -> models.Structure:
    """Shapes, and what no text reaches: built without storage and run once, for trials that train."""
    return models.structure(config_of_base(settings, commit), settings.trust_remote_code)


def answer_ends(settings: Settings, model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer of the model, which may stand for one that is not loaded."""
    return models.stop_tokens(model, tokenizer) | turn_ends(settings, tokenizer)


def turn_ends(settings: Settings, tokenizer: Any) -> frozenset[int]:
    """What ends an answer besides EOS: the end of a chat's turn, and a stop that is the text of a special token.

    Special tokens are not decoded, so such a stop would never be found in the text.
    """
    end = turn_end(tokenizer) if settings.task.template == "chat" else None
    stop = special_token(tokenizer, settings.task.stop) if settings.task.stop else None
    return frozenset(token for token in (end, stop) if token is not None)
