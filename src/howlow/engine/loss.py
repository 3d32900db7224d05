"""Summed negative log-likelihood of a batch's targets.

With `head = "targets"` only the hidden states that predict a target go through the vocabulary head, a few hundred at a
time, so the logits of a whole batch never exist at once. The head is the model's own code, logit scaling and soft caps
included: its decoder is replaced by one that hands over the chosen hidden states. Each chunk's gradient is computed in
the forward pass, where its logits are, and only the gradients of the hidden states (and of a trained head) are kept.
The values are those of `head = "all"`.

No function here reads the device, except `per_example`, which is called when the work is done.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from howlow.engine.layouts import Batch, Chunk
from howlow.engine.model import base_of, decoder_of
from howlow.errors import UserError

Head = Literal["targets", "all"]


def target_losses(model: nn.Module, batch: Batch, head: Head, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """The targets' negative log-likelihood in nats.

    scale: the sum is multiplied by it before its gradient is taken, loss scaling included. It is an argument because
        with head = "targets" the gradients are computed in the forward pass.

    Returns:
        Each target's loss, (targets,) float32, without a graph, times its weight where the batch has weights; and
        their sum times `scale`, to call backward on.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.tree is not None:
        inputs["position_ids"] = batch.tree.positions[None]
    if head == "all":
        logits = model(**inputs).logits.flatten(0, 1)[batch.predictors]
        losses = _weighted(_negative_log_likelihood(logits, batch.sources, batch.targets), batch.weights)
        return losses.detach(), losses.sum() * scale
    hidden = decoder_of(model)(**inputs).last_hidden_state.flatten(0, 1)[batch.predictors]
    trained = [parameter for parameter in _outside_decoder(model) if parameter.requires_grad]
    if not torch.is_grad_enabled():
        losses, total, _ = _in_chunks(model, batch, scale, (hidden,), (False,))
        return losses, total
    return _ChunkedHead.apply(model, batch, scale, hidden, *trained)  # type: ignore[no-any-return, no-untyped-call]


def _negative_log_likelihood(logits: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    logits = _precise(logits)
    if sources.numel() == logits.shape[0]:  # one target a row
        return F.cross_entropy(logits, targets, reduction="none")
    return logits.logsumexp(-1)[sources] - logits[sources, targets]


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * weights


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _ChunkedHead(torch.autograd.Function):
    """Hidden states (positions, width) -> losses and their scaled sum; it computes the gradients at once."""

    @staticmethod
    def forward(
        ctx: Any, model: Any, batch: Batch, scale: Tensor | float, hidden: Tensor, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[3:]
        losses, total, gradients = _in_chunks(model, batch, scale, (hidden, *trained), needed)
        ctx.needed = needed
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses, total

    @staticmethod
    def backward(ctx: Any, _: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = iter(ctx.saved_tensors)
        found = [next(gradients) if is_needed else None for is_needed in ctx.needed]
        return None, None, None, *(None if one is None else one * upstream for one in found)


def _in_chunks(
    model: Any, batch: Batch, scale: Tensor | float, inputs: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Losses, their scaled sum, and the sum's gradients by those of `inputs` (hidden states, then weights) needed."""
    hidden = inputs[0]
    whole = torch.zeros_like(hidden) if needed[0] else None
    of_weights: list[Tensor | None] = [None] * sum(needed[1:])
    losses, total = [], torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for chunk in batch.chunks:
        found, parts = _of_chunk(model, batch, scale, inputs, needed, chunk)
        losses.append(found)
        total += found.sum() * scale
        rows = slice(chunk.first, chunk.end)
        of_hidden = parts[0] if needed[0] else None
        if whole is not None and of_hidden is not None:
            whole[rows].add_(of_hidden)
        for index, part in enumerate(parts[needed[0] :]):
            of_weights[index] = _sum_of(of_weights[index], part)
    joined = torch.cat(losses) if losses else total.new_zeros(0)
    return joined, total, [*([whole] if needed[0] else []), *of_weights]


def _sum_of(sum_so_far: Tensor | None, part: Tensor | None) -> Tensor | None:
    """The gradients of a weight in the chunks so far; None as long as the head's code has not used it."""
    if part is None:
        return sum_so_far
    return (torch.zeros_like(part) if sum_so_far is None else sum_so_far).add_(part)


def _of_chunk(
    model: Any, batch: Batch, scale: Tensor | float, inputs: Sequence[Tensor], needed: Sequence[bool], chunk: Chunk
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The losses of a chunk's targets, and the gradients of their scaled sum; its logits are freed at the end.

    A weight that the head's code does not use has no gradient.
    """
    hidden, *trained = inputs
    part = hidden[chunk.first : chunk.end].detach().requires_grad_(needed[0])
    sources, targets = batch.sources[chunk.targets] - chunk.first, batch.targets[chunk.targets]
    with torch.set_grad_enabled(any(needed)):
        logits = head_logits(model, part)
    log_chances = torch.log_softmax(_precise(logits.detach()), -1)
    weights = None if batch.weights is None else batch.weights[chunk.targets]
    losses = _weighted(-log_chances[sources, targets], weights)
    if not any(needed):
        return losses, ()
    # softmax - one-hot for each target, made in place of the log-probabilities
    counts = batch.targets_of[chunk.first : chunk.end, None].to(log_chances.dtype)
    upstream = log_chances.exp_().mul_(counts * scale)
    step = -torch.as_tensor(scale).to(upstream)
    upstream.index_put_((sources, targets), step if weights is None else step * weights.to(upstream), accumulate=True)
    wanted = [one for one, is_needed in zip((part, *trained), needed, strict=True) if is_needed]
    return losses, torch.autograd.grad(logits, wanted, upstream.to(logits.dtype), allow_unused=True)


def _outside_decoder(model: Any) -> Iterator[nn.Parameter]:
    """The parameters that the head's code reads: those outside of the decoder, and those of a tied head."""
    inside = {id(parameter) for parameter in decoder_of(model).parameters()}
    head = base_of(model).get_output_embeddings()
    tied = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    for parameter in base_of(model).parameters():
        if id(parameter) not in inside or id(parameter) in tied:
            yield parameter


class _Handed:
    """A decoder's output with only the hidden states; all else that a head's code looks for is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        if index != 0:
            problem = "the head reads more of the decoder's output than the hidden states"
            raise UserError(f'training.head = "targets": {problem}; set it to "all"')
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _handing_over(decoder: Any, hidden: Tensor) -> Iterator[None]:
    """Within this context the decoder computes nothing and gives these hidden states."""
    decoder.forward = lambda *_, **__: _Handed(hidden)
    try:
        yield
    finally:
        del decoder.forward


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """The model's own head on (positions, width) hidden states: (positions, vocabulary)."""
    with _handing_over(decoder_of(model), hidden[None]):
        placeholder = torch.zeros((1, hidden.shape[0]), dtype=torch.int64, device=hidden.device)
        logits: Tensor = base_of(model)(input_ids=placeholder, use_cache=False).logits
    return logits.flatten(0, 1)  # not logits[0], whose gradient is another tensor of their size


def per_example(losses: Tensor, batch: Batch) -> Tensor:
    """The targets' losses summed for each example: (samples,) float64, on the CPU; this reads the device."""
    sums = torch.zeros(batch.samples, dtype=torch.float64, device="cpu")
    return sums.index_add_(0, batch.owners.cpu(), losses.detach().double().cpu())
