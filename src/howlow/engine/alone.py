"""The model on one text alone: what every layout and every way of generating is held against.

It is the plainest run that there is: unpadded, without a mask, outside of an execution's context, so that no part is
fused and no attention replaced. Only the precision is the trial's. Where rotary frequencies depend on the length of a
row, the text is shown as part of a full row, because the sequence length decides these frequencies in every layout.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from howlow.engine.execution import Execution
from howlow.engine.layouts import LossOn, count_targets
from howlow.engine.model import base_of, linear_shapes
from howlow.engine.reach import watched
from howlow.engine.rotary import as_in_a_full_row, depends_on_length
from howlow.engine.tokens import TokenizedExample

LOSSES_ON: tuple[LossOn, ...] = ("completion", "all")


@dataclass(frozen=True)
class Truth:
    """What the probes give alone.

    known: (ids,) int64, sorted, every token id of the probes. losses: (probes,), for each choice of targets.
    gradients: (ids, width), the gradient of the summed loss by the embedding of each known id, for each choice.
    idle_layers: the names of the linear layers on which no loss depends (`howlow.engine.reach.watched`).
    """

    probes: tuple[TokenizedExample, ...]
    known: Tensor
    losses: dict[LossOn, Tensor]
    gradients: dict[LossOn, Tensor]
    idle_layers: tuple[str, ...] = ()


def truth_of(model: Any, probes: Sequence[TokenizedExample], execution: Execution) -> Truth:
    """Losses and gradients of each probe alone; the model is frozen and in evaluation mode."""
    known = torch.unique(torch.tensor([token for probe in probes for token in ids_of(probe)]))
    with watched(model, linear_shapes(model)) as seen:
        found = [_losses(model, probe, known, execution) for probe in probes]
    return Truth(
        tuple(probes),
        known,
        {loss_on: torch.stack([one[loss_on][0] for one in found]) for loss_on in LOSSES_ON},
        {loss_on: torch.stack([one[loss_on][1] for one in found]).sum(0) for loss_on in LOSSES_ON},
        seen.idle(),
    )


def ids_of(example: TokenizedExample) -> tuple[int, ...]:
    """The tokens of an example, prompt and completion."""
    return (*example.prompt, *example.completion)


def logits_of(model: Any, ids: Sequence[int], execution: Execution) -> Tensor:
    """The logits behind every token of a text: (tokens, vocabulary)."""
    named = inspect.signature(base_of(model).forward).parameters
    further = {"use_cache": False} if "use_cache" in named else {}
    with execution.autocast():
        logits: Tensor = model(input_ids=torch.tensor([ids], device=execution.device), **further).logits[0]
    return logits


@torch.no_grad()
def seen_ahead(model: Any, ids: Sequence[int], execution: Execution) -> float:
    """How far the logits of a text's first half move when its second half is another, relative to their size.

    Of a causal model they do not move.
    """
    middle = len(ids) // 2
    turned = (*ids[:middle], *ids[middle + 1 :], ids[0])
    first, other = (logits_of(model, one, execution)[:middle] for one in (ids, turned))
    return distance(other, first)


def distance(found: Tensor, expected: Tensor) -> float:
    """The norm of a difference of logits relative to that of the expected ones; what is added to all counts nothing."""
    finite = torch.isfinite(expected)
    if found.shape != expected.shape or not torch.equal(torch.isfinite(found), finite):
        return float("inf")
    theirs, ours = (torch.where(finite, part.double(), 0.0) for part in (expected, found))
    theirs = theirs - theirs.mean(-1, keepdim=True)
    ours = ours - ours.mean(-1, keepdim=True)
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def _losses(
    model: Any, probe: TokenizedExample, known: Tensor, execution: Execution
) -> dict[LossOn, tuple[Tensor, Tensor]]:
    ids, full_row = ids_of(probe), execution.full_row
    is_dependent = full_row is not None and depends_on_length(model, full_row)
    with as_in_a_full_row(model, full_row) if full_row and is_dependent else nullcontext(), embedded(model) as leaves:
        logits = logits_of(model, ids, execution)
        targets = torch.tensor(ids[1:], device=logits.device)
        every = F.cross_entropy(logits[:-1].float(), targets, reduction="none")
        found = {}
        for loss_on in LOSSES_ON:
            total = every[len(every) - count_targets(probe, loss_on) :].sum()  # there may be none
            total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            found[loss_on] = total.detach().double().cpu(), leaves.take(known)
    return found


class Embedded:
    """The embeddings that a model looks up, as leaves of the graph, and the ids that they belong to."""

    def __init__(self) -> None:
        self._leaves: list[tuple[Tensor, Tensor]] = []

    def add(self, _: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], found: Tensor) -> Tensor:
        """The hook of the embedding module."""
        leaf = found.detach().requires_grad_()
        self._leaves.append((given[0] if given else named["input"], leaf))
        return leaf.clone()  # some models change what they have looked up

    def take(self, known: Tensor) -> Tensor:
        """The gradient by the embedding of each known id, (ids, width) float64; the leaves' gradients are cleared."""
        by_id = torch.zeros((len(known), self._leaves[0][1].shape[-1]), dtype=torch.float64)
        for ids, leaf in self._leaves:
            if leaf.grad is not None:
                flat, gradient = ids.flatten().cpu(), leaf.grad.flatten(0, -2).double().cpu()
                there = torch.isin(flat, known)
                by_id.index_add_(0, torch.searchsorted(known, flat[there]), gradient[there])
                leaf.grad = None
        return by_id


@contextmanager
def embedded(model: Any) -> Iterator[Embedded]:
    """Within this context gradients are taken by the embeddings of a frozen model's tokens."""
    found = Embedded()
    hook = base_of(model).get_input_embeddings().register_forward_hook(found.add, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()
