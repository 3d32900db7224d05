"""Summed negative log-likelihood of a batch's targets, with the vocabulary head where it is asked for.

With `head = "targets"` only the hidden states that predict a target go through the vocabulary head: a hook in front of
it picks them, so that the model's own code (logit scaling and soft-capping included) still runs, on a few rows instead
of all. The values are those of `head = "all"`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from howlow.engine.layouts import Batch
from howlow.errors import UserError


def target_losses(model: nn.Module, batch: Batch, head: Literal["targets", "all"]) -> Tensor:
    """Negative log-likelihood of each target in nats: (targets,) float32."""
    if head == "all":
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        logits = logits.flatten(0, 1)[batch.predictors]
    else:
        with head_at(model, batch.predictors):
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return F.cross_entropy(logits.float(), batch.targets, reduction="none")


@contextmanager
def head_at(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within this context the model's logits are those of the given flat positions only: (positions, vocabulary)."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise UserError('training.head = "targets": this model does not name its vocabulary head; set it to "all"')

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        return (hidden.flatten(0, -2)[positions], *inputs[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def per_example(losses: Tensor, batch: Batch) -> Tensor:
    """Targets' losses summed for each example: (samples,) float64."""
    sums = torch.zeros(batch.samples, dtype=torch.float64, device="cpu")
    return sums.index_add_(0, batch.owners.cpu(), losses.detach().double().cpu())
