"""How examples become a token batch.

* `padded` (the paper's): each example is a row of its own, filled up to the sequence length. Padding stands after the
  tokens, so causal attention never lets a token see it and no mask is needed; it is told from tokens by position, never
  by its id (EOS is often the padding token and always a target).
* `packed`: the examples stand one after the other in a single row without a token of padding, kept apart by the
  attention mask, each with positions from 0.
* `shared`: as packed, but tokens that several examples begin with (an instruction, a paragraph) stand there once, and
  what continues them follows (`howlow.engine.prefix_tree`).

All three hold the same targets of the same examples, so their loss and gradients are equal up to floating point: the
hidden states of a prefix do not depend on what follows it, and its gradient is the sum over its continuations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from howlow.engine.prefix_tree import Forest, length_of, plant
from howlow.engine.tokens import TokenizedExample

Layout = Literal["padded", "packed", "shared"]
LossOn = Literal["completion", "all"]


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, and where the targets are.

    input_ids: (rows, length) int64.
    predictors: (positions,) int64, flat positions row * length + column, each once, of the tokens that stand *before* a
        target and whose hidden states predict it.
    targets: (targets,) int64, the target tokens' ids; one entry for each example that has the target.
    sources: (targets,) int64, ascending, which of the predictors predicts each target.
    owners: (targets,) int64, which example of the batch each target belongs to.
    forest: who sees whom, where the examples share a row; None where each has its own.
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    sources: Tensor
    owners: Tensor
    samples: int
    tokens: int
    forest: Forest | None = None

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
            self.sources.to(device),
            self.owners.to(device),
            samples=self.samples,
            tokens=self.tokens,
            forest=self.forest.to(device) if self.forest else None,
        )


def count_targets(example: TokenizedExample, loss_on: LossOn) -> int:
    """Target tokens of one example."""
    return len(example.completion) if loss_on == "completion" else example.length - 1


def lay_out(
    examples: Sequence[TokenizedExample], layout: Layout, sequence_length: int, pad_id: int, loss_on: LossOn
) -> Batch:
    """The examples as a batch in the given layout; `sequence_length` and `pad_id` matter to `padded` alone."""
    if layout == "padded":
        return padded(examples, sequence_length, pad_id, loss_on)
    return packed(examples, loss_on) if layout == "packed" else shared(examples, loss_on)


def computed_tokens(examples: Sequence[TokenizedExample], layout: Layout, sequence_length: int) -> int:
    """The tokens that the model would run on for these examples as a batch in this layout."""
    if layout == "padded":
        return len(examples) * sequence_length
    return length_of([example.prompt + example.completion for example in examples], share=layout == "shared")


def padded(examples: Sequence[TokenizedExample], sequence_length: int, pad_id: int, loss_on: LossOn) -> Batch:
    """One row an example, filled up to the sequence length."""
    input_ids = torch.full((len(examples), sequence_length), pad_id, dtype=torch.int64)
    places = []
    for row, example in enumerate(examples):
        ids = torch.tensor(example.prompt + example.completion, dtype=torch.int64)
        assert ids.numel() <= sequence_length, "examples are cut or dropped before they are laid out"
        input_ids[row, : ids.numel()] = ids
        places.append(torch.arange(ids.numel()) + row * sequence_length)
    return _batch(examples, input_ids, places, loss_on, None)


def packed(examples: Sequence[TokenizedExample], loss_on: LossOn) -> Batch:
    """All examples end to end in one row."""
    return _in_one_row(examples, loss_on, share=False)


def shared(examples: Sequence[TokenizedExample], loss_on: LossOn) -> Batch:
    """All examples in one row, common prefixes once."""
    return _in_one_row(examples, loss_on, share=True)


def _in_one_row(examples: Sequence[TokenizedExample], loss_on: LossOn, share: bool) -> Batch:
    forest, ids, places = plant([example.prompt + example.completion for example in examples], share=share)
    return _batch(examples, ids[None], places, loss_on, forest)


def _batch(
    examples: Sequence[TokenizedExample],
    input_ids: Tensor,
    places: Sequence[Tensor],
    loss_on: LossOn,
    forest: Forest | None,
) -> Batch:
    """A batch from the flat place of every token of every example."""
    before, targets, owners = [], [], []
    for owner, (example, place) in enumerate(zip(examples, places, strict=True)):
        count = count_targets(example, loss_on)
        before.append(place[-count - 1 : -1])
        targets.append(input_ids.flatten()[place[-count:]])
        owners.append(torch.full((count,), owner))
    predictors, sources = torch.unique(torch.cat(before), return_inverse=True)
    order = torch.argsort(sources, stable=True)
    return Batch(
        input_ids=input_ids,
        predictors=predictors,
        targets=torch.cat(targets)[order],
        sources=sources[order],
        owners=torch.cat(owners)[order],
        samples=len(examples),
        tokens=sum(example.length for example in examples),
        forest=forest,
    )


def left_padded(prompts: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts for generation, each ending in the last column: ids and attention mask, both (rows, length) int64."""
    input_ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), length), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, length - len(prompt) :] = 1
    return input_ids, mask
