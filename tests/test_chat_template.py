"""Chat templates, in the styles of current models: what stands in the prompt and the completion, or one line.

The law: prompt and completion, end to end, begin the conversation that the template itself writes for a user's and an
assistant's turn with these texts; the prompt holds the user's text, and the completion the assistant's.
"""

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from howlow.engine import chat_template
from howlow.engine.chat_template import changed_prompt, in_chat_template, turn_end
from howlow.engine.tokens import tokenize
from howlow.errors import UserError
from howlow.tasks import Example

SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "<end_of_turn>")


def turns(before: str, after: str, content: str = "m.content", opens: str = "", start: str = "") -> str:
    """A template whose turns all look alike."""
    loop = f"{{% for m in messages %}}{before}{{{{ {content} }}}}{after}{{% endfor %}}"
    return f"{start}{loop}{{% if add_generation_prompt %}}{opens}{{% endif %}}"


CHATML = turns("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", opens="<|im_start|>assistant\n{# #}")
LLAMA3 = turns(
    "<|start|>{{ m.role }}<|stop|>\n\n{# #}",
    "<|end|>",
    "m.content | trim",
    opens="<|start|>assistant<|stop|>\n\n{# #}",
    start="{{ bos_token }}{% set today = strftime_now('%d %b %Y') %}Today: {{ today }}\n",
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% set content = '<<SYS>>\nBe brief.\n<</SYS>>\n\n' + m.content if loop.first"
    " else m.content %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set answer = m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ answer }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
QWEN3_THINKING = QWEN3.replace("{% if enable_thinking is defined and not enable_thinking %}", "{% if true %}").replace(
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}", "{{ '<think>\n' }}{% endif %}{% endif %}"
)
QWQ = QWEN3_THINKING.replace("{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}", "")
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}{% set content = m.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
THINKER = turns("<|{{ m.role }}|>", "<|end|>", opens="<|assistant|><think>\n{# #}")
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FIRST_PART = turns("<|{{ m.role }}|>", "<|end|>", "m.content[0].text.strip()", opens="<|assistant|>")
EITHER = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_OPENING = turns("<|im_start|>{{ m.role }}\n", "<|im_end|>\n")
ONE_QUESTION = (
    "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    "Instruction: {{ messages[0].content }}\nResponse:"
)
HARMONY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{{ '<|im_end|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)

GOOD = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "llama2": LLAMA2,
    "phi": PHI,
    "qwen3": QWEN3,
    "qwen3 thinking": QWEN3_THINKING,
    "qwq": QWQ,
    "r1": R1,
    "thinker": THINKER,
    "parts": PARTS,
    "first part": FIRST_PART,
    "either": EITHER,
    "no opening": NO_OPENING,
    "harmony": HARMONY,
}
TAKES_PARTS = ("parts", "first part")


def with_template(template: str | dict[str, str] | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    found.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    found.chat_template = template
    return found


TOKENIZERS = {name: with_template(template) for name, template in GOOD.items()}
TEXT = st.text("ab \n\"'{%<é漢", max_size=12)
ANSWER = st.text('xy \n"é', max_size=8).filter(lambda text: bool(text.strip()))


def example(prompt: str = "Why?", completion: str = "So.", before: str = "", context: str = "") -> Example:
    return Example("one", "group", before, context, prompt, completion)


def conversation(name: str, prompt: str, completion: str | None = None) -> str:
    """What transformers renders, on the day and with the thoughts that prompts are rendered with."""

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if name in TAKES_PARTS else text

    messages = [{"role": "user", "content": content(prompt)}]
    if completion is not None:
        messages.append({"role": "assistant", "content": content(completion)})
    template = GOOD[name].replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    text: str = TOKENIZERS[name].apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=completion is None,
        enable_thinking=False,
    )
    return text


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=25)
@given(before=TEXT, context=TEXT, after=TEXT, completion=ANSWER)
def test_prompt_and_completion_begin_the_templates_own_conversation(
    name: str, before: str, context: str, after: str, completion: str
):
    whole = example(after, completion, before, context)
    assume(whole.prompt.strip())
    found = in_chat_template(TOKENIZERS[name], whole, chat=True)
    text = conversation(name, whole.prompt, completion)
    assert text.startswith(found.prompt + found.completion)
    assert whole.prompt.strip() in found.prompt
    assert found.completion.strip() == completion.strip()
    assert found.context in context
    opened = conversation(name, whole.prompt)
    assert opened.startswith(found.prompt) or found.prompt.startswith(opened)  # the generation prompt follows
    assert (found.id, found.group, found.references) == (whole.id, whole.group, whole.references)


@pytest.mark.parametrize(
    ("name", "prompt", "completion"),
    [
        ("chatml", "<|im_start|>user\n Why?\n<|im_end|>\n<|im_start|>assistant\n", " So."),
        ("llama3", "<s>Today: 26 Jul 2024\n<|start|>user<|stop|>\n\nWhy?<|end|><|start|>assistant<|stop|>\n\n", "So."),
        ("gemma", "<s><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n", "So."),
        ("mistral", "<s>[INST]  Why?\n [/INST]", "  So."),
        ("llama2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Why? [/INST]", " So. "),
        ("phi", "<|user|> Why?\n<|end|><|assistant|>", " So."),
        ("qwen3", "<|im_start|>user\n Why?\n<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", " So."),
        ("thinker", "<|user|> Why?\n<|end|><|assistant|>", " So."),
        ("parts", "<|user|> Why?\n<|end|><|assistant|>", " So."),
        ("first part", "<|user|>Why?<|end|><|assistant|>", "So."),
        ("no opening", "<|im_start|>user\n Why?\n<|im_end|>\n<|im_start|>assistant\n", " So."),
        (
            "harmony",
            "<|im_start|>user<|message|> Why?\n<|end|><|im_start|>assistant<|channel|>final<|message|>",
            " So.",
        ),
    ],
)
def test_turns_by_hand(name: str, prompt: str, completion: str):
    found = in_chat_template(TOKENIZERS[name], example(" Why?\n", " So."), chat=True)
    assert (found.prompt, found.completion) == (prompt, completion)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|end|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("llama2", "</s>"),
        ("phi", "<|end|>"),
        ("harmony", "<|im_end|>"),
    ],
)
def test_a_completion_ends_as_the_assistants_turn_does(name: str, end: str):
    tokenizer = TOKENIZERS[name]
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    completion = tokenize(tokenizer, example(), chat=True).completion
    between = " " if name == "llama2" else ""  # what the template writes behind the answer is a target, too
    assert tokenizer.decode(completion).strip() == f"So.{between}{end}"


def test_a_turn_without_a_special_end_ends_with_eos():
    tokenizer = with_template(
        "User: {{ messages[0].content }}\nBot:{% for m in messages[1:] %} {{ m.content }}\n{% endfor %}"
    )
    assert turn_end(tokenizer) is None
    assert tokenize(tokenizer, example(), chat=True).completion[-1] == tokenizer.eos_token_id


def own_generation_prompt(name: str) -> str:
    """What a template without any option writes behind the user's text."""
    content: Any = [{"type": "text", "text": "Why?"}] if name in TAKES_PARTS else "Why?"
    text: str = TOKENIZERS[name].apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text.partition("Why?")[2]


@pytest.mark.parametrize("name", GOOD)
def test_a_prompt_ends_with_the_generation_prompt_or_both_are_shown(name: str):
    prompt = in_chat_template(TOKENIZERS[name], example(), chat=True).prompt
    own, told = own_generation_prompt(name), changed_prompt(TOKENIZERS[name])
    end = prompt.partition("Why?")[2]
    assert (told is None) == (end == own)
    if told is not None:
        assert f"generation prompt is {own!r}; prompts end with {end!r}" in told


@pytest.mark.parametrize(
    ("name", "own", "end"),
    [
        ("qwen3", "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("qwq", "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n"),
        (
            "qwen3 thinking",
            "<|im_start|>assistant\n<think>\n",
            "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        ("r1", "<｜Assistant｜><think>\n", "<｜Assistant｜>"),
        ("thinker", "<|assistant|><think>\n", "<|assistant|>"),
        ("harmony", "<|im_start|>assistant", "<|im_start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_prompts_of_models_that_think_end_as_the_answers_turn_begins(name: str, own: str, end: str):
    found, told = in_chat_template(TOKENIZERS[name], example(), chat=True), changed_prompt(TOKENIZERS[name])
    assert own_generation_prompt(name).endswith(own)
    assert found.prompt.endswith(end)
    assert told is not None
    assert told.startswith("the chat template's generation prompt is ")
    assert "\n" not in told


def test_another_beginning_without_thoughts_is_told():
    """SmolLM3's system turn says whether to think."""
    system = "<|system|>{{ '/no_think' if enable_thinking is false else '/think' }}<|end|>"
    tokenizer = with_template(turns("<|{{ m.role }}|>", "<|end|>", opens="<|assistant|>", start=system))
    assert changed_prompt(tokenizer) == "the chat template writes another beginning with enable_thinking = false"


def test_a_template_for_one_question_alone_gives_the_prompt():
    tokenizer = with_template(ONE_QUESTION)
    found = in_chat_template(tokenizer, example(), chat=True)
    assert (found.prompt, found.completion) == ("Instruction: Why?\nResponse:", "So.")
    assert turn_end(tokenizer) is None


def test_without_chat_an_example_stays_as_it_is():
    whole = example()
    assert in_chat_template(with_template(None), whole, chat=False) is whole


# -- escaped texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["m.content | tojson", "m.content | trim | tojson"])
@settings(max_examples=50)
@given(before=TEXT, context=TEXT, after=TEXT)
def test_a_prompt_that_the_template_escapes_is_escaped_piece_by_piece(
    content: str, before: str, context: str, after: str
):
    tokenizer = ESCAPING[content]
    whole = example(after, "So.", before, context)
    found = in_chat_template(tokenizer, whole, chat=True)
    text = whole.prompt.strip() if "trim" in content else whole.prompt
    assert found.prompt == f'<|user|>{json.dumps(text, ensure_ascii=False)}<|end|><|assistant|>"'
    assert found.completion == 'So."', "the quote behind the answer is the template's, and a target"


ESCAPING = {
    content: with_template(turns("<|{{ m.role }}|>", "<|end|>", content, opens="<|assistant|>"))
    for content in ("m.content | tojson", "m.content | trim | tojson")
}


def test_a_completion_that_the_template_escapes_is_refused():
    with pytest.raises(UserError, match="changes the completion of example 'one'"):
        in_chat_template(ESCAPING["m.content | tojson"], example(completion='a "b"'), chat=True)


# -- one line -------------------------------------------------------------------------------------------------------

ROLES = "<|{{ m.role }}|>"
BAD: dict[str, tuple[str, str]] = {
    "content printed twice": (
        turns(ROLES, "<|end|>{{ m.content }}", opens="<|assistant|>"),
        "writes the prompt 2 times",
    ),
    "answer printed twice": (
        turns(ROLES, "{{ m.content if m.role == 'assistant' }}<|end|>", opens="<|assistant|>"),
        "writes the completion 2 times",
    ),
    "content not printed": (turns(ROLES, "", "'Hello'", opens="<|assistant|>"), "does not write the prompt"),
    "content shortened": (turns(ROLES, "", "m.content[:3]", opens="<|assistant|>"), "does not write the prompt"),
    "content in capitals": (turns(ROLES, "", "m.content | upper", opens="<|assistant|>"), "does not write the prompt"),
    "content reworded": (
        turns(ROLES, "<|end|>", "m.content | replace('?', '!')", opens="<|assistant|>"),
        "changes the prompt of example 'one'",
    ),
    "answer reworded": (
        turns(ROLES, "<|end|>", "m.content | replace('So', 'Thus')", opens="<|assistant|>"),
        "changes the completion of example 'one'",
    ),
    "no turn begins": ("{{ messages[0].content }}", "writes nothing between the prompt and the answer"),
    "another generation prompt": (
        turns(ROLES, "<|end|>", opens="<|bot|>"),
        "has the generation prompt '<|end|><|bot|>', but begins the assistant's turn with '<|end|><|assistant|>'",
    ),
    "a system turn is taken for granted": (
        "<|system|>{{ messages[0].content }}<|end|>"
        "{% for m in messages[1:] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "writes the prompt into another turn than the user's, whose header is '<|user|>'",
    ),
    "a system turn is asked for": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn must come first') }}{% endif %}",
        "cannot be rendered: a system turn must come first",
    ),
    "an error in several lines": (
        "{{ raise_exception('first\nsecond') }}",
        "cannot be rendered: first second",
    ),
    "an unknown name": ("{{ nothing.at.all }}", "cannot be rendered: 'nothing' is undefined"),
    "not a template": ("{% for m in messages %}{{ m.content }", "cannot be rendered: "),
    "an unknown tag": ("{% turn %}", "cannot be rendered: Encountered unknown tag 'turn'."),
    "numbers": ("{{ 1 / 0 }}", "cannot be rendered: division by zero"),
    "types": ("{{ 'a' + 1 }}", "cannot be rendered: can only concatenate str"),
    "without end": (
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "cannot be rendered: maximum recursion depth exceeded",
    ),
    "hands off": ("{{ ''.__class__.__mro__ }}", "cannot be rendered: access to attribute '__class__'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(name: str):
    template, problem = BAD[name]
    with pytest.raises(UserError) as caught:
        in_chat_template(with_template(template), example(), chat=True)
    message = str(caught.value)
    assert message.startswith('task.template = "chat": the tokenizer\'s chat template ' + problem)
    assert message.endswith("give the prompt's own text as task.template, or leave it out")
    assert "\n" not in message


def test_a_completion_with_thoughts_that_the_template_takes_away_is_refused():
    with pytest.raises(UserError, match="changes the completion of example 'one'"):
        in_chat_template(TOKENIZERS["qwen3"], example(completion="<think>hm</think>So."), chat=True)


def test_several_templates_without_a_default_are_refused():
    tokenizer = with_template({"rag": CHATML, "tool_use": CHATML})
    with pytest.raises(UserError, match="cannot be chosen: ") as caught:
        in_chat_template(tokenizer, example(), chat=True)
    assert "\n" not in str(caught.value)
    tokenizer.chat_template = {"default": CHATML, "tool_use": LLAMA3}
    assert in_chat_template(tokenizer, example(), chat=True).before == "<|im_start|>user\n"


# -- dates ----------------------------------------------------------------------------------------------------------


def test_a_date_is_the_same_on_every_day_in_every_format():
    template = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%B %d\") }}\n" + CHATML
    found = in_chat_template(with_template(template), example(), chat=True)
    assert found.before == "2024-07-26 July 26\n<|im_start|>user\n"


def test_a_date_in_a_format_that_the_template_makes_up_is_todays():
    template = "{% set form = '%Y' %}{{ strftime_now(form) }} {{ strftime_now('%Y') }}\n" + CHATML
    years = {str(datetime.now().year), str(datetime.now().year - 1)}
    found = in_chat_template(with_template(template), example(), chat=True)
    assert found.before.split()[0] in years


def test_a_template_is_probed_once(monkeypatch: pytest.MonkeyPatch):
    tokenizer, rendered = with_template(CHATML), []
    plain = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **o: rendered.append(1) or plain(*a, **o))
    chat_template._frame.cache_clear()
    in_chat_template(tokenizer, example(), chat=True)
    first = len(rendered)
    in_chat_template(tokenizer, example(), chat=True)
    assert len(rendered) - first == 2 < first
