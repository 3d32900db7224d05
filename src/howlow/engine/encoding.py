"""Text -> token ids, and where in the text each token stands.

A text is always tokenised without the special tokens that a tokenizer adds; the caller puts them where they belong
(`leading_tokens`, `eos_of`, `start_of`). A fast tokenizer gives each token's place in the text. A slow one gives none,
and what it decodes need not be the text; where a text has to be cut, its beginnings are tokenised until one fits.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol, TypeVar

from howlow.errors import UserError

Span = tuple[int, int]
TEXTS_AT_ONCE = 512
"""A fast tokenizer reads that many texts in one call, on all cores."""
_PROBES = ("a", "1", ".")
_LONGEST_CHARACTER = 8
"""Tokens that hold a whole character for certain: UTF-8 has at most four bytes for one."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    is_fast: bool

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Token ids (and offsets)."""

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """Text."""


_T = TypeVar("_T", bound=Tokenizer)


@dataclass(frozen=True)
class Encoded:
    """A text's tokens, special ones only where the text spells them.

    spans: where in the text each token begins and ends; tokens of one character (bytes of an emoji) each have that
        whole character's span. None: the tokenizer does not say.
    """

    ids: list[int]
    spans: list[Span] | None

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Tokenizer, text: str) -> Encoded:
    """One text's tokens."""
    return next(encode_all(tokenizer, [text]))


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Encoded]:
    """The tokens of each text, in the texts' order."""
    if not tokenizer.is_fast:
        yield from (Encoded(_bare_ids(tokenizer, text), None) for text in texts)
        return
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "return_token_type_ids": False}
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        part = list(texts[first : first + TEXTS_AT_ONCE])
        found = tokenizer(part, add_special_tokens=False, verbose=False, **options)
        for ids, spans in zip(found["input_ids"], found["offset_mapping"], strict=True):
            yield Encoded(ids, spans)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of tokens that a model wrote; special tokens have none."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _bare_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


# -- special tokens -------------------------------------------------------------------------------------------------


def eos_of(tokenizer: Tokenizer) -> int:
    """The token that ends a completion."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; give another with the setting tokenizer")
    return tokenizer.eos_token_id


def start_of(tokenizer: Tokenizer) -> int:
    """The token that stands before a text without a prompt: BOS, or EOS where the tokenizer has none."""
    return eos_of(tokenizer) if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def leading_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer adds before a text, such as BOS.

    Those that it adds behind a text (EOS, [SEP]) are not for a prompt, which is continued. The ids alone do not tell
    one from the other where BOS is EOS, so a short text is tokenised with and without special tokens.
    """
    for probe in _PROBES:
        bare = _bare_ids(tokenizer, probe)
        found = tokenizer(probe, add_special_tokens=True, return_special_tokens_mask=tokenizer.is_fast, verbose=False)
        framed: list[int] = found["input_ids"]
        if bare and tokenizer.is_fast:
            count = len(list(takewhile(bool, found["special_tokens_mask"])))
            return tuple(framed[:count])
        for count in range(len(framed) - len(bare) + 1):
            if bare and framed[count : count + len(bare)] == bare:
                return tuple(framed[:count])
    return ()  # a tokenizer of other letters than these: its prompts start with their text


def tried(tokenizer: _T) -> _T:
    """The tokenizer, once it has read a text: some damage shows only there, as an error of any type."""
    leading_tokens(tokenizer)
    return tokenizer


# -- cutting --------------------------------------------------------------------------------------------------------


def whole_characters(spans: Sequence[Span], room: int) -> int:
    """The most tokens, up to `room`, that end where a character ends; 0 if none does."""
    count = min(room, len(spans))
    while 0 < count < len(spans) and spans[count][0] < spans[count - 1][1]:
        count -= 1
    return count


def whole_characters_of(tokenizer: Tokenizer, ids: Sequence[int], room: int) -> int:
    """`whole_characters` for a tokenizer without spans: the bytes of half a character are decoded as U+FFFD."""
    while room and decode(tokenizer, ids[max(0, room - _LONGEST_CHARACTER) : room]).endswith("\ufffd"):
        room -= 1
    return room


def first_part(tokenizer: Tokenizer, text: str, room: int) -> str:
    """The longest beginning of a text whose own tokens are at most `room`, for a tokenizer without spans.

    It has a character at least, so that whoever takes part after part comes to an end.
    """

    def count(end: int) -> int:
        return len(encode(tokenizer, text[:end]))

    size = 8 * room  # tokens of more characters are rare, so a long text is not tokenised again and again
    while size < len(text) and count(size) <= room:
        size *= 2
    if size >= len(text) and count(len(text)) <= room:  # a beginning may have more tokens: it cuts a word in two
        return text
    return text[: max(1, bisect_right(range(min(size, len(text)) + 1), room, key=count) - 1)]


def without_end(tokenizer: Tokenizer, text: str, excess: int) -> str:
    """A text that is not empty, without its last `excess` tokens or a few more; at least a character shorter."""
    whole = encode(tokenizer, text)
    keep = len(whole) - excess
    if keep <= 0:
        return ""
    if whole.spans is None:
        return first_part(tokenizer, text[:-1], keep)
    end = whole.spans[keep - 1][1]
    # A cut within a character removes the whole character.
    return text[: end if end < len(text) else min(whole.spans[-1][0], len(text) - 1)]


def without_beginning(tokenizer: Tokenizer, text: str, excess: int) -> str:
    """A text that is not empty, without its first `excess` tokens or a few more; at least a character shorter."""
    whole = encode(tokenizer, text)
    if len(whole) <= excess:
        return ""
    if whole.spans is None:
        starts, keep = range(1, len(text)), len(whole) - excess
        return text[1 + bisect_left(starts, -keep, key=lambda start: -len(encode(tokenizer, text[start:]))) :]
    spans = whole.spans
    between = (count for count in range(excess, len(spans)) if spans[count][0] >= spans[count - 1][1] > 0)
    first = next(between, None)
    return "" if first is None else text[spans[first - 1][1] :]
