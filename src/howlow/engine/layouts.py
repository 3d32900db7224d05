"""How examples become a token batch.

`padded` (the paper's): each example is a row of its own, filled up to the sequence length. Padding stands after the
tokens, so causal attention never lets a token see it and no mask is needed; it is told from tokens by position, never
by its id (EOS is often the padding token and always a target).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from howlow.engine.tokens import TokenizedExample


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, and where the targets are.

    input_ids: (rows, length) int64.
    predictors: (targets,) int64, flat positions row * length + column of the tokens *before* each target, whose hidden
        states predict it.
    targets: (targets,) int64, the target tokens' ids.
    owners: (targets,) int64, which example of the batch each target belongs to.
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    samples: int
    tokens: int

    @property
    def target_tokens(self) -> int:
        """Tokens with a loss."""
        return self.targets.numel()

    @property
    def computed_tokens(self) -> int:
        """Tokens the model runs on."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.input_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.owners.to(device),
            samples=self.samples,
            tokens=self.tokens,
        )


def count_targets(example: TokenizedExample, loss_on: Literal["completion", "all"]) -> int:
    """Target tokens of one example."""
    return len(example.completion) if loss_on == "completion" else example.length - 1


def padded(
    examples: Sequence[TokenizedExample], sequence_length: int, pad_id: int, loss_on: Literal["completion", "all"]
) -> Batch:
    """One row an example, filled up to the sequence length."""
    input_ids = torch.full((len(examples), sequence_length), pad_id, dtype=torch.int64)
    predictors, targets, owners = [], [], []
    for row, example in enumerate(examples):
        ids = torch.tensor(example.prompt + example.completion, dtype=torch.int64)
        assert ids.numel() <= sequence_length, "examples are cut or dropped before they are laid out"
        input_ids[row, : ids.numel()] = ids
        count = count_targets(example, loss_on)
        first = ids.numel() - count
        predictors.append(torch.arange(first - 1, ids.numel() - 1) + row * sequence_length)
        targets.append(ids[first:])
        owners.append(torch.full((count,), row))
    return Batch(
        input_ids=input_ids,
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
        owners=torch.cat(owners),
        samples=len(examples),
        tokens=sum(example.length for example in examples),
    )


def left_padded(prompts: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts for generation, each ending in the last column: ids and attention mask, both (rows, length) int64."""
    input_ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), length), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, length - len(prompt) :] = 1
    return input_ids, mask
