"""Evaluation: the loss of the completions that the examples have."""

import torch
from torch import Tensor

from howlow.engine.execution import Running
from howlow.engine.layouts import Batch
from howlow.engine.loss import per_example, target_losses


def evaluate(running: Running, batch: Batch) -> list[float]:
    """Summed negative log-likelihood of each example's targets, in nats; reads the device once."""
    sums: list[float] = per_example(evaluation_step(running, batch.to(running.execution.device)), batch).tolist()
    return sums


@torch.inference_mode()
def evaluation_step(running: Running, batch: Batch) -> Tensor:
    """Negative log-likelihood of each target of a batch on the device: (targets,), in nats."""
    with running.batch(batch), running.autocast():
        losses, _ = target_losses(running.model, batch, running.execution.head)
    return losses
