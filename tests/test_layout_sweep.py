"""Layouts in whole trials: equal losses and answers, what they saved in the record, refusals and fall-backs."""

from pathlib import Path
from typing import Any

import pytest

from howlow.errors import UserError
from howlow.records import read_lines
from howlow.settings import load, merge
from howlow.sweep import sweep

pytestmark = pytest.mark.slow


def test_a_sweep_over_layouts_has_equal_losses_and_answers(tiny_table: dict[str, Any], tmp_path: Path):
    layouts = ["padded", "packed", "shared", "auto"]
    changes = {"grid": {"lora.rank": [4], "training.layout": layouts}, "baselines": ["base"]}
    result = sweep(load(None, [merge(tiny_table, changes)]), tmp_path)
    assert not result.failed
    found = {}
    for record in result.records:
        folder = tmp_path / "trials" / record.trial
        losses = [line["loss"] for line in read_lines(folder / "steps.jsonl") if "loss" in line]
        answers = [line["generated"] for line in read_lines(folder / "predictions.jsonl")]
        found[record.kind, record.axes["training.layout"]] = record, losses, answers
    for kind in ("base", "lora"):
        _, losses, answers = found[kind, "padded"]
        for layout in layouts[1:]:
            record, others, theirs = found[kind, layout]
            assert others == pytest.approx(losses, rel=1e-5)
            assert theirs == answers
            assert record.layout.layout == ("shared" if layout == "auto" else layout)
            assert record.settings.training.layout == record.layout.layout
    saved = {layout: found["lora", layout][0].layout.train for layout in layouts}
    assert saved["padded"].saved_share == 0
    assert saved["padded"].padding_share > 0.2
    assert 0 < saved["packed"].saved_share < saved["shared"].saved_share
    assert saved["packed"].computed_tokens == saved["packed"].tokens == saved["shared"].tokens


def bloom(folder: Path, tokenizer: Any) -> Path:
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=264, hidden_size=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=257)
    BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_cannot_take_a_layout(tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path):
    changes = {
        "model": str(bloom(tmp_path / "bloom", tiny_tokenizer)),
        "lora": {"target_modules": ["query_key_value"]},
        "grid": {"lora.rank": [2]},
        "baselines": [],
    }
    table = merge(tiny_table, changes)
    with pytest.raises(UserError, match=r'training\.layout = "shared": .*takes no positions.*use auto or padded'):
        sweep(load(None, [merge(table, {"training": {"layout": "shared"}})]), tmp_path / "named")
    assert not (tmp_path / "named" / "sweep.toml").exists()
    (record,) = sweep(load(None, [table]), tmp_path / "auto").records
    assert record.status == "done", record.error
    assert record.layout.layout == "padded"
    assert "layout_fell_back" in {warning.kind for warning in record.warnings}
