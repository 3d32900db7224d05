"""Whether a loaded model can take a layout: its losses, gradients and decoding against those of the model alone.

Many architectures use the positions and attention that we pass in. Others keep a state along the row, bias their scores
by the row, bring masks of their own, or let a token see later ones. No list of names decides. The model itself is run,
in evaluation mode, on a few of the data's examples and on three continuations of one prefix, within the execution that
the trials will have. What it gives there is held against what it gives for each of these texts alone
(`howlow.engine.alone`). No layout is taken on trust, `padded` no more than the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from howlow.engine import layouts
from howlow.engine.alone import LOSSES_ON, Truth, distance, embedded, ids_of, logits_of, seen_ahead, truth_of
from howlow.engine.attention_context import UnsupportedError, takes_positions
from howlow.engine.execution import Execution, Precision, Running, running
from howlow.engine.generation import Way, write
from howlow.engine.layouts import Layout, LossOn
from howlow.engine.loss import per_example, target_losses
from howlow.engine.model import REFUSALS, base_of
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError
from howlow.places import told

_NEW_TOKENS = 4
_BRANCHED = 128
"""Tokens at most of a probe that is not the longest: what depends on the length shows in the longest."""
_FORWARD_PASSES = 4  # dropping whole layers shows only now and then
_FAILURES = (UnsupportedError, UserError, *REFUSALS)


class UnfitError(Exception):
    """Why no trial can run with this model, in a few words."""


@dataclass(frozen=True)
class Tolerance:
    """How far two orders of the same arithmetic may differ, relative to their size."""

    loss: float
    gradient: float
    logits: float
    ahead: float


_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(loss=1e-4, gradient=1e-3, logits=1e-3, ahead=1e-5),
    "bf16": Tolerance(loss=2e-2, gradient=1e-1, logits=1e-1, ahead=2e-2),
    "fp16-autocast": Tolerance(loss=1e-2, gradient=5e-2, logits=5e-2, ahead=1e-2),
}


def truth_about(model: Any, examples: Sequence[TokenizedExample], execution: Execution) -> Truth:
    """What a frozen model gives for a few probes of these examples, each alone.

    Raises:
        UnfitError: the model's own code fails on a text, is not causal, or gives a loss that is no number.
    """
    probes = _probes(examples)
    try:
        ahead = seen_ahead(model, ids_of(probes[0]), execution)
        if ahead > _TOLERANCES[execution.precision].ahead:
            raise UnfitError("it is not causal: a later token changes what it predicts from earlier ones")
        _run_in_training_mode(model, execution)
        truth = truth_of(model, probes, execution)
    except _FAILURES as error:
        _pass_on_lack_of_memory(error)
        raise UnfitError(f"its own code fails on a text: {_told(error)}") from error
    if not all(bool(losses.isfinite().all()) for losses in truth.losses.values()):
        raise UnfitError(f"its loss on a text is not finite in {execution.precision}")
    return truth


def problem_with(model: Any, layout: Layout, truth: Truth, *, execution: Execution, pad_id: int) -> str | None:
    """What keeps a frozen model from being trained in a layout, in a few words; None where nothing does.

    execution: that of training. Its layers are not compiled here.
    """
    if layout != "padded" and not takes_positions(base_of(model)):
        return f"{type(base_of(model)).__name__} takes no positions"
    try:
        with running(model, execution.for_evaluation()) as run:
            return _loss_problem(run, truth, layout, pad_id)
    except _FAILURES as error:
        _pass_on_lack_of_memory(error)
        return _told(error)


def writing_problem(
    model: Any, way: Way, truth: Truth, *, execution: Execution, pad_id: int, as_alone: bool = True
) -> str | None:
    """What keeps a frozen model from writing answers in a way, in a few words; None where nothing does.

    as_alone: whether the logits of every step must be those of the model on the text so far alone. Where rotary
        frequencies change while a text grows, they are others once keys are kept, in transformers too.
    """
    if way in ("packed", "shared") and not takes_positions(base_of(model)):
        return f"{type(base_of(model)).__name__} takes no positions"
    try:
        with running(model, execution.for_generation()) as run:
            recorded = _recorded(run, truth.probes, way, pad_id, execution.full_row)
        differ = as_alone and not all(_wrote_as_alone(model, *one, execution) for one in recorded)
    except _FAILURES as error:
        _pass_on_lack_of_memory(error)
        return _told(error)
    return f"answers written {_in_words(way)} differ from those of the model alone" if differ else None


def _pass_on_lack_of_memory(error: BaseException) -> None:
    """A failed allocation says nothing about the model."""
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        raise error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else told(error)


@torch.no_grad()
def draws_at_random(model: nn.Module) -> bool:
    """Whether a model in training mode gives the same tokens new logits each time: dropout that no module names.

    Raises:
        UnfitError: the model's own code fails in training mode.
    """
    was_training = model.training
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    try:
        first, *others = (model.train()(input_ids=ids).logits for _ in range(_FORWARD_PASSES))
    except _FAILURES as error:
        raise UnfitError(f"its own code fails in training mode: {_told(error)}") from error
    finally:
        model.train(was_training)
    return not all(torch.equal(first, other) for other in others)


@torch.no_grad()
def _run_in_training_mode(model: nn.Module, execution: Execution) -> None:
    """Two tokens in training mode: some models' code asks for more there than in evaluation mode."""
    was_training = model.training
    try:
        logits_of(model.train(), (0, 1), execution)
    finally:
        model.train(was_training)


# -- probes -------------------------------------------------------------------------------------------------------


def _probes(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The longest example, the end of the next, and three texts that share two thirds of a part of the longest."""
    longest, *others = sorted(examples, key=lambda example: -example.length)[:2]
    ids = ids_of(longest)[:_BRANCHED]
    middle = max(1, 2 * len(ids) // 3)
    prefix, tail = ids[:middle], ids[middle:] or ids[:1]
    turned = [tail[shift % len(tail) :] + tail[: shift % len(tail)] for shift in (1, 2, 3)]
    turned[2] = turned[2][: max(1, len(tail) // 2)]
    ends = [_end_of(other) for other in others]
    branches = [TokenizedExample(f"probe {number}", "", prefix, end) for number, end in enumerate(turned)]
    return [longest, *ends, *branches]


def _end_of(example: TokenizedExample) -> TokenizedExample:
    """The last tokens of an example; at least one of them belongs to the prompt."""
    completion = example.completion[-(_BRANCHED // 2) :]
    prompt = example.prompt[-(_BRANCHED // 2) :] if example.prompt else completion[:1]
    return TokenizedExample(example.id, "", prompt, completion)


# -- losses and gradients -----------------------------------------------------------------------------------------


def _loss_problem(run: Running, truth: Truth, layout: Layout, pad_id: int) -> str | None:
    tolerance, kernel = _TOLERANCES[run.execution.precision], _kernel(run.execution)
    # With few targets few hidden states are used after the last layer's attention (`howlow.engine.last_layer`).
    for loss_on in LOSSES_ON:
        losses, gradient = _computed(run, truth, layout, loss_on, pad_id)
        if not _close(losses, truth.losses[loss_on], tolerance.loss):
            return f"{layout} losses with {kernel} differ from those of the model alone"
        if not _close(gradient, truth.gradients[loss_on], tolerance.gradient):
            return f"{layout} gradients with {kernel} differ from those of the model alone"
    return None


def _computed(run: Running, truth: Truth, layout: Layout, loss_on: LossOn, pad_id: int) -> tuple[Tensor, Tensor]:
    """Each probe's loss, and the gradient by the embedding of each known token id: (probes,) and (ids, width)."""
    losses = []
    with embedded(run.model) as leaves:
        for probes, width in _parts(truth.probes, layout, run.execution.full_row):
            batch = layouts.lay_out(probes, layout, width, pad_id, loss_on).to(run.execution.device)
            with run.batch(batch):
                with run.autocast():
                    found, total = target_losses(run.model, batch, run.execution.head)
                total.backward()  # type: ignore[no-untyped-call]
            losses.append(per_example(found, batch))
        return torch.cat(losses), leaves.take(truth.known)


def _parts(
    probes: Sequence[TokenizedExample], way: Way, full_row: int | None
) -> list[tuple[Sequence[TokenizedExample], int]]:
    """The probes in batches, each with its width: two in rows as long as a trial's, the others as short as they are."""
    longest = max(probe.length for probe in probes) + 1  # every row has padding
    if way != "padded":
        return [(probes, longest)]
    rest = max(probe.length for probe in probes[2:]) + 1
    return [(probes[:2], max(full_row or 0, longest)), (probes[2:], rest)]


def _kernel(execution: Execution) -> str:
    """The kernel as the record names it: products are a form of SDPA's."""
    return {"flex": "flex", "own": "the model's own attention"}.get(execution.attention, "sdpa")


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(torch.isfinite(found).all()) and float((found - expected).norm()) <= tolerance * float(expected.norm())


# -- answers ------------------------------------------------------------------------------------------------------


def _recorded(
    run: Running, probes: Sequence[TokenizedExample], way: Way, pad_id: int, full_row: int | None
) -> list[tuple[Sequence[int], list[Tensor]]]:
    """Each prompt, and the logits from which its new tokens were chosen."""
    recorded: list[tuple[Sequence[int], list[Tensor]]] = []
    for part, width in _parts(probes, way, full_row):
        longest = None if full_row is None else max(1, full_row - _NEW_TOKENS)
        prompts = [ids_of(probe)[:longest] for probe in part]
        recorder = _Recorder(len(prompts))
        length = min(width, longest or width)
        with torch.inference_mode(), run.autocast():
            write(run, recorder, prompts, layout=way, prompt_length=length, pad_id=pad_id, max_new_tokens=_NEW_TOKENS)
        recorded += zip(prompts, recorder.logits, strict=True)
    return recorded


def _wrote_as_alone(model: Any, prompt: Sequence[int], logits: Sequence[Tensor], execution: Execution) -> bool:
    """Whether the logits of each step are those of the model on the prompt and the tokens chosen before, alone."""
    written = torch.stack(list(logits))
    ids = [*prompt, *written.argmax(-1)[:-1].tolist()]
    with torch.no_grad():
        expected = logits_of(model, ids, execution)[len(prompt) - 1 :].float()
    return distance(written, expected) <= _TOLERANCES[execution.precision].logits


class _Recorder:
    """A writer that keeps the logits and never ends."""

    def __init__(self, prompts: int) -> None:
        self.logits: list[list[Tensor]] = [[] for _ in range(prompts)]

    def write(self, prompts: Sequence[int], logits: Tensor) -> Tensor:
        """Keep the logits; the most likely tokens are chosen."""
        for prompt, row in zip(prompts, logits.float(), strict=True):
            self.logits[prompt].append(row.clone())
        return logits.float().argmax(-1)

    def is_done(self, prompt: int) -> bool:
        """Every probe has all its new tokens."""
        return False


def _in_words(way: Way) -> str:
    return "one prompt at a time" if way == "single" else way
