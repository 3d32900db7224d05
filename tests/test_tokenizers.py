"""Laws of tokens that hold for every kind of tokenizer: joins, targets, cuts, windows, special tokens."""

from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import pytest
from hypothesis import example as made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import ACROSS, DROPPED, KINDS, LEADS, NORMALISING, WORDS, without_eos

from howlow.engine.answers import behind_prompt
from howlow.engine.encoding import leading_tokens
from howlow.engine.tokens import fit_prompt, tokenize, tokenize_all, tokenize_text, windows
from howlow.errors import UserError
from howlow.tasks import Example

FAST = [kind for kind in KINDS if "slow" not in kind]
DECODES_BYTES = [kind for kind in FAST if "byte" in kind or "BOS" in kind]
LLAMAS = [kind for kind in KINDS if "llama" in kind]
CALM = settings(max_examples=15)

PIECES = st.sampled_from([*WORDS, " ", "  ", "a", ":", ".", "\n", "é", "e", "\u0301", "漢", "😀", DROPPED, " Par"])
TEXT = st.lists(PIECES, max_size=12).map("".join)
WIDE = st.text("éß漢😀a ", max_size=6)


@cache
def kind(name: str) -> Any:
    return KINDS[name]()


def fast(name: str) -> Any:
    """The tokenizer itself, also where its places are hidden."""
    return getattr(kind(name), "fast", kind(name))


def example(prompt: str, completion: str, context: str = "", before: str = "") -> Example:
    return Example("one", "group", before, context, prompt, completion)


def bare(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The text's tokens, from the tokenizer itself."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def lead(name: str) -> tuple[int, ...]:
    return tuple(fast(name).convert_tokens_to_ids(LEADS.get(name, ())))


def read(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# -- prompt and completion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@given(prompt=TEXT, completion=TEXT)
@CALM
def test_prompt_and_completion_joined_are_the_tokens_of_the_whole_text(name: str, prompt: str, completion: str):
    tokenizer = kind(name)
    found = tokenize(tokenizer, example(prompt, completion))
    whole = bare(tokenizer, prompt + completion)
    joined = found.prompt + found.completion
    start = joined[: len(joined) - len(whole) - 1]
    assert joined == (*start, *whole, tokenizer.eos_token_id)
    # Where the prompt has no token of its own, one must stand before the first target all the same.
    assert start == lead(name) or (not lead(name) and len(start) == 1 and found.prompt == start)


@pytest.mark.parametrize("name", FAST)
@given(prompt=TEXT, completion=TEXT)
@made_up(prompt=" ", completion="Answer")
@CALM
def test_every_token_that_holds_a_character_of_the_completion_is_a_target(name: str, prompt: str, completion: str):
    tokenizer = kind(name)
    spans = tokenizer(prompt + completion, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    found = tokenize(tokenizer, example(prompt, completion))
    first = next((index for index, (_, end) in enumerate(spans) if end > len(prompt) or not prompt), len(spans))
    while first and first < len(spans) and spans[first - 1][1] > spans[first][0]:
        first -= 1  # a token that holds a character of a target is a target itself
    assert len(found.completion) == len(spans[first:]) + 1


@pytest.mark.parametrize("name", KINDS)
@given(prompt=TEXT, completion=TEXT)
@CALM
def test_a_completion_ends_with_one_eos_and_a_prompt_holds_none_but_the_first(name: str, prompt: str, completion: str):
    eos = kind(name).eos_token_id
    found = tokenize(kind(name), example(prompt, completion))
    assert found.prompt
    assert found.completion[-1] == eos
    assert eos not in found.completion[:-1]
    assert eos not in found.prompt[1:]


@pytest.mark.parametrize("name", DECODES_BYTES)
@given(prompt=TEXT, completion=TEXT)
@CALM
def test_the_targets_read_behind_the_prompt_are_the_completion(name: str, prompt: str, completion: str):
    tokenizer = kind(name)
    found = tokenize(tokenizer, example(prompt, completion))
    assert read(tokenizer, found.prompt + found.completion) == prompt + completion
    written = read(tokenizer, found.completion)
    assert written == found.repeated + completion
    assert behind_prompt(written, found.repeated) == completion


@pytest.mark.parametrize("name", LLAMAS)
@given(prompt=TEXT, completion=TEXT)
@CALM
def test_llamas_targets_are_the_completion_up_to_the_space_that_its_decoder_strips(
    name: str, prompt: str, completion: str
):
    tokenizer = kind(name)
    found = tokenize(tokenizer, example(prompt, completion))
    written = behind_prompt(read(tokenizer, found.completion), found.repeated)
    assert written.lstrip() == completion.lstrip() or "\ufffd" in written


@given(prompts=st.lists(st.tuples(TEXT, TEXT), max_size=6))
@CALM
@pytest.mark.parametrize("name", KINDS)
def test_many_examples_at_once_are_each_of_them_alone(name: str, prompts: list[tuple[str, str]]):
    examples = [example(*pair) for pair in prompts]
    assert tokenize_all(kind(name), examples) == [tokenize(kind(name), one) for one in examples]


@pytest.mark.parametrize("name", LLAMAS)
def test_a_completion_gets_no_space_that_the_text_does_not_have(name: str):
    found = tokenize(kind(name), example("Why? Answer:", " Paris"))
    assert fast(name).convert_ids_to_tokens(found.completion) == ["▁Paris", "</s>"]
    assert fast(name).convert_ids_to_tokens(found.prompt) == ["<s>", "▁Why", "?", "▁Answer", ":"]
    assert found.repeated == ""


@pytest.mark.parametrize("name", [*DECODES_BYTES, *LLAMAS, "slow"])
@pytest.mark.parametrize(
    ("prompt", "completion", "repeated"), [("Answer: ", "Paris", " "), ("New Yor", "k", " Yor"), ("Answer:", ".", "")]
)
def test_a_token_that_prompt_and_completion_share_is_a_target(name: str, prompt: str, completion: str, repeated: str):
    tokenizer = kind(name)
    found = tokenize(tokenizer, example(prompt, completion))
    assert len(found.completion) == 2
    assert found.repeated.strip() == repeated.strip()
    written = read(tokenizer, found.completion)
    assert behind_prompt(written, found.repeated).strip() == completion


def test_what_a_prompt_repeats_is_taken_off_while_it_is_written():
    assert [behind_prompt(text, " \n") for text in ("", " ", " \n", " \nParis", "Paris")] == [
        "",
        "",
        "",
        "Paris",
        "Paris",
    ]
    assert behind_prompt("Paris", "") == "Paris"


@pytest.mark.parametrize("name", ACROSS)
@given(prompt=WIDE.filter(bool), completion=WIDE)
@made_up(prompt="ééé", completion="ß")  # a token across every end of a character
@settings(max_examples=150)
def test_no_prompt_ends_within_a_character(name: str, prompt: str, completion: str):
    """A token may hold the last byte of the prompt's last character and the first of the completion's."""
    tokenizer = ACROSS[name]()
    found = tokenize(tokenizer, example(prompt, completion))
    kept, written = read(tokenizer, found.prompt), read(tokenizer, found.completion)
    assert kept + found.repeated == prompt
    assert written == found.repeated + completion
    assert behind_prompt(written, found.repeated) == completion
    whole = bare(tokenizer, prompt + completion)
    beginnings = [read(tokenizer, whole[:count]) for count in range(len(whole) + 1)]
    ends = [len(text) for text in beginnings if (prompt + completion).startswith(text)]
    assert len(kept) == max(end for end in ends if end <= len(prompt)), "no more than the characters that share a token"
    assert (found.prompt + found.completion)[-len(whole) - 1 :] == (*whole, tokenizer.eos_token_id)


def test_a_token_of_half_a_character_by_hand():
    tokenizer = ACROSS["fast"]()
    assert tokenizer.tokenize("éß") == ["Ã", "©Ã", "Ł"]
    found = tokenize(tokenizer, example("aé", "ß"))
    assert (read(tokenizer, found.prompt), found.repeated) == ("a", "é")
    assert read(tokenizer, found.completion) == "éß"


def test_line_breaks_before_the_completion_stay_in_the_prompt():
    """Alone they are one token, before a word two; the prompt ends where its text ends all the same."""
    tokenizer = kind("byte level")
    assert len(bare(tokenizer, "Answer:\n\n")) == 3
    found = tokenize(tokenizer, example("Answer:\n\n", "Paris"))
    assert (read(tokenizer, found.prompt), read(tokenizer, found.completion)) == ("Answer:\n\n", "Paris")
    assert found.repeated == ""


@pytest.mark.parametrize("name", KINDS)
def test_only_special_tokens_before_a_text_go_before_a_prompt(name: str):
    assert leading_tokens(kind(name)) == lead(name)
    found = tokenize(kind(name), example("Why", " Paris"))
    assert found.prompt == (*lead(name), *bare(kind(name), "Why"))


@pytest.mark.parametrize("name", KINDS)
def test_a_completion_that_ends_in_eos_own_text_gets_no_second_one(name: str):
    eos = "[SEP]" if "wordpiece" in name else "</s>"
    plain, spelled = (tokenize(kind(name), example("Why", text)) for text in (" Paris", f" Paris{eos}"))
    assert spelled == plain


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenize(without_eos(), example("a", "b"))


def test_a_special_token_that_takes_the_space_behind_it_stays_in_the_prompt():
    """Phi 3's turns end in such a token: its span reaches into the completion."""
    from tokenizers import AddedToken

    tokenizer = KINDS["byte level"]()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|assistant|>", rstrip=True)]})
    found = tokenize(tokenizer, example("Why<|assistant|>", " Paris"))
    assert tokenizer.convert_ids_to_tokens(found.prompt)[-1] == "<|assistant|>"
    assert read(tokenizer, found.completion) == "Paris"
    assert found.repeated == ""


# -- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXT.filter(bool), length=st.integers(8, 14))
@CALM
def test_windows_are_the_whole_text_and_lose_no_token(name: str, text: str, length: int):
    tokenizer = kind(name)
    found = windows(tokenizer, example("", text), length)
    assert "".join(window.completion for window, _ in found) == text
    assert all(one.length <= length for _, one in found)
    assert len({one.id for _, one in found}) == len(found)
    if tokenizer.is_fast:
        assert tuple(chain.from_iterable(one.completion for _, one in found)) == bare(tokenizer, text)
    else:
        assert [one.completion for _, one in found] == [bare(tokenizer, window.completion) for window, _ in found]
    assert [one.bytes for _, one in found] == [
        len(window.completion.encode()) if one.completion else 0 for window, one in found
    ]


@pytest.mark.parametrize("name", [*NORMALISING, *FAST])
@given(text=st.text("ab \né\u0301ﷺ½ﬁ한漢😀\u3000", min_size=1, max_size=16), length=st.integers(3, 9))
@settings(max_examples=60)
def test_words_and_bytes_of_windows_are_the_texts(name: str, text: str, length: int):
    """A character of many tokens counts once, in the window that holds the last of them."""
    tokenizer = NORMALISING[name]() if name in NORMALISING else kind(name)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    found = windows(tokenizer, example("", text), length)
    assert min(min(one.words, one.bytes) for _, one in found) >= 0
    if not spans:
        return
    assert sum(one.bytes for _, one in found) == len(text.encode())
    assert sum(one.words for _, one in found) == len(text.split())
    assert "".join(window.completion for window, _ in found) == text
    window_of_token = list(chain.from_iterable([number] * len(one.completion) for number, (_, one) in enumerate(found)))
    window_of_character = list(
        chain.from_iterable([number] * len(one.completion) for number, (one, _) in enumerate(found))
    )
    assert len(window_of_token) == len(spans)
    for number, (start, end) in enumerate(spans):
        assert all(window_of_character[at] >= window_of_token[number] for at in range(start, end))
    for at in range(len(text)):
        holding = [window_of_token[number] for number, (start, end) in enumerate(spans) if start <= at < end]
        assert not holding or window_of_character[at] == max(holding)


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXT.filter(bool), length=st.integers(8, 14))
@CALM
def test_a_text_is_cut_to_what_is_scored(name: str, text: str, length: int):
    tokenizer = kind(name)
    whole, found = bare(tokenizer, text), tokenize_text(tokenizer, example("", text), length)
    assert found.length <= length
    if len(whole) < length:
        assert (found.completion, found.cut, found.bytes) == (whole, False, len(text.encode()) if whole else 0)
    else:
        assert found.cut
        assert found.completion == whole[: len(found.completion)] or not tokenizer.is_fast
        assert 0 < found.bytes < len(text.encode())


def test_a_text_that_is_cut_within_its_only_character_has_its_bytes():
    found = tokenize_text(NORMALISING["NFKC"](), example("", "ﷺ"), 8)
    assert (len(found.completion), found.words, found.bytes) == (7, 1, 3)


def test_a_text_without_tokens_has_no_target_no_word_and_no_byte():
    tokenizer = kind("unigram that ends texts")
    found = tokenize_text(tokenizer, example("", DROPPED), 8)
    assert (found.prompt, found.completion) == ((tokenizer.eos_token_id,), ())
    assert (found.words, found.bytes, found.cut) == (0, 0, False)
    assert [one for _, one in windows(tokenizer, example("", DROPPED), 8)] == [
        tokenize_text(tokenizer, Example("one@0", "one@0", "", "", "", DROPPED), 8)
    ]


# -- prompts that fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@given(context=TEXT, room=st.integers(0, 12))
@CALM
def test_a_prompt_that_is_cut_keeps_what_stands_around_its_context(name: str, context: str, room: int):
    tokenizer, new = kind(name), 4
    whole = example(" Why?", " Paris", context, "New: ")
    without = tokenize(tokenizer, example(" Why?", " Paris", "", "New: "))
    length = len(without.prompt) + room + new
    found = fit_prompt(tokenizer, whole, length, new)
    assert len(found.prompt) + max(new, len(found.completion)) <= length
    assert found.prompt[: len(lead(name))] == lead(name)
    beginnings = [replace(whole, context=context[:end]) for end in range(len(context) + 1)]
    assert replace(found, cut=False) in tokenize_all(tokenizer, beginnings)
    assert found.cut == (found.prompt != tokenize(tokenizer, whole).prompt)


@pytest.mark.parametrize("name", KINDS)
@given(prompt=TEXT.map(lambda text: f"{text} Why?"), room=st.integers(6, 12))
@CALM
def test_a_prompt_without_a_context_keeps_its_end_and_what_a_text_starts_with(name: str, prompt: str, room: int):
    tokenizer, new = kind(name), 4
    length = len(lead(name)) + room + new
    found = fit_prompt(tokenizer, example(prompt, " Paris"), length, new)
    assert len(found.prompt) + max(new, len(found.completion)) <= length
    assert found.prompt[: len(lead(name))] == lead(name)
    assert read(tokenizer, found.prompt).endswith(read(tokenizer, bare(tokenizer, "y?")))
    ends = [example(prompt[start:], " Paris") for start in range(len(prompt))]
    assert replace(found, cut=False) in tokenize_all(tokenizer, ends)


def test_a_prompt_of_which_nothing_fits_is_refused():
    with pytest.raises(UserError) as caught:
        fit_prompt(kind("llama"), example("Why? Why?", " Paris"), 8, 7)
    assert str(caught.value) == (
        "test example one: none of its prompt's text fits behind the 1 tokens that every prompt starts with or needs; "
        "training.sequence_length = 8 leaves room for 1 before the answer (inference.max_new_tokens = 7); raise "
        "training.sequence_length or lower max_new_tokens"
    )
