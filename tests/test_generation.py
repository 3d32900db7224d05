"""Greedy generation: transformers' own tokens, batched or alone, with every end that a text can have."""

import sys
from typing import Any

import executions
import pytest
import torch
from conftest import loaded

from howlow.engine import model as models
from howlow.engine.adapter import attach_lora
from howlow.engine.generation import Generated

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LAYOUT = "padded"
EOS = 257
NEW = 12
PROMPTS = [(65, 66, 67, 68, 69, 70, 71), (32,), (97, 98), (10, 20, 30, 40, 50, 60, 70, 80, 90, 100), (200, 13, 7)]


@pytest.fixture(autouse=True, params=["padded", "packed", "shared", "single"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in every layout, and one prompt at a time: what is written does not depend on it."""
    monkeypatch.setattr(sys.modules[__name__], "LAYOUT", request.param)


@pytest.fixture(scope="module")
def model(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    """The tiny model with its weights spread, so that its continuations vary, and of plain characters."""
    found = loaded(tiny_model)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
        plain = [chr(code) for code in range(33, 127)]
        for token in range(264):
            if token != EOS and tiny_tokenizer.decode([token]) not in plain:
                found.lm_head.weight[token] = 0
    return found


def ours(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], **options: Any) -> list[Generated]:
    return generate(model, tokenizer, prompts, **options)[0]


def generate(
    model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], length: int = 16, **options: Any
) -> tuple[list[Generated], int]:
    chosen: dict[str, Any] = {"max_new_tokens": NEW, "stop": None, "eos": frozenset({EOS}), "layout": LAYOUT}
    plain = {"pad_id": 0, "prompt_length": length}
    return executions.generate(model, tokenizer, prompts, **(chosen | plain | options))


def theirs(model: Any, prompt: tuple[int, ...]) -> list[int]:
    """transformers' greedy continuation of one prompt, EOS included."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=EOS,
            pad_token_id=0,
        )
    continuation: list[int] = found[0, len(prompt) :].tolist()
    return continuation


def read(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def test_texts_and_counts_are_transformers_own(model: Any, tiny_tokenizer: Any):
    continuations = [theirs(model, prompt) for prompt in PROMPTS]
    assert len({tuple(found) for found in continuations}) == len(PROMPTS)
    assert max(len(set(found)) for found in continuations) > 3
    expected = [Generated(read(tiny_tokenizer, found), len(found)) for found in continuations]
    assert ours(model, tiny_tokenizer, PROMPTS) == expected
    assert [ours(model, tiny_tokenizer, [prompt], length=len(prompt))[0] for prompt in PROMPTS] == expected


def test_the_width_of_the_padding_changes_nothing(model: Any, tiny_tokenizer: Any):
    expected = ours(model, tiny_tokenizer, PROMPTS, length=10)
    assert ours(model, tiny_tokenizer, PROMPTS, length=33) == expected
    assert ours(model, tiny_tokenizer, PROMPTS[::-1], length=10) == expected[::-1]


def test_an_attached_adapter_writes_as_in_peft(model: Any, tiny_tokenizer: Any, tiny_model: Any):
    base = loaded(tiny_model)
    base.load_state_dict(model.state_dict())
    adapted = attach_lora(
        base, rank=2, alpha=4, scaling="standard", target_modules=["q_proj", "v_proj"], dropout=0.5, seed=0
    ).eval()
    for name, parameter in models.trainable(adapted).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    found = ours(adapted, tiny_tokenizer, PROMPTS)
    assert found == [Generated(read(tiny_tokenizer, ids), len(ids)) for ids in (theirs(adapted, p) for p in PROMPTS)]
    assert found != ours(model, tiny_tokenizer, PROMPTS)


def test_a_row_ends_at_any_eos_and_waits_for_the_others(model: Any, tiny_tokenizer: Any):
    whole = [theirs(model, prompt) for prompt in PROMPTS]
    ends = frozenset({whole[0][0], whole[2][4]})
    found = ours(model, tiny_tokenizer, PROMPTS, eos=ends)
    for row, ids in zip(found, whole, strict=True):
        place = next((index for index, token in enumerate(ids) if token in ends), len(ids))
        assert row == Generated(read(tiny_tokenizer, ids[:place]), min(place + 1, len(ids)))
    assert found[0] == Generated("", 1)
    assert max(row.new_tokens for row in found) == NEW


def test_without_an_eos_every_row_is_as_long_as_asked(model: Any, tiny_tokenizer: Any):
    assert [row.new_tokens for row in ours(model, tiny_tokenizer, PROMPTS, eos=frozenset())] == [NEW] * len(PROMPTS)


def test_the_text_ends_before_the_stop_text_even_where_it_spans_tokens(model: Any, tiny_tokenizer: Any):
    for prompt in PROMPTS:
        (whole,) = ours(model, tiny_tokenizer, [prompt])
        assert len(whole.text) >= 4
        for stop in (whole.text[1], whole.text[2:4]):
            (found,) = ours(model, tiny_tokenizer, [prompt], stop=stop)
            text = whole.text.partition(stop)[0]
            assert found == Generated(text, len(text) + len(stop))


def test_what_a_row_repeats_of_its_prompt_is_not_its_text_and_holds_no_stop(model: Any, tiny_tokenizer: Any):
    rows = [(prompt, whole) for prompt, whole in zip(PROMPTS, ours(model, tiny_tokenizer, PROMPTS), strict=True)]
    long = [(prompt, whole) for prompt, whole in rows if len(whole.text) > 3]
    assert len(long) > 1
    for prompt, whole in long:
        first, rest = whole.text[:2], whole.text[2:]
        assert ours(model, tiny_tokenizer, [prompt], repeated=[first])[0].text == rest
        (found,) = ours(model, tiny_tokenizer, [prompt], repeated=[first], stop=whole.text[1])
        assert found.text == rest.partition(whole.text[1])[0]
        assert ours(model, tiny_tokenizer, [prompt], repeated=["never written"]) == [whole]


def test_a_stop_text_that_does_not_come_changes_nothing(model: Any, tiny_tokenizer: Any):
    plain = ours(model, tiny_tokenizer, PROMPTS)
    assert ours(model, tiny_tokenizer, PROMPTS, stop="never written") == plain
    assert ours(model, tiny_tokenizer, PROMPTS, stop="") == plain


def test_what_the_generation_config_asks_for_is_ignored(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    expected = ours(model, tiny_tokenizer, PROMPTS)
    asked = {
        "repetition_penalty": 9.0,
        "do_sample": True,
        "temperature": 9.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": NEW,
        "forced_eos_token_id": 3,
        "bad_words_ids": [[theirs(model, PROMPTS[0])[0]]],
        "max_new_tokens": 1,
    }
    for name, value in asked.items():
        monkeypatch.setattr(model.generation_config, name, value, raising=False)
    assert ours(model, tiny_tokenizer, PROMPTS) == expected


def test_the_tokens_computed_are_the_prompts_columns_and_one_a_row_and_step(model: Any, tiny_tokenizer: Any):
    prompts, options = PROMPTS[:3], {"max_new_tokens": 4, "length": 10, "layout": "padded"}
    _, computed = generate(model, tiny_tokenizer, prompts, eos=frozenset(), **options)
    assert computed == 3 * 10 + 3 * 3
    first = frozenset(theirs(model, prompt)[0] for prompt in prompts)
    rows, computed = generate(model, tiny_tokenizer, prompts, eos=first, **options)
    assert ([row.new_tokens for row in rows], computed) == ([1, 1, 1], 3 * 10)
    options["layout"] = "packed"
    _, computed = generate(model, tiny_tokenizer, prompts, eos=frozenset(), **options)
    assert computed == sum(map(len, prompts)) + 3 * 3


def test_a_model_with_learned_positions_pads_the_same(tiny_tokenizer: Any):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=EOS
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        gpt2.transformer.wpe.weight.mul_(30)
    expected = [Generated(read(tiny_tokenizer, ids), len(ids)) for ids in (theirs(gpt2, p) for p in PROMPTS)]
    assert ours(gpt2, tiny_tokenizer, PROMPTS, length=20) == expected
