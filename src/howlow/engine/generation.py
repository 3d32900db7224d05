"""Greedy generation.

Generation takes the most likely token at every step and does nothing else. Whatever the model's generation config asks
for (sampling, penalties, forced tokens) is ignored, the same for every row. A row ends at any EOS of the model, at the
stop text, or at `max_new_tokens`. In the layout `padded` prompts are padded on the left, and a row that has ended waits
for the others. In the other layouts common prefixes are computed once, and rows that have ended leave the batch
(`howlow.engine.tree_generation`). A model that writes something else in a batch than alone is given one prompt at a
time (`howlow.engine.single_generation`).

A step reads the device once: its tokens and their margins. In `padded` the model is given a mask, at which some of
transformers' own code looks once more. Where token steps are recorded (`howlow.engine.decode_graphs`), the host looks
at what was written every few tokens.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from howlow.engine import layouts
from howlow.engine.answers import before_stop, decoded
from howlow.engine.decode_graphs import DecodeGraphs, continue_recorded
from howlow.engine.execution import Running
from howlow.engine.model import base_of
from howlow.engine.sampling import most_likely
from howlow.engine.sharding import anyone
from howlow.engine.single_generation import write_one_by_one
from howlow.engine.tree_generation import Continuation, PromptRow, Writer, lay_out_prompts
from howlow.errors import UserError

Way = Literal["padded", "packed", "shared", "single"]
"""How prompts are read and continued: in a layout, or one at a time."""
LaidOut = PromptRow | tuple[Tensor, Tensor] | None
"""Prompts on the host as a way of writing takes them: in one row, or padded with their mask; None: one at a time."""
_STATE = "cache_params"
_CACHES = ("past_key_values", _STATE)  # the names under which models take what they keep of earlier tokens


@dataclass(frozen=True)
class Generated:
    """One row's continuation.

    text: before the stop. new_tokens: tokens written, EOS included. smallest_margin: how far a chosen token's logit
    stood above the second's where they were closest; near 0 another order of the same arithmetic may choose otherwise.
    """

    text: str
    new_tokens: int
    smallest_margin: float = field(default=math.inf, compare=False)


@torch.inference_mode()
def generate(
    running: Running,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    layout: Way,
    prompt_length: int,
    pad_id: int,
    max_new_tokens: int,
    stop: str | None,
    eos: frozenset[int],
    repeated: Sequence[str] = (),
    laid_out: LaidOut = None,
    on_prompts_read: Callable[[int], None] = lambda _: None,
    recorded: DecodeGraphs | None = None,
) -> tuple[list[Generated], int]:
    """Continue prompts greedily; see `write`.

    repeated: the end of each prompt's text that its first new token repeats (`howlow.engine.tokens`), which is not part
        of the row's text; absent, none does.
    recorded: continues the prompts that are laid out, where it has slots for them.

    Returns:
        The rows, and the number of tokens that the model ran on.
    """
    assert len(repeated) in (0, len(prompts)), "every prompt has its own"
    rows = _Rows(tokenizer, len(prompts), stop, eos, repeated)
    with running.autocast():
        if recorded is not None and isinstance(laid_out, PromptRow) and recorded.holds(laid_out):
            computed = continue_recorded(recorded, laid_out, rows, max_new_tokens, on_prompts_read)
        else:
            computed = write(
                running,
                rows,
                prompts,
                layout=layout,
                prompt_length=prompt_length,
                pad_id=pad_id,
                max_new_tokens=max_new_tokens,
                laid_out=laid_out,
                on_prompts_read=on_prompts_read,
            )
    return rows.results(), computed


def lay_out_ahead(
    prompts: Sequence[Sequence[int]],
    *,
    layout: Way,
    prompt_length: int,
    pad_id: int,
    max_new_tokens: int,
    keeps_paths: bool = False,
) -> LaidOut:
    """What `write` does first with prompts, on the host; its parameters are those of `write`.

    keeps_paths: whether recorded steps will continue them.
    """
    if layout == "single":
        return None
    if layout == "padded":
        return layouts.left_padded(prompts, prompt_length, pad_id)
    share = layout == "shared"
    return lay_out_prompts(prompts, share=share, max_new_tokens=max_new_tokens, keeps_paths=keeps_paths)


def write(
    running: Running,
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    *,
    layout: Way,
    prompt_length: int,
    pad_id: int,
    max_new_tokens: int,
    laid_out: LaidOut = None,
    on_prompts_read: Callable[[int], None] = lambda _: None,
) -> int:
    """Let a writer continue prompts; returns the number of tokens that the model ran on.

    prompt_length: `padded` fills prompts up to it with `pad_id`. laid_out: the same prompts, if `lay_out_ahead` has
        laid them out before. on_prompts_read: called once, when the prompts are
        read and one token each is written, with the number of tokens that the model ran on until then. Several prompts
        that are continued one at a time have no such moment.
    """
    laid_out = laid_out or lay_out_ahead(
        prompts, layout=layout, prompt_length=prompt_length, pad_id=pad_id, max_new_tokens=max_new_tokens
    )
    if laid_out is None:
        return write_one_by_one(running, writer, prompts, max_new_tokens, on_prompts_read)
    if isinstance(laid_out, PromptRow):
        return _continue_trees(running, laid_out, writer, max_new_tokens, on_prompts_read)
    return _continue_padded(running, *laid_out, writer, max_new_tokens, on_prompts_read)


def _continue_trees(
    running: Running,
    row: PromptRow,
    writer: Writer,
    max_new_tokens: int,
    on_prompts_read: Callable[[int], None],
) -> int:
    """Continue prompts that share a row until all have ended; returns the number of tokens computed."""
    continuation, going = Continuation(running, row.to(running.execution.device)), list(row.order)
    chosen, computed = writer.write(going, continuation.read_prompts()), row.length
    on_prompts_read(computed)
    for _ in range(max_new_tokens - 1):
        kept = [index for index, prompt in enumerate(going) if not writer.is_done(prompt)]
        if not anyone(bool(kept), running.execution.devices):
            break
        kept = kept or list(range(len(going)))  # other devices go on, and need this one's part of the layers
        going, chosen = [going[index] for index in kept], chosen[kept]
        chosen = writer.write(going, continuation.step(going, chosen))
        computed += len(going)
    return computed


def _continue_padded(
    running: Running,
    ids: Tensor,
    mask: Tensor,
    rows: Writer,
    max_new_tokens: int,
    on_prompts_read: Callable[[int], None],
) -> int:
    """Continue left-padded prompts: (rows, length) ids and mask; returns the number of tokens computed."""
    model, device, devices = running.model, running.execution.device, running.execution.devices
    ids, mask = ids.to(device), mask.to(device)
    known = inspect.signature(base_of(model).forward).parameters
    everyone, positions = range(ids.shape[0]), (mask.cumsum(-1) - 1).clamp(min=0)
    cache = next((name for name in _CACHES if name in known), None)
    if cache is None:
        raise UserError(f"{type(base_of(model)).__name__} keeps nothing between the tokens that it writes")
    past, computed = None, 0
    for step in range(max_new_tokens):
        # A state that was read under the mask has left the padding out; later tokens have none.
        seen = None if cache == _STATE and step else mask
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": seen, cache: past}
        further = {"position_ids": positions, "logits_to_keep": 1, "output_router_logits": False}
        output = model(**inputs, **{name: further[name] for name in further if name in known}, use_cache=True)
        computed += ids.numel()
        past = getattr(output, cache)
        chosen = rows.write(everyone, output.logits[:, -1])
        if step == 0:
            on_prompts_read(computed)
        if not anyone(not all(map(rows.is_done, everyone)), devices):
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        positions = positions[:, -1:] + 1
    return computed


class _Rows:
    """The continuations so far, and which of them have ended."""

    def __init__(
        self, tokenizer: Any, count: int, stop: str | None, eos: frozenset[int], repeated: Sequence[str] = ()
    ) -> None:
        self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
        self._repeated = repeated or [""] * count
        self._written: list[list[int]] = [[] for _ in range(count)]
        self._margins = [math.inf] * count
        self._done = [False] * count

    def is_done(self, row: int) -> bool:
        """Whether a row has ended."""
        return self._done[row]

    def write(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """The next token of each of these rows, from logits (rows, vocabulary); ended rows keep their text."""
        chosen, margins = most_likely(logits)
        self.take(rows, *torch.stack([chosen.to(margins), margins]).tolist())
        return chosen

    def take(self, rows: Sequence[int], tokens: Sequence[float], margins: Sequence[float]) -> None:
        """Add a token to each of these rows, with its margin; ended rows keep their text."""
        for row, token, margin in zip(rows, map(int, tokens), margins, strict=True):
            if not self._done[row]:
                self._margins[row] = min(self._margins[row], margin)
                self._written[row].append(token)
                self._done[row] = token in self._eos or bool(self._stop and self._stop in self._text(row))

    def _text(self, row: int) -> str:
        return decoded(self._tokenizer, self._written[row], self._eos, self._repeated[row])

    def results(self) -> list[Generated]:
        """The rows as they were written."""
        found = []
        for row, written in enumerate(self._written):
            text = before_stop(self._text(row), self._stop)
            found.append(Generated(text, len(written), self._margins[row]))
        return found
