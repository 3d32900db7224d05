"""From written tokens to the text that is scored. Predictions and references take the same way."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from howlow.engine.chat_template import special_token
from howlow.engine.encoding import decode, encode


def decoded(tokenizer: Any, written: Sequence[int], eos: Collection[int], repeated: str = "") -> str:
    """The text of the tokens before the first EOS, without special tokens.

    repeated: the end of the prompt's text that the first token holds too (`TokenizedExample.repeated`).
    """
    kept = list(takewhile(lambda token: token not in eos, written))
    return behind_prompt(decode(tokenizer, kept), repeated)


def behind_prompt(written: str, repeated: str) -> str:
    """What a model wrote, without the end of the prompt that it repeats (`TokenizedExample.repeated`)."""
    return "" if repeated.startswith(written) else written.removeprefix(repeated)


def before_stop(text: str, stop: str | None) -> str:
    """The text before the stop text; all of it where there is none."""
    return text.partition(stop)[0] if stop else text


def written_stop(tokenizer: Any, stop: str) -> str | None:
    """The stop text as the tokenizer writes it, where no answer can hold the text itself; None where one can.

    A tokenizer may write everything in lower case, drop line breaks, or decode special tokens to nothing. A stop that
    is one special token ends an answer by its id.
    """
    if special_token(tokenizer, stop) is not None:
        return None
    written = [decode(tokenizer, encode(tokenizer, text).ids) for text in (stop, f"a{stop}a")]
    return written[0] if not any(stop in text for text in written) else None


@dataclass(frozen=True)
class AnswerLimits:
    """What ends a generation: any EOS of the model, the stop text, and the number of new tokens."""

    eos: frozenset[int]
    stop: str | None
    max_new_tokens: int

    def written(self, tokenizer: Any, ids: Sequence[int], repeated: str = "") -> str:
        """What is left of these tokens where a generation writes them."""
        return before_stop(decoded(tokenizer, ids[: self.max_new_tokens], self.eos, repeated), self.stop)
