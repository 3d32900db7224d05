"""Inference measured with the adapter merged: scores stay the attached adapter's, and the agreement is recorded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from howlow import load_settings as load
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora, merge_adapter
from howlow.records import read_lines
from howlow.reporting import write_report
from howlow.settings import merge
from howlow.sweeping.sweep import sweep


def records(table: dict[str, Any], out: Path, **inference: Any) -> dict[str, Any]:
    changes = {"grid": {"lora.rank": [4]}, "baselines": ["base"], "inference": {"batch_size": 5, **inference}}
    result = sweep(load(None, [merge(table, changes)]), out)
    assert not result.failed
    return {record.kind: record for record in result.records}


@pytest.mark.slow
def test_scores_are_those_of_the_attached_adapter(tiny_table: dict[str, Any], tmp_path: Path):
    attached = records(tiny_table, tmp_path / "attached")
    merged = records(tiny_table, tmp_path / "merged", adapter="merged")
    assert merged["lora"].scores == attached["lora"].scores
    assert merged["base"].merged is None
    agreement = merged["lora"].merged
    assert agreement.texts == merged["lora"].data.test_examples
    assert agreement.equal_texts == agreement.texts
    assert agreement.loss == pytest.approx(merged["lora"].scores.loss, rel=1e-4)
    lines = list(read_lines(tmp_path / "merged" / "trials" / "r0004-s0" / "predictions.jsonl"))
    assert all({"generated", "merged_generated", "scores"} <= set(line) for line in lines)
    text = write_report([tmp_path / "merged"]).table_text(200)
    assert f"inference measured merged; {agreement.texts} of {agreement.texts} texts" in text
    assert {phase.phase for phase in merged["lora"].phases} == {"load", "train", "evaluate", "generate"}


def test_the_sum_is_made_in_fp32_and_the_loaded_weights_stay(tiny_model: Path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = attach_lora(base, rank=2, alpha=4, scaling="standard", target_modules=["q_proj"], dropout=0.0, seed=0)
    for name, parameter in models.trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    loaded = layer.base_layer.weight
    expected = loaded.float() + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    found = merge_adapter(model)
    assert torch.equal(found.model.layers[0].self_attn.q_proj.weight, expected.to(torch.bfloat16))
    assert torch.equal(loaded, before["model.layers.0.self_attn.q_proj.weight"])
    assert torch.equal(found.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
