"""Greedy generation one prompt at a time, by transformers' own `generate`.

Some models write something else in a batch than alone: padding on the left moves their positions, or enters a state.
They are given each prompt alone. transformers knows what each of them keeps between tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from howlow.engine.execution import Running
from howlow.engine.model import base_of
from howlow.engine.tree_generation import Writer
from howlow.errors import UserError


def write_one_by_one(
    running: Running,
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    on_prompts_read: Callable[[int], None],
) -> int:
    """Let a writer continue each prompt alone; returns the number of tokens that the model ran on.

    on_prompts_read: called for a single prompt only; the next prompt is read when the one before has been continued.

    Raises:
        UserError: transformers cannot generate with this model.
    """
    model = base_of(running.model)
    if not model.can_generate():
        raise UserError(f"transformers cannot generate with {type(model).__name__}")
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, use_cache=True, pad_token_id=0)
    with _plain_generation(model, config), _counting(model) as count:
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([prompt], device=running.execution.device)
            steps = _Steps(writer, index, lambda: on_prompts_read(count.tokens) if len(prompts) == 1 else None)
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                synced_gpus=running.execution.devices > 1,
                generation_config=config,
                logits_processor=LogitsProcessorList([steps]),
                stopping_criteria=StoppingCriteriaList([_Ended(writer, index)]),
            )
    return count.tokens


class _Steps(LogitsProcessor):  # type: ignore[misc]
    """Hands the logits of each step to the writer, which chooses the same token as `generate`: the most likely."""

    def __init__(self, writer: Writer, prompt: int, on_first: Callable[[], None]) -> None:
        self._writer, self._prompt, self._on_first, self._steps = writer, prompt, on_first, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits as they are."""
        self._writer.write([self._prompt], scores)
        if self._steps == 0:
            self._on_first()
        self._steps += 1
        return scores


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Ends where the writer says so."""

    def __init__(self, writer: Writer, prompt: int) -> None:
        self._writer, self._prompt = writer, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """For each row, whether it has ended."""
        return torch.full(input_ids.shape[:1], self._writer.is_done(self._prompt), device=input_ids.device)


class _Count:
    """The tokens that a model ran on."""

    tokens = 0

    def add(self, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """The hook before the model's forward pass."""
        ids = given[0] if given else named.get("input_ids")
        self.tokens += 0 if ids is None else ids.numel()


@contextmanager
def _counting(model: Any) -> Iterator[_Count]:
    count = _Count()
    hook = model.register_forward_pre_hook(count.add, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()


@contextmanager
def _plain_generation(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Within this context nothing of the model's own generation config (sampling, penalties) is taken over."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
