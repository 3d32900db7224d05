"""Whether a loaded model can take a layout: its losses, gradients and decoding against the padded layout's.

Many architectures use the positions and attention that we pass in. Others keep a state along the row, bias their scores
by the row, or bring masks of their own. No list of names decides. The model itself is run, in evaluation mode, on the
data's longest examples and on three continuations of one prefix, within the execution that the trials will have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from howlow.engine import layouts
from howlow.engine.attention_context import UnsupportedError, takes_positions
from howlow.engine.execution import Execution, Precision, Running, running
from howlow.engine.generation import generate
from howlow.engine.layouts import Layout, LossOn
from howlow.engine.loss import per_example, target_losses
from howlow.engine.model import REFUSALS, base_of
from howlow.engine.rotary import depends_on_length
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError

_NEW_TOKENS = 4
_LOSSES_ON: tuple[LossOn, ...] = ("completion", "all")
_FORWARD_PASSES = 4  # dropping whole layers shows only now and then
_FAILURES = (UnsupportedError, UserError, *REFUSALS)


@dataclass(frozen=True)
class Tolerance:
    """How far two orders of the same arithmetic may differ: losses and gradients relative, logits absolute."""

    loss: float
    gradient: float
    margin: float


_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, 1e-3, 1e-3),
    "bf16": Tolerance(2e-2, 1e-1, 0.5),
    "fp16-autocast": Tolerance(1e-2, 5e-2, 0.1),
}


def problem_with(
    model: Any, layout: Layout, examples: Sequence[TokenizedExample], *, execution: Execution, pad_id: int
) -> str | None:
    """What keeps a frozen model from taking a layout, in a few words; None where nothing does.

    examples: those of the sweep; the longest are used. execution: that of training. Its layers are not compiled here.
    """
    if not takes_positions(base_of(model)):
        return f"{type(base_of(model)).__name__} takes no positions"
    probes, check = _probes(examples), execution.for_evaluation()
    try:
        with running(model, check) as run:
            problem = _loss_problem(run, probes, layout, pad_id)
        length = check.full_row
        if problem is None and (length is None or not depends_on_length(model, length)):
            with running(model, check.for_generation()) as run:
                problem = _decoding_problem(run, probes, layout, pad_id, length)
    except _FAILURES as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return problem


@torch.no_grad()
def draws_at_random(model: nn.Module) -> bool:
    """Whether a model in training mode gives the same tokens new logits each time: dropout that no module names."""
    was_training = model.training
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    try:
        first, *others = (model.train()(input_ids=ids).logits for _ in range(_FORWARD_PASSES))
    finally:
        model.train(was_training)
    return not all(torch.equal(first, other) for other in others)


def _probes(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The two longest examples, and three of the longest's length that begin with its first two thirds."""
    longest = sorted(examples, key=lambda example: -example.length)[:2]
    ids = longest[0].prompt + longest[0].completion
    middle = max(1, 2 * len(ids) // 3)
    prefix, tail = ids[:middle], ids[middle:] or ids[:1]
    turned = [tail[shift % len(tail) :] + tail[: shift % len(tail)] for shift in (1, 2, 3)]
    turned[2] = turned[2][: max(1, len(tail) // 2)]
    return longest + [TokenizedExample(f"probe {number}", "", prefix, end) for number, end in enumerate(turned)]


def _loss_problem(run: Running, probes: Sequence[TokenizedExample], layout: Layout, pad_id: int) -> str | None:
    tolerance, kernel = _TOLERANCES[run.execution.precision], _kernel(run.execution)
    ids = [token for probe in probes for token in probe.prompt + probe.completion]
    known = torch.unique(torch.tensor([*ids, pad_id]))
    # With few targets few hidden states are used after the last layer's attention (`howlow.engine.last_layer`).
    for loss_on in _LOSSES_ON:
        expected = [_computed(run, [probe], known, "padded", loss_on, pad_id) for probe in probes]
        losses, gradient = _computed(run, probes, known, layout, loss_on, pad_id)
        if not _close(losses, torch.cat([one[0] for one in expected]), tolerance.loss):
            return f"losses with {kernel} differ from those of padded"
        if not _close(gradient, torch.stack([one[1] for one in expected]).sum(0), tolerance.gradient):
            return f"gradients with {kernel} differ from those of padded"
    return None


def _computed(
    run: Running, probes: Sequence[TokenizedExample], known: Tensor, layout: Layout, loss_on: LossOn, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Each probe's loss, and the gradient by the embedding of each `known` token id: (samples,) and (ids, width)."""
    width = max(probe.length for probe in probes)  # padding beyond the longest changes nothing, and costs time
    batch = layouts.lay_out(probes, layout, width, pad_id, loss_on).to(run.execution.device)
    leaves: list[Tensor] = []

    def as_leaf(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        leaves.append(embedded.detach().requires_grad_())
        return leaves[-1]

    hook = base_of(run.model).get_input_embeddings().register_forward_hook(as_leaf)
    try:
        with run.batch(batch):
            with run.autocast():
                losses, total = target_losses(run.model, batch, run.execution.head)
            total.backward()  # type: ignore[no-untyped-call]
    finally:
        hook.remove()
    gradient = leaves[0].grad
    assert gradient is not None, "the loss depends on every embedding"
    by_id = torch.zeros((len(known), gradient.shape[-1]), dtype=torch.float64)
    rows = torch.searchsorted(known, batch.input_ids.flatten().cpu())
    by_id.index_add_(0, rows, gradient.flatten(0, 1).double().cpu())
    return per_example(losses, batch), by_id


def _decoding_problem(
    run: Running, probes: Sequence[TokenizedExample], layout: Layout, pad_id: int, length: int | None
) -> str | None:
    """length: the longest sequence; prompts and what is written must fit in it."""
    longest = None if length is None else length - _NEW_TOKENS
    prompts = [(probe.prompt + probe.completion)[:longest] for probe in probes]
    written = []
    for one in (layout, "padded"):
        rows, _ = generate(
            run,
            _Ids(),
            prompts,
            layout=one,
            prompt_length=max(map(len, prompts)),
            pad_id=pad_id,
            max_new_tokens=_NEW_TOKENS,
            stop=None,
            eos=frozenset(),
        )
        written.append(rows)
    for ours, theirs in zip(*written, strict=True):
        if ours.text != theirs.text and theirs.smallest_margin > _TOLERANCES[run.execution.precision].margin:
            return f"decoding with {_kernel(run.execution)} writes other tokens than padded does"
    return None


def _kernel(execution: Execution) -> str:
    """The kernel as the record names it: products are a form of SDPA's."""
    return "flex" if execution.attention == "flex" else "sdpa"


class _Ids:
    """A tokenizer whose text is the token ids."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(torch.isfinite(found).all()) and float((found - expected).norm()) <= tolerance * float(expected.norm())
