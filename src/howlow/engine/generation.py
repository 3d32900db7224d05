"""Scoring: the loss of given completions, and greedy generation.

Generation is argmax at every step and nothing else: whatever the model's generation config asks for (sampling,
penalties, forced tokens) is ignored, the same for every row. A row ends at any EOS of the model, at the stop text, or
at `max_new_tokens`. In the layout `padded` prompts are padded on the left and an ended row waits for the others; in the
others common prefixes are computed once and ended rows leave the batch (`howlow.engine.tree_generation`).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from howlow.engine import layouts
from howlow.engine.attention import Kernel
from howlow.engine.layouts import Batch, Layout
from howlow.engine.loss import per_example, running, target_losses
from howlow.engine.model import Precision, base_of
from howlow.engine.training import autocast
from howlow.engine.tree_generation import continue_prompts
from howlow.errors import UserError

_CACHES = ("past_key_values", "cache_params")  # what models call what they keep of the tokens so far


@dataclass(frozen=True)
class Generated:
    """One row's continuation.

    text: before the stop. new_tokens: tokens written, EOS included. smallest_margin: how far, at its closest, a chosen
    token's logit stood above the second's; near 0 another order of the same arithmetic may choose otherwise.
    """

    text: str
    new_tokens: int
    smallest_margin: float = field(default=math.inf, compare=False)


@torch.inference_mode()
def evaluate(
    model: Any, batch: Batch, *, precision: Precision, head: Literal["targets", "all"], kernel: Kernel = "sdpa"
) -> list[float]:
    """Summed negative log-likelihood of each example's targets, in nats."""
    device = model.device
    moved = batch.to(device)
    with running(model, moved, head, kernel), autocast(device, precision):
        losses, _ = target_losses(model, moved, head)
    sums: list[float] = per_example(losses, batch).tolist()
    return sums


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    layout: Layout,
    prompt_length: int,
    pad_id: int,
    precision: Precision,
    max_new_tokens: int,
    stop: str | None,
    eos: frozenset[int],
    kernel: Kernel = "sdpa",
    on_prompts_read: Callable[[int], None] = lambda _: None,
) -> tuple[list[Generated], int]:
    """Continue prompts greedily.

    prompt_length: what `padded` fills prompts up to; pad_id: with what. on_prompts_read: called once, when the prompts
    are read and a token each is written, with the tokens that the model ran on until then.

    Returns:
        The rows, and the tokens that the model ran on.
    """
    rows = _Rows(tokenizer, len(prompts), stop, eos)
    with autocast(model.device, precision):
        if layout == "padded":
            ids, mask = layouts.left_padded(prompts, prompt_length, pad_id)
            computed = _continue_padded(model, ids, mask, rows, max_new_tokens, on_prompts_read)
        else:
            computed = continue_prompts(
                model,
                prompts,
                rows,
                share=layout == "shared",
                kernel=kernel,
                max_new_tokens=max_new_tokens,
                on_prompts_read=on_prompts_read,
            )
    return rows.results(), computed


def _continue_padded(
    model: Any, ids: Tensor, mask: Tensor, rows: "_Rows", max_new_tokens: int, on_prompts_read: Callable[[int], None]
) -> int:
    """Continue left-padded prompts: (rows, length) ids and mask; returns the tokens computed."""
    ids, mask = ids.to(model.device), mask.to(model.device)
    known = inspect.signature(base_of(model).forward).parameters
    everyone, positions = range(ids.shape[0]), (mask.cumsum(-1) - 1).clamp(min=0)
    cache = next((name for name in _CACHES if name in known), None)
    if cache is None:
        raise UserError(f"{type(base_of(model)).__name__} keeps nothing between the tokens that it writes")
    past, computed = None, 0
    for step in range(max_new_tokens):
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, cache: past}
        further = {"position_ids": positions, "logits_to_keep": 1, "output_router_logits": False}
        output = model(**inputs, **{name: further[name] for name in further if name in known}, use_cache=True)
        computed += ids.numel()
        past = getattr(output, cache)
        chosen = rows.write(everyone, output.logits[:, -1])
        if step == 0:
            on_prompts_read(computed)
        if all(map(rows.is_done, everyone)):
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        positions = positions[:, -1:] + 1
    return computed


class _Rows:
    """The continuations so far, and which of them have ended."""

    def __init__(self, tokenizer: Any, count: int, stop: str | None, eos: frozenset[int]) -> None:
        self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
        self._written: list[list[int]] = [[] for _ in range(count)]
        self._margins = [math.inf] * count
        self._done = [False] * count

    def is_done(self, row: int) -> bool:
        """Whether a row has ended."""
        return self._done[row]

    def write(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """The most likely token of each of these rows, from logits (rows, vocabulary); ended rows keep their text."""
        logits = logits.float()
        best, chosen = logits.max(dim=-1)  # of equal ones the first
        second = logits.scatter(1, chosen[:, None], -math.inf).amax(dim=-1)
        margins = (best - second).tolist()
        for row, token, margin in zip(rows, chosen.tolist(), margins, strict=True):
            if not self._done[row]:
                self._margins[row] = min(self._margins[row], margin)
                self._written[row].append(token)
                self._done[row] = token in self._eos or bool(self._stop and self._stop in self._text(row))
        return chosen

    def _text(self, row: int) -> str:
        kept = [token for token in self._written[row] if token not in self._eos]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def results(self) -> list[Generated]:
        """What was written."""
        found = []
        for row, written in enumerate(self._written):
            text = self._text(row)
            cut = text.partition(self._stop)[0] if self._stop else text
            found.append(Generated(cut, len(written), self._margins[row]))
        return found
