"""A prompt as the user's turn of the tokenizer's chat template, and its completion as the assistant's.

The template is a program of the model's makers, so nothing about it is assumed. Marks are rendered first, once a
template: in a conversation of a user's and an assistant's turn they show the *frame* around both texts.

    head   USER'S TEXT   middle   ASSISTANT'S TEXT   tail          middle = generation prompt [+ what always follows it]

Then every prompt is rendered itself. It must stand in this frame once, as it is, trimmed, or escaped for JSON.

* Where the assistant's turn always begins with further text (an empty block of thoughts), this text ends the prompt.
  Where it begins with white space, the completion begins with it: the model has to write it.
* Where the generation prompt goes on (it opens a block of thoughts) and the assistant's turn does not, prompts end as
  the turn begins: a completion is the answer, not a thought. `changed_prompt` tells of it.
* A completion that the template trims is trimmed. It ends as the assistant's turn does: with what the template writes
  behind the answer and the special token that ends the turn, and with EOS where the turn has none.
* Templates that take the content as a list of parts get one. Templates that can think are told not to, and one that
  writes today's date gets the same date on every day.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError

from howlow.errors import UserError, reason
from howlow.tasks import Example

_USER, _ASSISTANT, _SECOND_USER = "howlowQ1mark", "howlowA1mark", "howlowQ2mark"
_DAY = date(2024, 7, 26)  # the day that Llama 3's template gives where it is told none
_CALL_OF_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
_OF_TEMPLATES = (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_REMEDY = "give the prompt's own text as task.template, or leave it out"

_Turn = dict[str, Any]
_Pieces = tuple[str, str, str]


class _AbsentError(UserError):
    """The template does not write a text that it is given."""


def in_chat_template(tokenizer: Any, example: Example, chat: bool) -> Example:
    """The example as turns of the tokenizer's chat template, where `chat` asks for it.

    Raises:
        UserError: there is no template, it cannot be rendered, or it does not write this example's texts as they are.
    """
    if not chat:
        return example
    frame = _frame(tokenizer, _template_of(tokenizer))
    before, context, after = frame.written_prompt(example)
    completion = frame.written_completion(example)
    return replace(
        example,
        before=frame.head + before,
        context=context,
        after=after + frame.prompt_end,
        completion=frame.completion_lead + completion + frame.closing,
    )


def changed_prompt(tokenizer: Any) -> str | None:
    """How prompts differ from those that the template writes by itself, in words; None where they do not.

    A template may open a block of thoughts with its generation prompt, and write the assistant's turn without one.

    Raises:
        UserError: as `in_chat_template`.
    """
    frame = _frame(tokenizer, _template_of(tokenizer))
    renderer = replace(frame.renderer, options=())
    try:
        head, _, end = renderer.render(renderer.user(_USER), opens=True).partition(_USER)
    except UserError:  # it has no prompt of its own
        return None
    if end != frame.prompt_end:
        return (
            f"the chat template's generation prompt is {end!r}; prompts end with {frame.prompt_end!r}, as the "
            "assistant's turns do that it writes with enable_thinking = false"
        )
    return None if head == frame.head else "the chat template writes another beginning with enable_thinking = false"


def turn_end(tokenizer: Any) -> int | None:
    """The special token that ends the assistant's turn; None where the turn does not end with one.

    Raises:
        UserError: as `in_chat_template`.
    """
    return _frame(tokenizer, _template_of(tokenizer)).end


def special_token(tokenizer: Any, text: str) -> int | None:
    """The special token that a text is; None where it is another text, such as one that is unknown ([UNK])."""
    ids, token = tokenizer(text, add_special_tokens=False)["input_ids"], _first_special(tokenizer, text)
    is_whole = token is not None and ids == [token] and tokenizer.convert_ids_to_tokens(token) == text.strip()
    return token if is_whole else None


def _first_special(tokenizer: Any, text: str) -> int | None:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    added, special = tokenizer.added_tokens_decoder, tokenizer.all_special_ids
    return next((token for token in ids if token in special or (token in added and added[token].special)), None)


@dataclass(frozen=True)
class _Renderer:
    """A template, in which form it takes the content of a turn, and what else it is given."""

    tokenizer: Any
    template: str
    as_parts: bool
    options: tuple[tuple[str, bool], ...] = (("enable_thinking", False),)

    def user(self, text: str) -> _Turn:
        """A user's turn."""
        return {"role": "user", "content": self._content(text)}

    def assistant(self, text: str) -> _Turn:
        """An assistant's turn."""
        return {"role": "assistant", "content": self._content(text)}

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.as_parts else text

    def render(self, *turns: _Turn, opens: bool = False) -> str:
        """The turns as text; opens: with the prompt for the assistant's next turn.

        Raises:
            UserError: with the template's own message.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(turns),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=opens,
                **dict(self.options),
            )
        except _OF_TEMPLATES as error:
            raise _refused(f"cannot be rendered: {reason(error)[:200]}") from None
        return text


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the two texts of a conversation; `generation` is its generation prompt.

    middle and tail are None where the template writes no assistant's turn.
    """

    renderer: _Renderer
    head: str
    generation: str
    middle: str | None
    tail: str

    @property
    def prompt_end(self) -> str:
        """What stands between the user's text and the completion."""
        if self.middle is None or self.completion_lead:
            return self.generation
        return self.middle

    @property
    def completion_lead(self) -> str:
        """White space with which the assistant's turn always begins."""
        if self.middle is None or not self.middle.startswith(self.generation):
            return ""
        further = self.middle[len(self.generation) :]
        return further if further.isspace() else ""

    @cached_property
    def end(self) -> int | None:
        """The special token that ends the assistant's turn; None where the turn does not end with one."""
        return _first_special(self.renderer.tokenizer, self.tail)

    @cached_property
    def closing(self) -> str:
        """What stands between an answer and the special token that ends the turn; empty without one."""
        text: str = "" if self.end is None else self.renderer.tokenizer.convert_ids_to_tokens(self.end)
        return self.tail.partition(text)[0] if text and text in self.tail else ""

    def written_prompt(self, example: Example) -> _Pieces:
        """The three pieces of the prompt as the template writes them."""
        pieces = example.before, example.context, example.after
        text = self.renderer.render(self.renderer.user(example.prompt), opens=True)
        written = _inside(text, self.head, self.generation)
        found = next((one for one in _writings(pieces) if "".join(one) == written), None)
        if found is None:
            raise _refused(f"changes the prompt of example {example.id!r}")
        return found

    def written_completion(self, example: Example) -> str:
        """The completion as the template writes it: as it is, or trimmed."""
        if self.middle is None:
            return example.completion
        turns = self.renderer.user(example.prompt), self.renderer.assistant(example.completion)
        pieces = example.before, example.context, example.after
        text = self.renderer.render(*turns)
        for prompt in map("".join, _writings(pieces)):
            written = _inside(text, self.head + prompt + self.middle, self.tail)
            if written is not None and written in map("".join, _trims((example.completion, "", ""))):
                return written
        raise _refused(f"changes the completion of example {example.id!r}")


def _refused(problem: str) -> UserError:
    return UserError(f'task.template = "chat": the tokenizer\'s chat template {problem}; {_REMEDY}')


def _template_of(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise UserError('task.template = "chat": the tokenizer has no chat template; leave it out or give its text')
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none is the default
        raise _refused(f"cannot be chosen: {reason(error)[:200]}") from None
    return template


def _on_one_day(template: str) -> str:
    """The template with a macro in the place of `strftime_now`: the same data give the same tokens on every day."""
    formats = [call["format"] for call in _CALL_OF_TODAY.finditer(template)]
    if not formats or len(formats) != template.count("strftime_now("):  # a format that the template makes up
        return template
    days = [f"{{%- if format == {form!r} -%}}{_DAY.strftime(form)}{{%- endif -%}}" for form in sorted(set(formats))]
    return f"{{%- macro strftime_now(format) -%}}{''.join(days)}{{%- endmacro -%}}{template}"


# -- the frame ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _frame(tokenizer: Any, template: str) -> _Frame:
    """The frame of a template, whose content is given as text, or as a list of parts where it takes no text.

    Raises:
        UserError: there is no frame in which the prompt stands once, in the user's turn.
    """
    dated = _on_one_day(template)
    try:
        return _frame_of(_Renderer(tokenizer, dated, as_parts=False))
    except UserError as problem:
        of_text = problem
    try:
        return _frame_of(_Renderer(tokenizer, dated, as_parts=True))
    except UserError as of_parts:
        is_of_parts = isinstance(of_text, _AbsentError) and not isinstance(of_parts, _AbsentError)
        raise (of_parts if is_of_parts else of_text) from None


def _frame_of(renderer: _Renderer) -> _Frame:
    opened = renderer.render(renderer.user(_USER), opens=True)
    _refuse_printed_parts(renderer, opened)
    head, generation = _around(opened, _USER, "the prompt")
    middle, tail = _assistants_turn(renderer, head)
    if not (generation if middle is None else middle):
        raise _refused("writes nothing between the prompt and the answer, so no turn of the assistant begins")
    if middle is not None and not (middle.startswith(generation) or generation.startswith(middle)):
        raise _refused(f"has the generation prompt {generation!r}, but begins the assistant's turn with {middle!r}")
    frame = _Frame(renderer, head, generation, middle, tail)
    _refuse_another_turn(frame)
    return frame


def _around(text: str, mark: str, what: str) -> tuple[str, str]:
    """What stands before and behind a mark."""
    count = text.count(mark)
    if count == 0:
        raise _AbsentError(str(_refused(f"does not write {what}")))
    if count > 1:
        raise _refused(f"writes {what} {count} times")
    head, _, tail = text.partition(mark)
    return head, tail


def _refuse_printed_parts(renderer: _Renderer, text: str) -> None:
    """A template for plain text prints a list of parts as the list that it is."""
    (part,) = renderer.user(_USER)["content"] if renderer.as_parts else ("",)
    if part and any(printed in text for printed in (repr(part), json.dumps(part))):
        raise _AbsentError(str(_refused("does not write the prompt")))


def _assistants_turn(renderer: _Renderer, head: str) -> tuple[str | None, str]:
    """What stands between the user's and the assistant's text, and behind it; None where there is no such turn."""
    try:
        text = renderer.render(renderer.user(_USER), renderer.assistant(_ASSISTANT))
    except UserError:  # a template for questions alone
        return None, ""
    if _ASSISTANT not in text:
        return None, ""
    conversation, tail = _around(text, _ASSISTANT, "the completion")
    start, middle = _around(conversation, _USER, "the prompt")
    if start != head:
        raise _refused("begins a conversation in another way where it has an answer")
    return middle, tail


def _refuse_another_turn(frame: _Frame) -> None:
    """Refuse a template whose first turn is not the user's, whoever speaks: the header of the second one tells."""
    renderer = frame.renderer
    turns = renderer.user(_USER), renderer.assistant(_ASSISTANT), renderer.user(_SECOND_USER)
    try:
        text = renderer.render(*turns, opens=True)
    except UserError:  # a template for one question alone
        return
    between = text.partition(_ASSISTANT)[2].partition(_SECOND_USER)[0]
    is_told = frame.middle is not None and _SECOND_USER in text and between.startswith(frame.tail)
    header = between.removeprefix(frame.tail).strip()
    if is_told and header not in frame.head:
        raise _refused(f"writes the prompt into another turn than the user's, whose header is {header!r}")


# -- one text -------------------------------------------------------------------------------------------------------


def _inside(text: str, start: str, end: str) -> str | None:
    """What stands between the two; None where the text does not begin and end with them."""
    is_framed = text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)
    return text[len(start) : len(text) - len(end)] if is_framed else None


def _writings(pieces: _Pieces) -> Iterator[_Pieces]:
    """The ways in which a template may write a prompt without another meaning."""
    for trimmed in _trims(pieces):
        yield trimmed
        escaped = [json.dumps(piece, ensure_ascii=False)[1:-1] for piece in trimmed]
        yield escaped[0], escaped[1], escaped[2]


def _trims(pieces: _Pieces) -> Iterator[_Pieces]:
    """The pieces of a text as it is, and without the white space at its ends."""
    text = "".join(pieces)
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    for first, last in ((0, len(text)), (start, max(start, end)), (start, len(text)), (0, end)):
        yield _part(pieces, first, last)


def _part(pieces: _Pieces, first: int, last: int) -> _Pieces:
    """The characters from `first` up to `last` of the text that the pieces make."""
    kept, start = [], 0
    for piece in pieces:
        kept.append(piece[max(first - start, 0) : max(last - start, 0)])
        start += len(piece)
    return kept[0], kept[1], kept[2]
