"""Scoring: the loss of given completions, and greedy generation.

Generation is argmax at every step and nothing else: whatever the model's generation config asks for (sampling,
penalties, forced tokens) is ignored, the same for every row. A row ends at any EOS of the model, at the stop text, or
at `max_new_tokens`; it then only waits for the others.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from howlow.engine.layouts import Batch
from howlow.engine.loss import head_at, per_example, target_losses
from howlow.engine.model import Precision
from howlow.engine.training import autocast


@dataclass(frozen=True)
class Generated:
    """One row's continuation: the text before the stop, and how many tokens were written (EOS included)."""

    text: str
    new_tokens: int


@torch.inference_mode()
def evaluate(model: Any, batch: Batch, *, precision: Precision, head: Literal["targets", "all"]) -> list[float]:
    """Summed negative log-likelihood of each example's targets, in nats."""
    device = model.device
    with autocast(device, precision):
        losses = target_losses(model, batch.to(device), head)
    sums: list[float] = per_example(losses, batch).tolist()
    return sums


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    input_ids: Tensor,
    mask: Tensor,
    *,
    precision: Precision,
    max_new_tokens: int,
    stop: str | None,
    eos: frozenset[int],
) -> tuple[list[Generated], int]:
    """Continue left-padded prompts: (rows, length) ids and mask. Returns the rows and the tokens computed."""
    device = model.device
    ids, mask = input_ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    takes_positions = "position_ids" in inspect.signature(_base(model).forward).parameters
    rows = _Rows(tokenizer, ids.shape[0], stop, eos)
    past, computed = None, 0
    for step in range(max_new_tokens):
        last = torch.arange(1, ids.shape[0] + 1, device=device) * ids.shape[1] - 1
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": past}
        if takes_positions:
            inputs["position_ids"] = positions
        with autocast(device, precision), head_at(model, last):
            output = model(**inputs, use_cache=True)
        computed += ids.numel()
        past = output.past_key_values
        chosen = output.logits.float().argmax(-1)
        rows.take(chosen.tolist())
        if rows.all_done or step == max_new_tokens - 1:
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        positions = positions[:, -1:] + 1
    return rows.results(), computed


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _Rows:
    """The continuations so far, and which of them have ended."""

    def __init__(self, tokenizer: Any, count: int, stop: str | None, eos: frozenset[int]) -> None:
        self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
        self._written: list[list[int]] = [[] for _ in range(count)]
        self._done = [False] * count

    @property
    def all_done(self) -> bool:
        return all(self._done)

    def take(self, chosen: Sequence[int]) -> None:
        for row, token in enumerate(chosen):
            if self._done[row]:
                continue
            self._written[row].append(token)
            self._done[row] = token in self._eos or bool(self._stop and self._stop in self._text(row))

    def _text(self, row: int) -> str:
        kept = [token for token in self._written[row] if token not in self._eos]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def results(self) -> list[Generated]:
        texts = [self._text(row) for row in range(len(self._written))]
        cut = [text.partition(self._stop)[0] if self._stop else text for text in texts]
        return [Generated(text, len(tokens)) for text, tokens in zip(cut, self._written, strict=True)]
