"""Examples -> tokens: EOS and BOS, cutting, windows, prompts that fit, the chat template, fingerprints.

The tokenizer is one token a byte, so that what a token is needs no second opinion.
"""

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.engine.tokens import fingerprint, fit_prompt, tokenize, tokenize_text, windows
from howlow.errors import UserError
from howlow.tasks import Example

BOS, EOS = 256, 257
TEXT = st.text("ab \n.éß€漢😀", max_size=60)
PLAIN = st.text("abc ?.", max_size=40)


def example(context: str = "", after: str = "", completion: str = "", before: str = "") -> Example:
    return Example("one", "group", before, context, after, completion)


def text_example(text: str) -> Example:
    return example(completion=text)


def read(tokenizer: Any, ids: tuple[int, ...]) -> str:
    """The text of whole characters."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def num_bytes(text: str) -> int:
    return len(text.encode())


# -- prompt and completion ------------------------------------------------------------------------------------------


@given(before=TEXT, context=TEXT, after=TEXT, completion=TEXT)
def test_a_prompt_is_followed_by_its_completion_and_eos(
    tiny_tokenizer: Any, before: str, context: str, after: str, completion: str
):
    found = tokenize(tiny_tokenizer, example(context, after, completion, before))
    prompt = before + context + after
    assert found.completion[-1] == EOS
    assert EOS not in found.completion[:-1]
    assert read(tiny_tokenizer, found.completion) == completion
    assert read(tiny_tokenizer, found.prompt) == prompt
    assert len(found.prompt) == (num_bytes(prompt) or 1)
    assert found.length == len(found.prompt) + num_bytes(completion) + 1
    assert (found.id, found.group, found.cut) == ("one", "group", False)


def test_an_empty_prompt_starts_with_bos_so_that_the_first_target_has_a_predecessor(tiny_tokenizer: Any):
    assert tokenize(tiny_tokenizer, example(completion="a")).prompt == (BOS,)


def changed(tokenizer: Any, **tokens: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, **{"bos_token": "<s>", "eos_token": "</s>"} | tokens
    )


def test_without_bos_a_text_starts_with_eos(tiny_tokenizer: Any):
    tokenizer = changed(tiny_tokenizer, bos_token=None)
    assert tokenize_text(tokenizer, text_example("a"), 8).prompt == (tokenizer.eos_token_id,)


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer: Any):
    with pytest.raises(UserError) as caught:
        tokenize(changed(tiny_tokenizer, eos_token=None), example("a", completion="b"))
    assert str(caught.value) == ("the tokenizer has no end-of-sequence token; give another with the setting tokenizer")


def test_special_tokens_frame_the_prompt_only_in_front(tiny_tokenizer: Any):
    """A tokenizer that puts BOS before and EOS after every text: the prompt keeps its BOS and goes on."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = changed(tiny_tokenizer)
    plain = tokenizer.backend_tokenizer.post_processor
    framed = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    tokenizer.backend_tokenizer.post_processor = framed
    try:
        found = tokenize(tokenizer, example("ab", completion="c"))
    finally:
        tokenizer.backend_tokenizer.post_processor = plain
    assert found.prompt[0] == BOS
    assert EOS not in found.prompt
    assert (len(found.prompt), len(found.completion), found.completion[-1]) == (3, 2, EOS)


# -- texts ----------------------------------------------------------------------------------------------------------


@given(text=TEXT.filter(bool), sequence_length=st.integers(8, 80))
def test_a_text_starts_with_bos_which_is_no_target_and_has_no_eos(tiny_tokenizer: Any, text: str, sequence_length: int):
    found = tokenize_text(tiny_tokenizer, text_example(text), sequence_length)
    assert found.prompt == (BOS,)
    assert EOS not in found.completion
    assert BOS not in found.completion
    assert found.length <= sequence_length
    assert found.cut == (num_bytes(text) > sequence_length - 1)
    if not found.cut:
        assert read(tiny_tokenizer, found.completion) == text


@given(text=TEXT.filter(bool), sequence_length=st.integers(8, 80))
def test_words_and_bytes_are_those_of_the_tokens_that_are_scored(tiny_tokenizer: Any, text: str, sequence_length: int):
    found = tokenize_text(tiny_tokenizer, text_example(text), sequence_length)
    scored = read(tiny_tokenizer, found.completion)
    assert text.startswith(scored)
    assert found.bytes == len(found.completion) == num_bytes(scored)
    assert found.words == len(scored.split())
    assert found.length > sequence_length - 4 or not found.cut  # a character has at most four tokens here


def test_a_cut_text_by_hand(tiny_tokenizer: Any):
    found = tokenize_text(tiny_tokenizer, text_example("one two three"), 8)
    assert read(tiny_tokenizer, found.completion) == "one two"
    assert (found.words, found.bytes, found.cut, found.length) == (2, 7, True, 8)


@given(text=TEXT, sequence_length=st.integers(8, 40))
def test_windows_do_not_overlap_and_are_the_whole_text_end_to_end(tiny_tokenizer: Any, text: str, sequence_length: int):
    found = windows(tiny_tokenizer, text_example(text), sequence_length)
    examples, tokenized = [pair[0] for pair in found], [pair[1] for pair in found]
    ids = tuple(chain.from_iterable(window.completion for window in tokenized))
    assert read(tiny_tokenizer, ids) == text
    assert "".join(window.completion for window in examples) == text
    assert sum(window.bytes for window in tokenized) == num_bytes(text) == len(ids)
    assert all(window.prompt == (BOS,) and 0 < len(window.completion) < sequence_length for window in tokenized)
    assert [window.id for window in examples] == [window.id for window in tokenized]
    assert len({window.id for window in tokenized}) == len(found)
    assert not any(window.cut for window in tokenized)


def test_windows_of_plain_text_are_full_but_the_last(tiny_tokenizer: Any):
    found = windows(tiny_tokenizer, text_example("abcdefghijklmnopq"), 8)
    assert [window.completion for window, _ in found] == ["abcdefg", "hijklmn", "opq"]
    assert [window.id for window, _ in found] == ["one@0", "one@7", "one@14"]


def test_a_word_that_two_windows_share_counts_once(tiny_tokenizer: Any):
    text = "one two three four five six seven eight nine ten"
    found = windows(tiny_tokenizer, text_example(text), 8)
    assert sum(window.words for _, window in found) == len(text.split())


def test_a_window_leaks_through_its_longer_lines_and_not_through_its_headings(tiny_tokenizer: Any):
    long, heading = "this line has six words here", "= heading ="
    ((window, _),) = windows(tiny_tokenizer, text_example(f"{heading}\n{long}\n"), 80)
    assert window.overlap_keys == (long,)
    ((window, _),) = windows(tiny_tokenizer, text_example(heading), 80)
    assert window.overlap_keys == (heading,)


class SlowTokenizer:
    """A tokenizer without offsets: one token a character, as a slow one that lives in Python."""

    bos_token_id, eos_token_id, is_fast = 1, 2, False

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(character) for character in text]}

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(chr(index - 3) for index in ids)


def test_a_tokenizer_without_offsets_cuts_alike():
    found = tokenize_text(SlowTokenizer(), text_example("one two three"), 8)
    assert (SlowTokenizer().decode(found.completion), found.words, found.bytes) == ("one two", 2, 7)
    parts = windows(SlowTokenizer(), text_example("é€ab" * 5), 8)
    assert "".join(window.completion for window, _ in parts) == "é€ab" * 5


# -- prompts that fit -----------------------------------------------------------------------------------------------


@given(before=PLAIN, context=PLAIN, question=PLAIN, answer=st.text("xyz", max_size=6), room=st.integers(0, 30))
def test_a_prompt_that_fits_keeps_its_question_and_loses_the_end_of_its_context(
    tiny_tokenizer: Any, before: str, context: str, question: str, answer: str, room: int
):
    whole = example(context, question, answer, before)
    new = 4
    length = len(before) + len(question) + room + max(new, len(answer) + 1)
    if len(before) + len(question) + room == 0:
        return
    found = fit_prompt(tiny_tokenizer, whole, length, new)
    kept = read(tiny_tokenizer, found.prompt)
    assert kept == before + context[:room] + question
    assert found.completion == tokenize(tiny_tokenizer, whole).completion
    assert found.cut == (len(context) > room)
    assert len(found.prompt) + max(new, len(found.completion)) <= length


class Patient:
    """A tokenizer that is asked a few times only: a cut that does not come closer would go on for ever."""

    def __init__(self, tokenizer: Any, patience: int) -> None:
        self._tokenizer, self._left = tokenizer, patience

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self._left -= 1
        assert self._left, "fit_prompt goes on for ever"
        return self._tokenizer(text, **options)


@given(context=TEXT, question=TEXT, room=st.integers(0, 40))
def test_a_context_is_cut_between_characters(tiny_tokenizer: Any, context: str, question: str, room: int):
    length = num_bytes(question) + room + 4
    if length == 4:
        return
    found = fit_prompt(Patient(tiny_tokenizer, 60), example(context, question, "x"), length, 4)
    kept = read(tiny_tokenizer, found.prompt)
    assert kept.endswith(question)
    left = kept.removesuffix(question)
    assert context.startswith(left)
    assert num_bytes(left) <= room
    assert num_bytes(left) > room - 4 or left == context


@given(prompt=PLAIN.filter(bool), room=st.integers(1, 20))
def test_a_prompt_without_context_loses_its_beginning(tiny_tokenizer: Any, prompt: str, room: int):
    found = fit_prompt(tiny_tokenizer, example(after=prompt, completion="x"), room + 4, 4)
    assert read(tiny_tokenizer, found.prompt) == prompt[-room:]
    assert found.cut == (len(prompt) > room)


def test_no_room_for_a_prompt_is_refused(tiny_tokenizer: Any):
    with pytest.raises(UserError) as caught:
        fit_prompt(tiny_tokenizer, example("c", "q", "x" * 9), 10, 4)
    assert str(caught.value) == (
        "training.sequence_length 10 leaves no room for the prompt with 10 tokens after it (test example one); "
        "raise it, or lower inference.max_new_tokens"
    )


def test_a_question_that_does_not_fit_without_its_context_is_refused(tiny_tokenizer: Any):
    assert read(tiny_tokenizer, fit_prompt(tiny_tokenizer, example("context", "Why?"), 8, 4).prompt) == "Why?"
    with pytest.raises(UserError) as caught:
        fit_prompt(tiny_tokenizer, example("context", "Why so?"), 8, 4)
    message = str(caught.value)
    assert message.startswith("test example one: even without its context its prompt has 7 tokens; ")
    assert "training.sequence_length = 8 leaves room for 4 before the answer" in message
    assert "inference.max_new_tokens = 4" in message


# -- chat -----------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: Any) -> Any:
    tokenizer = changed(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_prompt_is_the_users_turn_and_the_completion_follows(chat_tokenizer: Any):
    found = tokenize(chat_tokenizer, example(" the context ", " Why?\n", "So.", "Read: "), chat=True)
    assert read(chat_tokenizer, found.prompt) == "<|user|>Read:  the context  Why?<|end|><|assistant|>"
    assert read(chat_tokenizer, found.completion) == "So."
    assert found.completion[-1] == EOS


def test_a_chat_prompt_that_is_cut_keeps_its_turns(chat_tokenizer: Any):
    found = fit_prompt(chat_tokenizer, example("abcdefgh", " Why?", "So."), 46, 4, chat=True)
    assert read(chat_tokenizer, found.prompt) == "<|user|>abcdefgh Why?<|end|><|assistant|>"
    found = fit_prompt(chat_tokenizer, example("abcdefgh", " Why?", "So."), 40, 4, chat=True)
    assert read(chat_tokenizer, found.prompt) == "<|user|>abc Why?<|end|><|assistant|>"
    assert found.cut


def test_a_chat_prompt_without_a_context_loses_the_beginning_of_its_text_and_keeps_its_turns(chat_tokenizer: Any):
    found = fit_prompt(chat_tokenizer, example(after="abcdefgh Why?", completion="So."), 40, 4, chat=True)
    assert read(chat_tokenizer, found.prompt) == "<|user|>fgh Why?<|end|><|assistant|>"
    assert found.cut
    with pytest.raises(UserError, match="none of its prompt's text fits"):
        fit_prompt(chat_tokenizer, example(after="abcdefgh Why?", completion="So."), 32, 4, chat=True)


def test_chat_without_a_template_is_refused(tiny_tokenizer: Any):
    with pytest.raises(UserError, match=r"the tokenizer has no chat template; leave it out or give its text"):
        tokenize(tiny_tokenizer, example("a", completion="b"), chat=True)


# -- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_ids_tokens_and_order(tiny_tokenizer: Any):
    first, second = (tokenize(tiny_tokenizer, example(text, completion="x")) for text in "ab")
    assert fingerprint([first, second]) == fingerprint([replace(first), second])
    others = [
        [second, first],
        [first],
        [first, second, second],
        [replace(first, id="other"), second],
        [replace(first, prompt=first.prompt + first.completion[:1], completion=first.completion[1:]), second],
        [first, replace(second, completion=second.completion[:-1])],
    ]
    assert len({fingerprint(examples) for examples in [[first, second], *others]}) == 1 + len(others)
