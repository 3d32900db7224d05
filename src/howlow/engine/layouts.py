"""How examples become a token batch.

* `padded` (the paper's): each example is a row of its own, filled up to the sequence length. Padding follows the
  tokens, so causal attention never lets a token see it and no mask is needed. A token is known as padding by its
  position, never by its id: EOS is often the padding token and always a target.
* `packed`: the examples follow each other in one row without padding. The attention mask keeps them apart, and each has
  positions from 0.
* `shared`: as packed, but tokens that several examples begin with (an instruction, a paragraph) are stored once, and
  their continuations follow (`howlow.engine.prefix_tree`).

All three hold the same targets of the same examples, so loss and gradients are equal up to floating point: the hidden
states of a prefix do not depend on what follows it, and its gradient is the sum over its continuations.

A batch is laid out on the host. Everything that a step would otherwise have to read from the device, such as the places
of the targets and the bounds of the chunks of the loss, is computed then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from howlow.engine.prefix_tree import PrefixTree, build_prefix_tree, length_of
from howlow.engine.tokens import TokenizedExample

Layout = Literal["padded", "packed", "shared"]
LossOn = Literal["completion", "all"]
ROWS_AT_ONCE = 256
"""Rows of logits that the loss computes at once: 50 MB in fp32 for a vocabulary of 49,152."""


@dataclass(frozen=True)
class Chunk:
    """Predictors [first, end) of a batch, and the targets that they predict."""

    first: int
    end: int
    targets: slice


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, and where the targets are.

    input_ids: (rows, length) int64.
    predictors: (positions,) int64, the tokens that stand *before* a target and whose hidden states predict it, each
        once, as flat positions row * length + column.
    targets: (targets,) int64, the target tokens' ids; one entry for each example that has the target.
    sources: (targets,) int64, ascending, which of the predictors predicts each target.
    owners: (targets,) int64, which example of the batch each target belongs to.
    targets_of: (positions,) int64, how many targets each predictor predicts.
    chunks: the predictors in parts of `ROWS_AT_ONCE`, with the bounds of their targets.
    tree: who sees whom, where the examples share a row; None where each example has its own row.
    weights: (targets,) float32, how many targets of the examples each entry stands for, 0 where it fills up
        (`howlow.engine.buckets`); None: each for one.
    counted: the targets of the examples, where the entries are not one for each.
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    sources: Tensor
    owners: Tensor
    targets_of: Tensor
    chunks: tuple[Chunk, ...]
    samples: int
    tokens: int
    tree: PrefixTree | None = None
    weights: Tensor | None = None
    counted: int | None = None

    @property
    def target_tokens(self) -> int:
        """Tokens with a loss."""
        return self.targets.numel() if self.counted is None else self.counted

    @property
    def computed_tokens(self) -> int:
        """Tokens the model runs on."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU copies from while it works; where there is none, the batch itself."""
        return self.mapped(Tensor.pin_memory) if torch.cuda.is_available() else self

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch of changed tensors."""
        return replace(
            self,
            input_ids=change(self.input_ids),
            predictors=change(self.predictors),
            targets=change(self.targets),
            sources=change(self.sources),
            owners=change(self.owners),
            targets_of=change(self.targets_of),
            tree=self.tree.mapped(change) if self.tree else None,
            weights=change(self.weights) if self.weights is not None else None,
        )


def count_targets(example: TokenizedExample, loss_on: LossOn) -> int:
    """Target tokens of one example."""
    return len(example.completion) if loss_on == "completion" else example.length - 1


def lay_out(
    examples: Sequence[TokenizedExample], layout: Layout, sequence_length: int, pad_id: int, loss_on: LossOn
) -> Batch:
    """The examples as a batch in the given layout; only `padded` uses `sequence_length` and `pad_id`."""
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
    tree, ids, places = build_prefix_tree([example.prompt + example.completion for example in examples], share=share)
    return _batch(examples, ids[None], places, loss_on, tree)


def _batch(
    examples: Sequence[TokenizedExample],
    input_ids: Tensor,
    places: Sequence[Tensor],
    loss_on: LossOn,
    tree: PrefixTree | None,
) -> Batch:
    """A batch from the flat place of every token of every example."""
    before, targets, owners = [], [], []
    for owner, (example, place) in enumerate(zip(examples, places, strict=True)):
        count = count_targets(example, loss_on)
        assert 0 <= count < place.numel() == example.length, "every target has a token before it"
        first = place.numel() - count  # not place[-count:], which is everything where an example has no target
        before.append(place[first - 1 : -1])
        targets.append(input_ids.flatten()[place[first:]])
        owners.append(torch.full((count,), owner))
    predictors, sources = torch.unique(torch.cat(before), return_inverse=True)
    order = torch.argsort(sources, stable=True)
    sources = sources[order]
    return Batch(
        input_ids=input_ids,
        predictors=predictors,
        targets=torch.cat(targets)[order],
        sources=sources,
        owners=torch.cat(owners)[order],
        targets_of=torch.bincount(sources, minlength=predictors.numel()),
        chunks=chunks_of(sources, predictors.numel()),
        samples=len(examples),
        tokens=sum(example.length for example in examples),
        tree=tree,
    )


def chunks_of(sources: Tensor, predictors: int) -> tuple[Chunk, ...]:
    """The predictors in parts of `ROWS_AT_ONCE`; sources: as in `Batch`."""
    edges = [*range(0, predictors, ROWS_AT_ONCE), predictors]
    bounds = torch.searchsorted(sources, torch.tensor(edges)).tolist()
    return tuple(
        Chunk(first, end, slice(*targets))
        for (first, end), targets in zip(pairwise(edges), pairwise(bounds), strict=True)
    )


def left_padded(prompts: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts for generation, each ending in the last column: ids and attention mask, both (rows, length) int64."""
    input_ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), length), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, length - len(prompt) :] = 1
    return input_ids, mask
