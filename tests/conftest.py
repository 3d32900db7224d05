"""A tiny model, a tiny tokenizer and small data, made once: real files that the real loaders read."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HOWLOW_TEST_DATA", ROOT.parent / "shared" / "data"))


# An example takes as long as the machine lets it: how long is asserted nowhere.
settings.register_profile("howlow", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("howlow")

_LONGEST = ("test_probe", "test_acceptance", "test_workers", "test_sweep", "test_nvml", "test_zoo", "test_cli")
"""Files that take a minute or more begin first, so that two processes end at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order within a file stays."""
    place = {name: index for index, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


os.environ.setdefault("HOWLOW_NODE", tempfile.mkdtemp(prefix="howlow-node-"))  # other tests' trials are no neighbours
_BEFORE_ALL = dict(os.environ)
_SET_BY_A_HEAP = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"} - _BEFORE_ALL.keys()
"""Fixtures of a whole session run before the environment of their first test is kept."""


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """A trial's heap sets variables for good; run within this process, it would set them for all tests after it."""
    before = _BEFORE_ALL if any(name in os.environ for name in _SET_BY_A_HEAP) else dict(os.environ)
    _restore(before)
    yield
    _restore(before)


def _restore(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower with two threads than with one, and much slower on a machine that is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it say so when it is missing."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}; set HOWLOW_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer: 256 bytes, then BOS and EOS; every text is its bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in for the NVML library."""
    from stand_ins import build_nvml

    return build_nvml(tmp_path_factory.mktemp("nvml"))


def tiny_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    shape = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    return LlamaConfig(**(shape | changes))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a random LLaMA of two layers, its weights and its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, **changes: Any) -> Any:
    """A folder's model as a trial loads it, in fp32 on the CPU unless told otherwise."""
    import torch

    from howlow.engine import model as models
    from howlow.engine.references import locate

    reference = locate(str(folder))
    options = {
        "random_weights": False,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "revision": None,
        "trust_remote_code": False,
    }
    return models.load_model(reference, models.load_config(reference, None, False), **(options | changes))


def search_that_found_nothing(probe: Any) -> Any:
    """The record of a search for the largest batch in which not even this probe of one example fitted."""
    from howlow.records import BatchSearch

    return BatchSearch(
        setting="training.batch_size",
        batch=None,
        largest=4,
        limit_bytes=100,
        budget_bytes=97,
        limit="run.memory_limit_bytes",
        memory="VmData",
        probes=(probe,),
    )


def squad_document(paragraphs: int, questions: int = 3, name: str = "p") -> dict[str, Any]:
    """SQuAD v1.1 JSON with made-up short paragraphs."""
    found = []
    for number in range(paragraphs):
        context = f"Box {name}{number} holds {number + 2} red balls and {number + 5} blue cubes in room {number * 3}."
        asked = [("How many balls?", f"{number + 2}"), ("How many cubes?", f"{number + 5}"), ("Where?", "room")]
        qas = [
            {
                "id": f"{name}{number}-{index}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for index, (question, answer) in enumerate(asked[:questions])
        ]
        found.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": name, "paragraphs": found}]}


@pytest.fixture(scope="session")
def tiny_squad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training and a test file in SQuAD's format."""
    folder = tmp_path_factory.mktemp("squad")
    train, test = folder / "train.json", folder / "test.json"
    train.write_text(json.dumps(squad_document(8, name="a")), encoding="utf-8")
    test.write_text(json.dumps(squad_document(4, name="b")), encoding="utf-8")
    return train, test


@pytest.fixture(scope="session")
def tiny_table(tiny_model: Path, tiny_squad: tuple[Path, Path]) -> dict[str, Any]:
    """Settings of a sweep that takes a second a trial."""
    train, test = map(str, tiny_squad)
    return {
        "model": str(tiny_model),
        "task": {"name": "question_answering", "train": train, "test": test},
        "training": {"sequence_length": 160, "batch_size": 4, "learning_rate": 1e-3},
        "inference": {"batch_size": 4, "max_new_tokens": 4},
        "grid": {"lora.rank": [1, 4]},
    }
