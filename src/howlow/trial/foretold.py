"""What qualifies a trial's numbers and is known before its first step.

It follows from the settings, the structure of the model, and the check of the model on a few texts. A trial puts these
warnings into its record, and a dry run shows them. Both get them here.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from howlow.engine import model as models
from howlow.engine.adapter import adapters_of, matched_layers, matching
from howlow.engine.references import locate
from howlow.engine.rotary import depends_on_length
from howlow.records import LayoutChoice, RecordWarning, WarningKind
from howlow.settings import LoraSettings, Settings, TrialKind, adapts
from howlow.tasks import task_named
from howlow.trial.adapting import with_adapter


def before_the_first_step(kind: TrialKind, settings: Settings, choice: LayoutChoice) -> list[RecordWarning]:
    """All of it, for a trial of this kind; the model is built without its weights."""
    config, structure = _structure(
        settings.model, settings.random_weights, settings.revision, settings.trust_remote_code
    )
    model = models.runnable(config, settings.trust_remote_code)
    found = [*of_settings(settings, choice), *of_model(settings, model)]
    if adapts(kind):
        adapted = with_adapter(model, settings, structure)
        found += of_adapters(settings.lora, structure, adapters_of(adapted), choice)
    return found


@cache
def _structure(
    model: str, random_weights: bool, revision: str | None, trust_remote_code: bool
) -> tuple[Any, models.Structure]:
    config = models.load_config(locate(model, random_weights), revision, trust_remote_code)
    return config, models.structure(config, trust_remote_code)


def of_settings(settings: Settings, choice: LayoutChoice) -> Iterator[RecordWarning]:
    """What random weights, and a layout that is not the one that was wanted, mean for the numbers."""
    if choice.problem:
        yield RecordWarning(kind=WarningKind.LAYOUT_FELL_BACK, detail=choice.problem)
    if choice.generation and task_named(settings.task.name).generates:
        is_single = choice.generation == "single"
        kind = WarningKind.WRITTEN_ONE_BY_ONE if is_single else WarningKind.LAYOUT_FELL_BACK
        how = "one prompt at a time" if is_single else "padded"
        detail = f"generation runs {how}: {choice.generation_problem}"
        yield RecordWarning(kind=kind, detail=detail, phase="generate")
    if settings.random_weights:
        yield RecordWarning(kind=WarningKind.RANDOM_WEIGHTS, detail="random weights: quality is absent")


def of_model(settings: Settings, model: Any) -> Iterator[RecordWarning]:
    """What the model does with texts of different lengths."""
    length = settings.training.sequence_length
    if depends_on_length(model, length):
        detail = f"rotary frequencies are those of a row of {length} tokens, for shorter texts as well"
        yield RecordWarning(kind=WarningKind.FREQUENCIES_OF_FULL_ROW, detail=detail)


def of_adapters(
    lora: LoraSettings, structure: models.Structure, adapters: Mapping[str, tuple[int, int]], choice: LayoutChoice
) -> Iterator[RecordWarning]:
    """Where adapters are of little use, elsewhere than named, or left out.

    adapters: rank and smaller side of each adapted layer (`howlow.engine.adapter.adapters_of`).
    """
    shapes, unreached = structure.linear_shapes, structure.unreached_layers
    small = {name: side for name, (rank, side) in adapters.items() if side < rank}
    if small:
        ends = sorted({f"{name.rpartition('.')[2]} ({side})" for name, side in small.items()})
        detail = f"rank {lora.rank} is above the smaller side of {len(small)} layers: {', '.join(ends)}"
        yield RecordWarning(kind=WarningKind.RANK_ABOVE_MATRIX, detail=detail)
    if lora.variant == "dora":
        detail = "DoRA runs PEFT's own code, where plain LoRA runs fused on a CPU, and joined where layers are compiled"
        yield RecordWarning(kind=WarningKind.ADAPTER_NOT_FUSED, detail=detail)
    moved = [name for name in matched_layers(shapes, lora.target_modules, unreached) if name not in adapters]
    if moved:
        detail = f"PEFT puts the adapter into fused experts, and none into {len(moved)} layers of these names: "
        yield RecordWarning(kind=WarningKind.ADAPTER_IN_EXPERTS, detail=detail + ", ".join(moved[:3]))
    without = [name for name in shapes if name not in adapters and not _is_attention(name)]
    if without and all(map(_is_attention, adapters)):
        detail = f"the adapter is in attention alone; linear layers without one end in: {' '.join(ends_of(without))}"
        yield RecordWarning(kind=WarningKind.ATTENTION_ALONE_ADAPTED, detail=detail)
    left = [name for target in lora.target_modules for name in matching(sorted(unreached), target)]
    if left:
        detail = f"no adapter in {len(left)} layers that no text reaches: {', '.join(left[:3])}"
        yield RecordWarning(kind=WarningKind.LAYERS_LEFT_OUT, detail=detail)
    idle = [name for name in adapters if name in choice.idle_layers]
    if idle:
        detail = f"the adapters in {len(idle)} layers have no influence on a loss: {', '.join(idle[:3])}"
        yield RecordWarning(kind=WarningKind.LAYERS_LEFT_OUT, detail=detail, phase="train")


def _is_attention(layer: str) -> bool:
    """Whether a layer is part of attention, by the names that models give to it (`self_attn`, `attention`, ...)."""
    return "attn" in layer.lower() or "attention" in layer.lower()


def ends_of(layers: Iterable[str]) -> tuple[str, ...]:
    """What layers' names end in, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in layers))


def is_idle(parameter: str, choice: LayoutChoice) -> bool:
    """Whether a trained tensor belongs to an adapter that is foretold to have no influence on a loss."""
    return any(f".{layer}.lora_" in f".{parameter}" for layer in choice.idle_layers)
