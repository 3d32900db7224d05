"""Examples -> tokens: prompt and completion are tokenised as one text, and cut or dropped at the sequence length.

* The tokens of the completion are those that follow the prompt's in the whole text. To tokenise it by itself would give
  others: many tokenizers put a space before every text. The prompt's tokens are those that end where the prompt ends
  or before. A token that holds the end of the prompt and the beginning of the completion belongs to the completion: it
  is a target, and generation starts before it. So does a character that has a byte in such a token: no prompt ends
  within a character. Training, loss and generation all see this one split.
* A completion ends with EOS, in a chat template with the end of the turn. It is a target like any other token; a
  completion whose own text ends with it gets no second one. Special tokens that a tokenizer adds before a text are
  kept, those that it adds behind a text are not.
* Language modelling has no prompt: a text starts with BOS (EOS where the tokenizer has none), which is never a target,
  and does not get an EOS.
* Training: language modelling cuts a text that exceeds the sequence length. Other tasks drop the example, or cut the
  end of its context if they ask for it.
* Test: no example is dropped. A prompt that leaves no room for its completion and the new tokens loses the end of its
  context. A prompt that does not fit even without its context is refused. Where no context is marked, the prompt's
  text loses its beginning, so that the question stays. BOS and the header of a chat's turn are never cut.
* A tokenizer may drop characters, so a text can have no tokens at all. Such an example has no targets; who prepares the
  data counts it.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from howlow.engine.chat_template import in_chat_template, turn_end
from howlow.engine.encoding import (
    Encoded,
    Span,
    Tokenizer,
    decode,
    encode,
    encode_all,
    eos_of,
    first_part,
    leading_tokens,
    start_of,
    whole_characters,
    whole_characters_of,
    without_beginning,
    without_end,
)
from howlow.errors import UserError
from howlow.tasks import Example


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids of one example; targets are the completion, with `loss_on = "all"` also the prompt except its first.

    `words` and `bytes` count exactly the text that is scored, after cutting (language modelling). `repeated` is the end
    of the prompt's text that the completion's first token holds too: what a model writes here begins with it.
    """

    id: str
    group: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    words: int = 0
    bytes: int = 0
    cut: bool = False
    repeated: str = ""

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


# -- prompt and completion ------------------------------------------------------------------------------------------


def tokenize(tokenizer: Tokenizer, example: Example, chat: bool = False) -> TokenizedExample:
    """One example with a prompt, uncut."""
    return tokenize_all(tokenizer, [example], chat)[0]


def tokenize_all(tokenizer: Tokenizer, examples: Sequence[Example], chat: bool = False) -> list[TokenizedExample]:
    """Examples with prompts, uncut, in their order."""
    return _tokenized(tokenizer, examples, _Frame.of(tokenizer, chat))


@dataclass(frozen=True)
class _Frame:
    """The special tokens before a prompt, and the one that ends a completion."""

    lead: tuple[int, ...]
    end: int
    chat: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, chat: bool) -> "_Frame":
        """A chat template writes its special tokens itself."""
        end = turn_end(tokenizer) if chat else None
        return cls(() if chat else leading_tokens(tokenizer), eos_of(tokenizer) if end is None else end, chat)


def _tokenized(tokenizer: Tokenizer, examples: Sequence[Example], frame: _Frame) -> list[TokenizedExample]:
    rendered = [in_chat_template(tokenizer, example, frame.chat) for example in examples]
    wholes = encode_all(tokenizer, [one.prompt + one.completion for one in rendered])
    return [_joined(tokenizer, *pair, frame) for pair in zip(rendered, wholes, strict=True)]


def _joined(tokenizer: Tokenizer, example: Example, whole: Encoded, frame: _Frame) -> TokenizedExample:
    count, repeated = _split(tokenizer, example, whole)
    prompt = (*frame.lead, *whole.ids[:count]) or (start_of(tokenizer),)
    completion = tuple(whole.ids[count:])
    if completion[-1:] != (frame.end,):
        completion = (*completion, frame.end)
    return TokenizedExample(example.id, example.group, prompt, completion, repeated=repeated)


def _split(tokenizer: Tokenizer, example: Example, whole: Encoded) -> tuple[int, str]:
    """How many tokens of the whole text are the prompt's, and the text of the prompt that the next token repeats."""
    length, spans = len(example.prompt), whole.spans
    if not length:
        return 0, ""
    if spans is None:
        alone = encode(tokenizer, example.prompt).ids
        common = whole_characters_of(tokenizer, whole.ids, _common(alone, whole.ids))
        return common, decode(tokenizer, alone[common:])
    reaching = next((index for index, (_, end) in enumerate(spans) if end > length), len(spans))
    within = whole_characters(spans, reaching)
    if within and within == reaching and spans[within - 1][1] == length:
        return within, ""
    # The prompt's last characters have no tokens of their own.
    alone = encode(tokenizer, example.prompt).ids
    common = whole_characters(spans, _common(alone, whole.ids))
    if common > within and example.completion[: spans[common - 1][1] - length].strip():
        common = within  # it looks like the prompt's token, and holds more: unknown characters are one token
    if common >= within:
        return common, decode(tokenizer, alone[common:])
    return within, example.prompt[spans[within - 1][1] :]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    least = min(len(one), len(other))
    return next((index for index in range(least) if one[index] != other[index]), least)


# -- texts ----------------------------------------------------------------------------------------------------------


def tokenize_text(tokenizer: Tokenizer, example: Example, sequence_length: int) -> TokenizedExample:
    """One text of language modelling: BOS, then as many of its tokens as fit."""
    text = example.completion
    ids, end = next(_parts(tokenizer, text, sequence_length - 1), ([], len(text)))
    scored = text[: max(end, 1) if ids else end]  # of a first character with more tokens than fit, some are scored
    return _text(tokenizer, example, ids, scored, len(scored.split()), cut=end < len(text))


def windows(tokenizer: Tokenizer, document: Example, sequence_length: int) -> list[tuple[Example, TokenizedExample]]:
    """A document cut into windows without overlap: BOS and `sequence_length - 1` tokens each, the last shorter.

    A character counts in the window that holds its last token, a word where its first character does. So the windows'
    words and bytes are the document's, end to end.
    """
    starts = [word.start() for word in re.finditer(r"\S+", document.completion)]
    first, start, found = 0, 0, []
    for part, end in _parts(tokenizer, document.completion, sequence_length - 1):
        text = document.completion[start:end]
        words = bisect_left(starts, end) - bisect_left(starts, start)
        name = f"{document.id}@{first}"
        # A window leaks test data if one of its longer lines occurs there; repeated headings do no harm.
        lines = tuple(line.strip() for line in text.splitlines() if len(line.split()) > 5)
        window = Example(name, name, "", "", "", text, overlap_keys=lines or (text,), document=document.id)
        found.append((window, _text(tokenizer, window, part, text, words)))
        first, start = first + len(part), end
    return found


def _parts(tokenizer: Tokenizer, text: str, room: int) -> Iterator[tuple[list[int], int]]:
    """A text's tokens in parts of at most `room`, each with the place in the text where it ends.

    The last part ends with the text. A text that has no tokens is one part without any. A tokenizer without spans
    tokenises each part by itself.
    """
    if not tokenizer.is_fast:
        yield from _parts_by_themselves(tokenizer, text, room)
        return
    whole = encode(tokenizer, text)
    spans, first = whole.spans or [], 0
    begin_later = _begin_later(spans)
    while first < len(whole):
        # A character of more tokens than that is cut: it counts where its last token stands.
        last = min(first + (whole_characters(spans[first : first + room + 1], room) or room), len(whole))
        yield whole.ids[first:last], min(spans[last - 1][1], begin_later[last]) if last < len(whole) else len(text)
        first = last
    if text and not whole.ids:
        yield [], len(text)


def _begin_later(spans: Sequence[Span]) -> list[int]:
    """For each token the first character that it or a later one holds; spans of a normalised text may overlap."""
    return list(accumulate((start for start, _ in reversed(spans)), min))[::-1]


def _parts_by_themselves(tokenizer: Tokenizer, text: str, room: int) -> Iterator[tuple[list[int], int]]:
    start, fits = 0, len(encode(tokenizer, text)) <= room
    while start < len(text):
        part = text if fits else first_part(tokenizer, text[start:], room)
        start += len(part)
        yield encode(tokenizer, part).ids, start


def _text(
    tokenizer: Tokenizer, example: Example, ids: list[int], text: str, words: int, cut: bool = False
) -> TokenizedExample:
    return TokenizedExample(
        example.id,
        example.group,
        (start_of(tokenizer),),
        tuple(ids),
        words=words if ids else 0,
        bytes=len(text.encode()) if ids else 0,
        cut=cut,
    )


# -- prompts that fit -----------------------------------------------------------------------------------------------


def fit_prompt(
    tokenizer: Tokenizer, example: Example, sequence_length: int, max_new_tokens: int, chat: bool = False
) -> TokenizedExample:
    """A test example whose prompt leaves room for its completion and for the new tokens."""
    return fit_prompts(tokenizer, [example], sequence_length, max_new_tokens, chat)[0]


def fit_training_prompts(
    tokenizer: Tokenizer, examples: Sequence[Example], sequence_length: int, chat: bool = False
) -> list[TokenizedExample]:
    """Training examples whose contexts are cut so that prompt and completion fit, in their order.

    One that does not fit with any of its context is given back whole, and so is too long.
    """
    room, frame = _Room(sequence_length, 0), _Frame.of(tokenizer, chat)
    wholes = _tokenized(tokenizer, examples, frame)
    found = []
    for example, whole in zip(examples, wholes, strict=True):
        shorter, text = _shortened(tokenizer, example, whole, room, frame) if example.context else (whole, "")
        fits = text and room.excess(shorter) <= 0
        found.append(replace(shorter, cut=shorter.prompt != whole.prompt) if fits else whole)
    return found


def fit_prompts(
    tokenizer: Tokenizer, examples: Sequence[Example], sequence_length: int, max_new_tokens: int, chat: bool = False
) -> list[TokenizedExample]:
    """Test examples whose prompts leave room for their completions and for the new tokens, in their order."""
    room, frame = _Room(sequence_length, max_new_tokens), _Frame.of(tokenizer, chat)
    wholes = _tokenized(tokenizer, examples, frame)
    return [_fitted(tokenizer, *pair, room, frame) for pair in zip(examples, wholes, strict=True)]


@dataclass(frozen=True)
class _Room:
    """What a prompt, its completion and the new tokens have to fit into."""

    sequence_length: int
    max_new_tokens: int

    def for_prompt(self, whole: TokenizedExample) -> int:
        """The tokens that a prompt may have."""
        return self.sequence_length - max(self.max_new_tokens, len(whole.completion))

    def excess(self, whole: TokenizedExample) -> int:
        """The tokens that a prompt has too many."""
        return len(whole.prompt) - self.for_prompt(whole)


def _fitted(
    tokenizer: Tokenizer, example: Example, whole: TokenizedExample, room: _Room, frame: _Frame
) -> TokenizedExample:
    if room.for_prompt(whole) < 1:
        raise UserError(
            f"training.sequence_length {room.sequence_length} leaves no room for the prompt with "
            f"{max(room.max_new_tokens, len(whole.completion))} tokens after it (test example {example.id}); "
            "raise it, or lower inference.max_new_tokens"
        )
    shorter, text = _shortened(tokenizer, example, whole, room, frame)
    if room.excess(shorter) > 0 or (example.prompt and not text and not example.context):
        raise UserError(_too_long(example, shorter, room))
    return replace(shorter, cut=shorter.prompt != whole.prompt)


def _shortened(
    tokenizer: Tokenizer, example: Example, whole: TokenizedExample, room: _Room, frame: _Frame
) -> tuple[TokenizedExample, str]:
    """The example cut until it fits or nothing is left to cut, and what is left of the text that may be cut."""
    shorter, text = whole, example.context or example.prompt
    while room.excess(shorter) > 0 and text:
        if example.context:
            text = without_end(tokenizer, text, room.excess(shorter))
            left = replace(example, context=text)
        else:
            text = without_beginning(tokenizer, text, room.excess(shorter))
            left = replace(example, before="", after=text)
        (shorter,) = _tokenized(tokenizer, [left], frame)
    return shorter, text


def _too_long(example: Example, shortest: TokenizedExample, room: _Room) -> str:
    count = len(shortest.prompt)
    problem = f"none of its prompt's text fits behind the {count} tokens that every prompt starts with or needs"
    if example.context:
        problem = f"even without its context its prompt has {count} tokens"
    return (
        f"test example {example.id}: {problem}; training.sequence_length = {room.sequence_length} leaves room for "
        f"{room.for_prompt(shortest)} before the answer (inference.max_new_tokens = {room.max_new_tokens}); "
        "raise training.sequence_length or lower max_new_tokens"
    )


def fingerprint(examples: Sequence[TokenizedExample]) -> str:
    """SHA-256 over ids and tokens: equal exactly if two trials see the same examples."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.group, example.prompt, example.completion)).encode())
    return digest.hexdigest()
