"""Examples -> tokens: prompt and completion tokenised separately, joined, and cut or dropped at the sequence length.

* A completion ends with EOS, which is a target like any other token; in a chat template with the end of the turn.
  Language modelling has no prompt: a text starts with BOS (EOS where the tokenizer has none), which is never a target,
  and does not get an EOS.
* Training: language modelling cuts a text that exceeds the sequence length; other tasks drop the example.
* Test: no example is dropped. A prompt that leaves no room for its completion and the new tokens loses the end of its
  context, or its beginning where no context is marked, so that the question stays. A question that does not fit even
  without its context is refused.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from howlow.engine.chat_template import in_chat_template, turn_end
from howlow.errors import UserError
from howlow.tasks import Example


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    is_fast: bool

    def __call__(self, text: str, **options: Any) -> Any:
        """Token ids (and offsets)."""

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """Text."""


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids of one example; targets are the completion, with `loss_on = "all"` also the prompt except its first.

    `words` and `bytes` count exactly the text that is scored, after cutting (language modelling).
    """

    id: str
    group: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    words: int = 0
    bytes: int = 0
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


def eos_of(tokenizer: Tokenizer) -> int:
    """The token that ends a completion."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; give another with the setting tokenizer")
    return tokenizer.eos_token_id


def _ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    if special and ids and ids[-1] == tokenizer.eos_token_id and ids[-1] != tokenizer.bos_token_id:
        ids = ids[:-1]  # some tokenizers end every text, but a prompt is continued
    return ids


def tokenize(tokenizer: Tokenizer, example: Example, chat: bool = False) -> TokenizedExample:
    """One example with a prompt, uncut."""
    rendered = in_chat_template(tokenizer, example, chat)
    prompt = _ids(tokenizer, rendered.prompt, special=not chat)
    end = turn_end(tokenizer) if chat else None
    completion = [*_ids(tokenizer, rendered.completion), eos_of(tokenizer) if end is None else end]
    if not prompt:
        prompt = [_start_of(tokenizer)]
    return TokenizedExample(example.id, example.group, tuple(prompt), tuple(completion))


def _start_of(tokenizer: Tokenizer) -> int:
    return eos_of(tokenizer) if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def tokenize_text(tokenizer: Tokenizer, example: Example, sequence_length: int) -> TokenizedExample:
    """One text of language modelling: BOS, then as many of its tokens as fit."""
    text, room = example.completion, sequence_length - 1
    ids, spans = _ids_and_spans(tokenizer, text)
    if len(ids) > room:
        count = _whole_characters(spans, room)
        scored = text[: spans[count - 1][1]] if count else ""
        return _text(tokenizer, example, ids[:count], scored, len(scored.split()), cut=True)
    return _text(tokenizer, example, ids, text, len(text.split()))


def windows(tokenizer: Tokenizer, document: Example, sequence_length: int) -> list[tuple[Example, TokenizedExample]]:
    """A document cut into windows without overlap: BOS and `sequence_length - 1` tokens each, the last shorter."""
    ids, spans = _ids_and_spans(tokenizer, document.completion)
    starts = [word.start() for word in re.finditer(r"\S+", document.completion)]
    room, first, start, found = sequence_length - 1, 0, 0, []
    while first < len(ids):
        part = ids[first : first + _whole_characters(spans[first:], room)]
        end = spans[first + len(part) - 1][1]
        text = document.completion[start:end]
        words = bisect_left(starts, end) - bisect_left(starts, start)  # a word counts where it begins
        name = f"{document.id}@{first}"
        # A window leaks test data if one of its longer lines occurs there; repeated headings do no harm.
        lines = tuple(line.strip() for line in text.splitlines() if len(line.split()) > 5)
        window = Example(name, name, "", "", "", text, overlap_keys=lines or (text,))
        found.append((window, _text(tokenizer, window, part, text, words)))
        first, start = first + len(part), end
    return found


def _text(
    tokenizer: Tokenizer, example: Example, ids: list[int], text: str, words: int, cut: bool = False
) -> TokenizedExample:
    return TokenizedExample(
        example.id,
        example.group,
        (_start_of(tokenizer),),
        tuple(ids),
        words=words,
        bytes=len(text.encode()),
        cut=cut,
    )


Span = tuple[int, int]


def _ids_and_spans(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Span]]:
    """Token ids, and where in the text each one begins and ends.

    Tokens of one character (bytes of an emoji) each have that whole character's span.
    """
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return found["input_ids"], [(start, end) for start, end in found["offset_mapping"]]
    ids = _ids(tokenizer, text)
    ends = [len(tokenizer.decode(ids[: count + 1])) for count in range(len(ids))]
    return ids, list(zip([0, *ends[:-1]], ends, strict=True)) if ids else []


def _whole_characters(spans: Sequence[Span], room: int) -> int:
    """The most tokens, up to `room`, that end where a character ends; `room` if none does."""
    if len(spans) <= room:
        return len(spans)
    whole = (count for count in range(room, 0, -1) if spans[count][0] >= spans[count - 1][1])
    return next(whole, room)


def fit_prompt(
    tokenizer: Tokenizer, example: Example, sequence_length: int, max_new_tokens: int, chat: bool = False
) -> TokenizedExample:
    """A test example whose prompt leaves room for its completion and for the new tokens."""
    whole = tokenize(tokenizer, example, chat)
    room = sequence_length - max(max_new_tokens, len(whole.completion))
    if room < 1:
        raise UserError(
            f"training.sequence_length {sequence_length} leaves no room for the prompt with "
            f"{max(max_new_tokens, len(whole.completion))} tokens after it (test example {example.id}); "
            "raise it, or lower inference.max_new_tokens"
        )
    shorter, context = whole, example.context
    while len(shorter.prompt) > room and context:
        ids, spans = _ids_and_spans(tokenizer, context)
        keep = len(ids) - (len(shorter.prompt) - room)
        end = spans[keep - 1][1] if keep > 0 else 0
        # A cut within a character removes the whole character.
        context = context[: end if end < len(context) else spans[-1][0]]
        shorter = tokenize(tokenizer, replace(example, context=context), chat)
    if len(shorter.prompt) > room and example.context:
        raise UserError(
            f"test example {example.id}: even without its context its prompt has {len(shorter.prompt)} tokens; "
            f"training.sequence_length = {sequence_length} leaves room for {room} before the answer "
            f"(inference.max_new_tokens = {max_new_tokens}); raise training.sequence_length or lower max_new_tokens"
        )
    prompt = shorter.prompt[-room:] if len(shorter.prompt) > room else shorter.prompt
    return replace(whole, prompt=prompt, cut=prompt != whole.prompt)


def fingerprint(examples: Sequence[TokenizedExample]) -> str:
    """SHA-256 over ids and tokens: equal exactly if two trials see the same examples."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.group, example.prompt, example.completion)).encode())
    return digest.hexdigest()
