"""Which parts of a model a text reaches: adapters and full fine-tuning stay within them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from conftest import loaded

from howlow import load_settings as load
from howlow.engine import model as models
from howlow.engine.adapter import adapters_of, attach_lora, matched_layers, merge_adapter, refuse_unadaptable
from howlow.engine.alone import ids_of, truth_of
from howlow.engine.execution import decide
from howlow.engine.kinds import refuse_other_kind
from howlow.errors import UserError
from howlow.records import WarningKind
from howlow.settings import merge
from howlow.sweeping.sweep import dry_run, sweep

pytestmark = pytest.mark.usefixtures("one_thread")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def structure(kind: str) -> models.Structure:
    return models.structure(zoo.config_of(kind), False)


def test_the_tower_of_a_multimodal_model_is_out_of_reach():
    found = structure("gemma3")
    assert found.unreached_layers
    assert all("vision" in name or "projector" in name for name in found.unreached_layers)
    assert all("language_model" in name for name in found.linear_shapes)
    assert "model.multi_modal_projector.mm_input_projection_weight" in found.unreached_parameters


def test_a_text_model_is_reached_as_a_whole(tiny_model: Path):
    base = loaded(tiny_model)
    found = models.structure(base.config, False)
    assert (found.unreached_layers, found.unreached_parameters) == (frozenset(), frozenset())
    assert found.linear_shapes == models.linear_shapes(base)


@pytest.mark.parametrize(
    ("kind", "end"),
    [("bart", "encoder_attn.q_proj"), ("mamba", "mixer.dt_proj"), ("got_ocr2", "multimodal_projector")],
)
def test_layers_that_do_not_run_are_left_out(kind: str, end: str):
    """Attention to an encoder that is not there, a layer whose weight is taken without running it, a projector."""
    found = structure(kind)
    assert any(name.endswith(f".{end}") for name in found.unreached_layers)
    assert not any(name.endswith(f".{end}") for name in found.linear_shapes)


def test_a_config_that_cannot_be_without_a_padding_token_keeps_it():
    assert structure("emu3").linear_shapes
    assert zoo.config_of("emu3").get_text_config().pad_token_id == 0


@pytest.mark.parametrize("kind", ["mixtral", "llama4_text", "jamba", "gpt2"])
def test_experts_that_no_token_has_chosen_are_reached(kind: str):
    assert not [name for name in structure(kind).unreached_layers if "expert" in name]


def test_an_adapter_is_put_only_where_a_text_arrives():
    found = structure("gemma3")
    model = zoo.build("gemma3")
    options: dict[str, Any] = {"rank": 2, "alpha": 4.0, "scaling": "standard", "dropout": 0.0, "seed": 0}
    adapted = attach_lora(model, target_modules=ATTENTION, unreached_layers=found.unreached_layers, **options)
    matched = matched_layers(found.linear_shapes, ATTENTION, found.unreached_layers)
    names = models.trainable(adapted)
    assert len(names) == 2 * len(matched)
    assert not any("vision" in name for name in names)


def test_a_target_that_no_text_reaches_is_refused_in_one_line():
    found = structure("gemma3")
    with pytest.raises(
        UserError, match=r"'fc1' matched only layers in which no text could train an adapter \("
    ) as said:
        matched_layers(found.linear_shapes, ["fc1"], found.unreached_layers)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("kind", "layer", "why"),
    [
        ("mamba", "backbone.layers.0.mixer.out_proj", "incompatible with Mamba"),
        ("deepseek_v4", "model.layers.0.self_attn.o_a_proj", "o_a_proj of this model"),
    ],
)
def test_an_adapter_that_cannot_run_is_refused_before_anything_is_loaded(kind: str, layer: str, why: str):
    """By PEFT itself, and by the model's own code once the adapter is there."""
    with pytest.raises(UserError, match=why) as said:
        refuse_unadaptable(zoo.config_of(kind), False, [layer])
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("config", ["T5Config", "Qwen2VLConfig", "CLIPConfig"])
def test_what_is_no_causal_language_model_is_told_in_one_line(config: str):
    import transformers

    with pytest.raises(UserError, match=rf"^model m: {config} .* a causal language model is needed") as said:
        refuse_other_kind("m", getattr(transformers, config)())
    assert len(str(said.value)) < 300


PROJECTIONS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", PROJECTIONS),
        ("gemma3", ATTENTION),
        ("gpt2", ("c_attn", "c_proj")),
        ("bart", ("q_proj",)),
        ("mixtral", (*ATTENTION, "gate")),
        ("qwen2_moe", PROJECTIONS),
        ("qwen3_moe", ATTENTION),
        ("deepseek_v3", ("kv_a_proj_with_mqa", "gate_proj", "up_proj", "down_proj")),
        ("afmoe", ("gate",)),
    ],
)
def test_a_dry_run_tells_as_many_parameters_as_a_trial_trains(kind: str, targets: tuple[str, ...]):
    """PEFT puts the adapter of some models into fused experts, wherever the targets' own layers are."""
    found, rank = structure(kind), 3
    options: dict[str, Any] = {"alpha": 6.0, "scaling": "standard", "dropout": 0.0, "seed": 0}
    options |= {"target_modules": targets, "unreached_layers": found.unreached_layers}
    adapted = attach_lora(zoo.build(kind), rank=rank, **options)
    trained = sum(parameter.numel() for parameter in models.trainable(adapted).values())
    told = refuse_unadaptable(zoo.config_of(kind), False, targets, found.unreached_layers)
    assert rank * told == trained


def test_a_routers_adapter_trains_in_the_fused_form():
    """PEFT adds the adapter to the router's weight while the model runs, so the weight is not frozen then."""
    from executions import on_cpu

    model = zoo.adapted("afmoe", ["model.layers.1.mlp.router.gate"])
    ids = torch.arange(5, 11)[None]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids).logits.log_softmax(-1)[0, :, 7].sum().backward()
        return zoo.gradients_of(model)

    expected = gradients()
    with on_cpu(model, attention="own"):
        found = gradients()
    for name, gradient in expected.items():
        assert gradient.any()
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("deepseek_v3", ("gate_proj", "up_proj", "down_proj")), ("mixtral", ("w1", "w2", "w3", "gate"))],
)
def test_an_adapter_in_fused_experts_is_merged(kind: str, targets: tuple[str, ...]):
    options: dict[str, Any] = {"rank": 2, "alpha": 4.0, "scaling": "standard", "dropout": 0.0, "seed": 0}
    ids = torch.arange(5, 15)[None]
    plain = zoo.build(kind)(input_ids=ids).logits
    adapted = attach_lora(zoo.build(kind), target_modules=targets, **options)
    for parameter in models.trainable(adapted).values():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        attached = adapted(input_ids=ids).logits
        merged = merge_adapter(adapted)(input_ids=ids).logits
    assert float((attached - plain).abs().max()) > 0.01
    torch.testing.assert_close(merged, attached, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gemma_in_its_multimodal_wrapper_trains_its_text_model(
    tiny_table: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
):
    import transformers

    config = zoo.config_of("gemma3")
    config.text_config.vocab_size = 264
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "gemma")
    tiny_tokenizer.save_pretrained(tmp_path / "gemma")
    changes = {
        "model": str(tmp_path / "gemma"),
        "grid": {"lora.rank": [2], "training.head": ["targets", "all"]},
        "baselines": ["full"],
    }
    result = sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "out")
    found = models.structure(config, False)
    matched = matched_layers(found.linear_shapes, ATTENTION, found.unreached_layers)
    for record in result.records:
        assert record.status == "done", record.error
        kinds = {warning.kind for warning in record.warnings}
        if record.kind == "lora":
            assert record.model.trainable_parameters == 2 * sum(sum(found.linear_shapes[name]) for name in matched)
            assert "layers_left_out" in kinds
        else:
            assert record.model.trainable_parameters < record.model.total_parameters
            assert "layers_left_out" not in kinds
    losses = {record.axes["training.head"]: record.scores.loss for record in result.records if record.kind == "lora"}
    assert losses["targets"] == pytest.approx(losses["all"], rel=1e-5)


# -- what a loss depends on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["longcat_flash", "glm_moe_dsa", "doge", "mixtral", "mamba", "gpt2", "gemma3"])
def test_the_layers_without_influence_are_those_whose_adapters_get_no_gradient(kind: str):
    """Held against transformers and PEFT alone; experts that no token has chosen are not told as idle."""
    base, examples = zoo.build(kind), zoo.texts()
    execution = decide(device=torch.device("cpu"), precision="fp32", attention="own", full_row=zoo.WIDTH)
    found = set(truth_of(base, examples, execution).idle_layers)
    layers = zoo._adaptable(kind, list(models.linear_shapes(base)))
    model = zoo.adapted(kind, layers)
    for example in examples:
        logits = model(input_ids=torch.tensor([ids_of(example)]), use_cache=False).logits
        logits.logsumexp(-1).sum().backward()
    given = {name: parameter.grad for name, parameter in models.trainable(model).items()}
    without = {name for name in adapters_of(model) if all(given[part] is None for part in parts_of(name, given))}
    assert {name for name in found & set(layers) if "expert" not in name} == {
        name for name in without if "expert" not in name
    }
    assert not [name for name in found if "expert" in name and "shared" not in name]
    assert bool(found) == (kind in ("longcat_flash", "glm_moe_dsa", "mamba", "gemma3"))


def parts_of(layer: str, parameters: dict[str, Any]) -> list[str]:
    return [name for name in parameters if f".{layer}.lora_" in name]


FORETOLD = {
    WarningKind.LAYERS_LEFT_OUT,
    WarningKind.RANK_ABOVE_MATRIX,
    WarningKind.ADAPTER_IN_EXPERTS,
    WarningKind.LAYOUT_FELL_BACK,
    WarningKind.WRITTEN_ONE_BY_ONE,
    WarningKind.FREQUENCIES_OF_FULL_ROW,
    WarningKind.RANDOM_WEIGHTS,
    WarningKind.ATTENTION_ALONE_ADAPTED,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "targets", "kinds"),
    [
        ("longcat_flash", ["q_a_proj", "classifier"], {"layers_left_out", "rank_above_matrix"}),
        ("gemma3", ["q_proj"], {"layers_left_out"}),
        ("mamba", ["x_proj"], {"layout_fell_back"}),
    ],
)
def test_a_dry_run_warns_as_the_trial_does(
    kind: str,
    targets: list[str],
    kinds: set[str],
    tiny_table: dict[str, Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(zoo.SIZES, ("vocab_size",), 264)
    monkeypatch.setitem(zoo.TINY, "vocab_size", 264)
    zoo.build(kind).save_pretrained(tmp_path / kind)
    tiny_tokenizer.save_pretrained(tmp_path / kind)
    changes = {"model": str(tmp_path / kind), "lora": {"target_modules": targets}, "training": {"layout": "auto"}}
    settings = load(None, [merge(tiny_table, changes | {"grid": {"lora.rank": [10]}, "baselines": []})])
    plan = dry_run(settings)
    (record,) = sweep(settings, tmp_path / "out").records
    assert record.status == "done", record.error
    told = {(warning.kind, warning.detail) for warning in record.warnings if warning.kind in FORETOLD}
    assert told == {(warning.kind, warning.detail) for warning in plan.warnings}
    assert kinds <= {str(kind) for kind, _ in told}
