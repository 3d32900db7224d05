"""Which layout a sweep's trials take: the one that was asked for, if the model can take it.

It is chosen once for all trials that share model, data and schedule, on the loaded model, before the first one starts.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from torch import nn

from howlow.engine import order
from howlow.engine.layout_check import draws_at_random, problem_with
from howlow.engine.layouts import Layout
from howlow.engine.prefix_tree import length_of
from howlow.engine.rotary import depends_on_length
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError
from howlow.memory.heap import kernels_kept
from howlow.meters.machine import choose_device
from howlow.records import LayoutChoice, LayoutRecord, LayoutTokens, read_lines
from howlow.settings import Settings
from howlow.trial.loading import decide_execution, load_base
from howlow.trial.state import TrialState

_SMALLEST_SAVING = 0.05
_STEPS_LOOKED_AT = 50
_SUPPOSED_BATCH = 8
"""Stands in for the largest batch, which is not known yet: it is searched for in the chosen layout."""


def choose(settings: Settings, train: Sequence[TokenizedExample], test: Sequence[TokenizedExample]) -> LayoutChoice:
    """The layout for these trials.

    Raises:
        UserError: a layout was asked for by name, and the model cannot take it.
    """
    asked = settings.training.layout
    if asked == "padded":
        return LayoutChoice(layout="padded")
    device = choose_device(settings.run.device)
    execution = decide_execution(settings, device, kernels_kept(), attention="own")
    model = load_base(settings, execution)
    dropout = _dropout(settings, model)
    if asked == "shared" and dropout:
        raise UserError(f'training.layout = "shared": {dropout}, and a shared prefix would get one mask; set "packed"')
    wanted: Layout = (
        asked if asked != "auto" else "packed" if dropout or not _prefixes_pay(settings, train) else "shared"
    )
    problem = _router_losses(model)
    kernels: tuple[Literal["flex", "sdpa"], ...] = (
        ("flex", "sdpa") if device.type == "cuda" and not dropout else ("sdpa",)
    )
    for kernel in kernels if problem is None else ():
        execution = decide_execution(settings, device, kernels_kept(), attention=kernel)
        problem = problem_with(model, wanted, [*train, *test], execution=execution, pad_id=0)
        if problem is None:
            # Rotary frequencies that follow the longest row would differ from those of a padded batch.
            generation = "padded" if depends_on_length(model, settings.training.sequence_length) else None
            return LayoutChoice(layout=wanted, kernel=kernel, generation=generation)
    if asked != "auto":
        raise UserError(f'training.layout = "{asked}": {settings.model} cannot take it ({problem}); use auto or padded')
    return LayoutChoice(layout="padded", problem=f"{settings.model} cannot take {wanted}: {problem}")


def layout_record(state: TrialState) -> LayoutRecord:
    """The layout of a trial, and the tokens that it saved."""
    length = state.settings.training.sequence_length
    lines = list(read_lines(state.steps_path))
    found = {}
    for phase in ("train", "evaluate"):
        steps = [line for line in lines if line["phase"] == phase]
        if steps:
            found[phase] = _tokens(steps, length, state.choice.layout)
    generated = [line for line in lines if line["phase"] == "generate"]
    if generated:
        tokens, computed = (sum(step[key] for step in generated) for key in ("tokens", "computed_tokens"))
        found["generate"] = LayoutTokens(tokens=tokens, computed_tokens=computed)
    return LayoutRecord(problem=state.choice.problem, **found)


def _tokens(steps: Sequence[Mapping[str, Any]], length: int, layout: Layout) -> LayoutTokens:
    tokens, computed, samples = (sum(step[key] for step in steps) for key in ("tokens", "computed_tokens", "samples"))
    padded = samples * length
    return LayoutTokens(
        tokens=tokens,
        computed_tokens=computed,
        padded_tokens=padded,
        padding_share=1 - tokens / computed if layout == "padded" else 0.0,
        saved_share=1 - computed / padded,
    )


def _dropout(settings: Settings, model: nn.Module) -> str | None:
    """Why activations are dropped while training, in a few words; None where they are not."""
    if settings.lora.dropout:
        return "lora.dropout is above 0"
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return "the model has dropout of its own"
    config: Any = model.config
    if getattr(config, "attention_dropout", 0.0):
        return "the model's attention has dropout"
    return "the model draws at random while it trains" if draws_at_random(model) else None


def _router_losses(model: nn.Module) -> str | None:
    config: Any = model.config
    return "its router losses depend on the rows" if getattr(config, "output_router_logits", False) else None


def _prefixes_pay(settings: Settings, examples: Sequence[TokenizedExample]) -> bool:
    """Whether sharing saves tokens in the first steps of the training as it would run with seed 0."""
    training = settings.training
    batch = _SUPPOSED_BATCH if training.batch_size == "max" else training.batch_size
    schedule = order.steps(
        [example.group for example in examples],
        training.shuffle,
        0,
        1,
        min(batch, training.effective_batch_size or batch),
        _STEPS_LOOKED_AT,
    )
    steps = [[examples[index].prompt + examples[index].completion for index in step] for step in schedule]
    computed = sum(length_of(step, share=True) for step in steps)
    return computed <= (1 - _SMALLEST_SAVING) * sum(map(len, chain.from_iterable(steps)))
