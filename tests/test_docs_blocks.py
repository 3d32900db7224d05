"""Every command and every block of Python in the documents is run, on a tiny model and small data."""

import json
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config
from doc_blocks import ROOT, RUN, SHOWN, Pages, documents, is_plain, joined_lines, parsed

import howlow
from howlow.settings import to_toml

_FENCES = re.compile(r"^ *(```+)(\S*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """A folder with the files that the pages name, and what runs pages there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("docs"))
        write_model(Path("my-model"))
        write_data()
        yield Pages()


def write_data() -> None:
    """The demo's questions and settings, their paragraphs as text, and answers to the test."""
    settings = howlow.load_settings("demo", [{"model": "my-model", "grid": {"lora.rank": [1, 4]}}])
    Path("settings.toml").write_text(to_toml(settings), encoding="utf-8")
    for name, part in (("train.json", "demo-train.json"), ("dev.json", "demo-test.json")):
        with resources.as_file(resources.files("howlow") / "presets" / part) as path:
            shutil.copy(path, name)
    Path("corpus").mkdir()
    Path("corpus", "paragraphs.txt").write_text("\n".join(texts_of("train.json")), encoding="utf-8")
    Path("held-out.txt").write_text("\n".join(texts_of("dev.json")), encoding="utf-8")
    questions = [question["id"] for paragraph in paragraphs("dev.json") for question in paragraph["qas"]]
    Path("answers.json").write_text(json.dumps(dict.fromkeys(questions, "the Moon")), encoding="utf-8")


def paragraphs(name: str) -> list[dict[str, Any]]:
    articles = json.loads(Path(name).read_text(encoding="utf-8"))["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def texts_of(name: str) -> list[str]:
    return [paragraph["context"] for paragraph in paragraphs(name)]


def write_model(folder: Path) -> None:
    """A random LLaMA of two layers, with a tokenizer of as many words as the demo's texts need."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_of, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    presets = resources.files("howlow") / "presets"
    tokenizer.train_from_iterator([(presets / "demo-train.json").read_text(encoding="utf-8")], trainer)
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(vocab_size=1000, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_blocks_of_a_page_run(page: Path, pages: Pages) -> None:
    pages.run(page)


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = [(language, body) for _, language, body in _FENCES.findall(text)]
    assert {language for language, _ in fences} <= RUN | SHOWN
    assert not [body for language, body in fences if language == "text" and body.lstrip().startswith(("$", "howlow "))]
    found = [example for example in parsed(page).examples() if not isinstance(example.parsed, tuple)]
    assert len(found) == len([language for language, _ in fences if language in RUN])


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why(page: Path) -> None:
    for example in parsed(page).examples():
        if isinstance(example.parsed, tuple):
            action, reason = example.parsed
            assert action == "next"
            assert re.fullmatch(r'"[^"]{15,}"', reason or ""), f"{page.name}:{example.line}"


def test_comments_of_the_tests_are_read() -> None:
    for page in documents():
        for comment in re.findall(r"<!--.*?-->", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            assert re.fullmatch(r"<!-- (skip: next|tested with:|tested after:) .+ -->", comment), f"{page}: {comment}"


def test_lines_of_a_block_are_joined_and_lose_their_comments() -> None:
    assert joined_lines("howlow env    # what can be measured\n\nhowlow report a \\\n  b\n") == [
        "howlow env",
        "howlow report a    b",
    ]
    assert is_plain("""howlow sweep --set 'grid."seed"=[0,1]' --out runs/a""")
    assert not is_plain("howlow report runs/a | head -1")
    assert not is_plain("make demo")
