"""How tests run a model: on the CPU, in fp32 unless told otherwise."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from howlow.engine import evaluation, generation
from howlow.engine.execution import Running, decide, running
from howlow.engine.generation import Generated
from howlow.engine.layouts import Batch


def on_cpu(model: Any, precision: Any = "fp32", **options: Any) -> AbstractContextManager[Running]:
    """The context of a model on the CPU; options: those of `howlow.engine.execution.decide`."""
    return running(model, decide(device=torch.device("cpu"), precision=precision, **options))


def evaluate(model: Any, batch: Batch, **options: Any) -> list[float]:
    """Each example's loss."""
    with on_cpu(model, **options) as run:
        return evaluation.evaluate(run, batch)


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], **options: Any
) -> tuple[list[Generated], int]:
    """Greedy continuations."""
    with on_cpu(model) as run:
        return generation.generate(run, tokenizer, prompts, **options)
