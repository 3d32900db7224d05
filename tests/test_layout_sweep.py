"""Layouts in whole trials: equal losses and answers, what they saved in the record, refusals and fall-backs."""

from pathlib import Path
from typing import Any

import pytest

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.records import read_lines
from howlow.settings import merge
from howlow.sweeping.sweep import dry_run, sweep

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
            assert record.resolved.layout == ("shared" if layout == "auto" else layout)
            assert record.settings.training.layout == layout
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
    assert record.resolved.layout == "padded"
    assert "layout_fell_back" in {warning.kind for warning in record.warnings}


@pytest.mark.parametrize("name", ["mamba", "mixtral"])
def test_models_that_fall_back_to_padded_finish_their_trials(
    name: str, tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
):
    """A state along the row kept under another name, and router losses that decoding must not compute."""
    import torch
    import transformers

    torch.manual_seed(0)
    few = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 256, "eos_token_id": 257}
    made = {
        "mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**few, state_size=4)),
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                **few,
                intermediate_size=40,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_local_experts=4,
                output_router_logits=True,
            )
        ),
    }[name]()
    made.save_pretrained(tmp_path / name)
    tiny_tokenizer.save_pretrained(tmp_path / name)
    changes = {
        "model": str(tmp_path / name),
        "lora": {"target_modules": ["in_proj" if name == "mamba" else "q_proj"]},
        "training": {"layout": "auto"},
        "grid": {"lora.rank": [2]},
        "baselines": [],
    }
    (record,) = sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "out").records
    assert record.status == "done", record.error
    assert record.resolved.layout == "padded"
    assert "layout_fell_back" in {warning.kind for warning in record.warnings}
    assert record.scores.f1 is not None


def test_generation_one_prompt_at_a_time_is_named_in_record_and_report(
    tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import howlow

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        bos_token_id=256,
        eos_token_id=257,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dynamic")
    tiny_tokenizer.save_pretrained(tmp_path / "dynamic")
    changes = {
        "model": str(tmp_path / "dynamic"),
        "training": {"layout": "shared"},
        "grid": {"lora.rank": [2]},
        "baselines": [],
    }
    (record,) = sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "out").records
    assert record.status == "done", record.error
    assert (record.resolved.layout, record.resolved.generation_layout) == ("shared", "single")
    assert record.layout.generate.computed_tokens < record.layout.generate.tokens  # the last ones are not read again
    (warning,) = (one for one in record.warnings if one.kind == "written_one_by_one")
    assert any("frequencies are those of a row of 160" in one.detail for one in record.warnings)
    assert "one prompt at a time: the model's rotary frequencies depend on a batch's longest row" in warning.detail
    assert howlow.load(tmp_path / "out").trials[0].row["layout"] == "shared, generation single"


@pytest.mark.parametrize("kind", ["roberta", "llama"])
def test_a_model_that_is_not_causal_is_refused_before_the_first_trial(
    kind: str, tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
):
    """In a dry run, too."""
    import transformers
    from conftest import tiny_config

    shape = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = {
        "roberta": lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**shape, intermediate_size=40)),
        "llama": lambda: transformers.LlamaForCausalLM(tiny_config(is_causal=False)),
    }[kind]()
    made.save_pretrained(tmp_path / kind)
    tiny_tokenizer.save_pretrained(tmp_path / kind)
    targets = ["query" if kind == "roberta" else "q_proj"]
    table = merge(tiny_table, {"model": str(tmp_path / kind), "lora": {"target_modules": targets}})
    for run in (dry_run, sweep):
        with pytest.raises(UserError, match=rf"model .*{kind}: it is not causal: a later token changes") as caught:
            run(load(None, [table]), tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "sweep.toml").exists()


def test_the_state_of_a_mamba_writes_what_it_writes_alone(
    tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
):
    """And a target that PEFT refuses is told before the first trial."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    few = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 256, "eos_token_id": 257}
    made = MambaForCausalLM(MambaConfig(**few, state_size=4)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    made.save_pretrained(tmp_path / "mamba")
    tiny_tokenizer.save_pretrained(tmp_path / "mamba")
    changes = {"model": str(tmp_path / "mamba"), "grid": {"lora.rank": [2]}, "baselines": ["base"]}
    table = merge(tiny_table, changes)
    with pytest.raises(UserError, match=r"no adapter can be put into out_proj .*incompatible with Mamba"):
        dry_run(load(None, [merge(table, {"lora": {"target_modules": ["out_proj"]}})]))
    result = sweep(load(None, [merge(table, {"lora": {"target_modules": ["in_proj"]}})]), tmp_path / "out")
    record = next(record for record in result.records if record.kind == "base")
    assert (record.status, record.resolved.generation_layout) == ("done", "padded"), record.error
    for line in read_lines(tmp_path / "out" / "trials" / record.trial / "predictions.jsonl"):
        ids = tiny_tokenizer(line["prompt"], return_tensors="pt", add_special_tokens=False)
        written = made.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert line["generated"] == tiny_tokenizer.decode(written, skip_special_tokens=True).partition("\n")[0]


def test_a_changed_model_is_refused_and_its_layout_is_not_taken_over(
    tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path
):
    import json
    import shutil

    shutil.copytree(tiny_model, tmp_path / "model")
    table = merge(tiny_table, {"model": str(tmp_path / "model"), "grid": {"lora.rank": [1]}, "baselines": []})
    sweep(load(None, [table]), tmp_path / "out")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.5}))
    more = load(None, [merge(table, {"grid": {"lora.rank": [1, 2]}})])
    with pytest.raises(UserError, match=r"the model has changed since r0001-s0 was measured: data\.model_sha256"):
        sweep(more, tmp_path / "out")
    (record,) = sweep(load(None, [table]), tmp_path / "other").records
    assert record.resolved.layout == "packed"


def test_a_head_that_the_model_cannot_have_is_refused_before_the_first_trial(
    tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
):
    import transformers

    config = transformers.Llama4TextConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=40,
        intermediate_size_mlp=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        bos_token_id=256,
        eos_token_id=257,
    )
    transformers.Llama4ForCausalLM(config).save_pretrained(tmp_path / "llama4")
    tiny_tokenizer.save_pretrained(tmp_path / "llama4")
    table = merge(tiny_table, {"model": str(tmp_path / "llama4"), "training": {"layout": "auto"}})
    with pytest.raises(
        UserError, match=r'training\.head = "targets": .*llama4 does not name its decoder; set it to "all"'
    ):
        sweep(load(None, [table]), tmp_path / "out")
    assert not (tmp_path / "out" / "sweep.toml").exists()
