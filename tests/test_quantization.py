"""A quantised base: it computes what a dense one with the weights as they are read does, in every layout."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resuming import Stopper, run, what_counts
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D
from zoo import config_of

from howlow import load_settings as load
from howlow.engine import layouts, quantization
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora, merge_adapter
from howlow.engine.cpu.patches import fused
from howlow.engine.execution import decide, running
from howlow.engine.quantization import Quantization, QuantizedLinear, count_parameters, stored_bytes
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import Optimization, Trainer
from howlow.errors import UserError
from howlow.records import read_records
from howlow.reporting import write_report
from howlow.settings import merge
from howlow.sweeping.sweep import sweep
from howlow.trial.asked_of_model import refuse_what_cannot_be

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
KINDS: list[tuple[Quantization, bool]] = [("nf4", True), ("nf4", False), ("int8", True)]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def quantized(folder: Path, kind: Quantization, double: bool = True, **changes: Any) -> Any:
    return loaded(folder, quantization=kind, double_quantization=double, **changes).requires_grad_(False)


def layers_of(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def as_dense(model: Any) -> Any:
    """The model with a plain layer in the place of each quantised one, with its weight as it is read."""
    for name, layer in layers_of(model).items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.dense())
    return model.requires_grad_(False)


# -- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 32), (31, 33), (4, 160), (3, 64)])  # blocks of nf4 need not fit a row
def test_a_layer_computes_what_its_dense_form_computes(
    kind: Quantization, double: bool, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape, dtype=dtype), torch.randn(shape[0], dtype=dtype)
    layer = QuantizedLinear(weight, bias, kind, double=double)
    x = torch.randn((2, 5, shape[1]), dtype=dtype, requires_grad=True)
    dy = torch.randn((2, 5, shape[0]), dtype=dtype)
    (dx,) = torch.autograd.grad(layer(x), x, dy)
    dense = F.linear(x, layer.weight, bias)
    assert torch.equal(layer(x), dense)
    assert torch.equal(dx, dy @ layer.weight)
    assert layer.weight.dtype == dtype
    # a code is at most half a step away from its weight; steps of nf4 are up to 0.31 of the block's largest magnitude
    largest = 0.5 * {"nf4": 0.31, "int8": 1 / 127}[kind] * float(weight.float().abs().max())
    rounding = torch.finfo(dtype).eps * float(weight.float().abs().max())
    assert float((layer.weight - weight).float().abs().max()) <= 1.1 * largest + rounding


@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=60)
def test_each_code_is_read_with_the_magnitude_of_its_block(rows: int, width: int, dtype: torch.dtype) -> None:
    """By hand: two codes a byte, one magnitude for 64 weights."""
    weight = torch.randn((rows, width), generator=torch.Generator().manual_seed(width)).to(dtype)
    stored = QuantizedLinear(weight, None, "nf4", double=False).stored
    codes, count = stored.get_buffer("codes").flatten(), weight.numel()
    places = torch.stack([codes >> 4, codes & 15], 1).flatten()[:count].long()
    magnitudes = stored.get_buffer("magnitudes").repeat_interleave(64)[:count]
    expected = (stored.get_buffer("values")[places] * magnitudes).view(rows, width).to(dtype)
    assert torch.equal(stored.dense(), expected)


def test_autocast_computes_in_its_dtype() -> None:
    layer = QuantizedLinear(torch.randn(16, 32), torch.zeros(16), "nf4", double=True)
    x = torch.randn(3, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, F.linear(x.bfloat16(), layer.weight.bfloat16(), torch.zeros(16, dtype=torch.bfloat16)))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("is_fused", [True, False])
def test_no_weight_is_kept_for_the_backward_pass(tiny_model: Path, is_fused: bool) -> None:
    """What is kept between the passes is no larger than the dense model's, whose weights are there anyway."""
    model = quantized(tiny_model, "nf4")
    held = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.extend([] if tensor.data_ptr() in held else [tensor.shape])
        return tensor

    embeddings = torch.randn((1, 7, 32), requires_grad=True)
    with fused(model) if is_fused else nullcontext(), torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        model(inputs_embeds=embeddings).logits.sum().backward()
    weights = {layer.stored.shape for layer in layers_of(model).values()}
    assert not weights & ({*kept} | {torch.Size(reversed(shape)) for shape in kept})


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_the_codes_are_those_of_transformers(tiny_model: Path, kind: Quantization, double: bool) -> None:
    four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double, "load_in_4bit": True}
    config = BitsAndBytesConfig(**four_bits if kind == "nf4" else {"load_in_8bit": True})
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, quantization_config=config)
    ours = layers_of(quantized(tiny_model, kind, double))
    assert len(ours) == 2 * 7
    assert {name for name, one in theirs.named_modules() if type(one).__name__.startswith("Linear")} == {
        *ours,
        "lm_head",
    }
    for name, layer in ours.items():  # compared as codes: bitsandbytes reads rows of 32 weights wrongly on some CPUs
        other = theirs.get_submodule(name).weight
        assert torch.equal(layer.stored.get_buffer("codes"), other.data)
        magnitudes = other.quant_state.absmax if kind == "nf4" else other.SCB
        assert torch.equal(layer.stored.get_buffer("magnitudes"), magnitudes)
        if kind == "nf4" and double:
            assert torch.equal(layer.stored.get_buffer("offset"), other.quant_state.offset)


def test_its_weights_count_in_full_and_take_less(tiny_model: Path) -> None:
    dense = loaded(tiny_model)
    found = {kind: stored_bytes(quantized(tiny_model, kind, double)) for kind, double in KINDS}
    assert {count_parameters(quantized(tiny_model, kind)) for kind, _ in KINDS} == {count_parameters(dense)}
    linear = sum(layer.weight.numel() for name, layer in dense.named_modules() if name.endswith("_proj"))
    rest = 4 * (count_parameters(dense) - linear)
    assert stored_bytes(dense) == 4 * linear + rest
    assert rest + linear < found["int8"] < rest + 1.3 * linear
    assert rest + linear / 2 < found["nf4"] < found["int8"]


def test_a_model_of_gpt2_keeps_its_function_up_to_the_codes() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_head=4, n_layer=2, vocab_size=64, n_positions=32)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    ids = torch.arange(9)[None]
    expected = model(ids).logits
    quantization.quantize(model, "int8", double=True, device=CPU)
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    assert len(layers_of(model)) == 2 * 4
    assert (model(ids).logits - expected).norm() < 0.02 * expected.norm()
    found = attach_lora(model, rank=2, alpha=4, scaling="standard", target_modules=["c_attn"], dropout=0.0, seed=0)
    assert torch.equal(found(ids).logits, model(ids).logits)
    assert models.linear_shapes(models.base_of(found))["transformer.h.0.mlp.c_fc"] == (64, 256)


def some_examples() -> list[TokenizedExample]:
    prefix = tuple(range(5, 17))
    return [
        TokenizedExample(str(index), "g", (*prefix, 30 + index, 40 + index), (50 + index, 60, 257))
        for index in range(4)
    ]


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "fp16-autocast"])
def test_losses_equal_those_of_the_dense_weights(
    tiny_model: Path, layout: layouts.Layout, kind: Quantization, precision: Any
) -> None:
    """To the bit, in training with its fused parts, and after it."""
    options: dict[str, Any] = {"rank": 3, "alpha": 6, "scaling": "standard", "dropout": 0.0, "seed": 0}
    options["target_modules"] = ATTENTION
    execution = decide(device=CPU, precision=precision, attention="own" if layout == "padded" else "sdpa")
    batch = layouts.lay_out(some_examples(), layout, 24, 257, "completion")
    found = []
    for base in (quantized(tiny_model, kind), as_dense(quantized(tiny_model, kind))):
        model = attach_lora(base, **options).train()
        with running(model, execution) as run:
            trainer = Trainer(run, Optimization(learning_rate=1e-2, total_steps=9))
            losses = [trainer.outcome(trainer.step([batch])).loss for _ in range(3)]
        found.append((losses, list(models.trainable(model).values())))
    assert found[0][0] == found[1][0]
    assert precision == "fp16-autocast" or found[0][0][2] < found[0][0][0]
    assert all(torch.equal(ours, dense) for ours, dense in zip(found[0][1], found[1][1], strict=True))


def test_frozen_parts_run_fused_on_codes(tiny_model: Path) -> None:
    model = quantized(tiny_model, "nf4")
    with fused(model):
        layer = model.model.layers[0]
        assert all("forward" in vars(module) for module in (layer.mlp, layer.self_attn.q_proj, layer.input_layernorm))
    assert "forward" not in vars(layer.mlp)


def test_merging_makes_the_adapted_layers_dense(tiny_model: Path) -> None:
    base = quantized(tiny_model, "nf4")
    model = attach_lora(base, rank=2, alpha=4, scaling="standard", target_modules=["q_proj"], dropout=0.0, seed=0)
    for name, parameter in models.trainable(model).items():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ids = torch.arange(9)[None]
    expected = model(ids).logits
    found = merge_adapter(model)
    assert type(found.model.layers[0].self_attn.q_proj) is nn.Linear
    assert isinstance(found.model.layers[0].self_attn.k_proj, QuantizedLinear)
    torch.testing.assert_close(found(ids).logits, expected, rtol=1e-4, atol=1e-5)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_full_fine_tuning_of_codes_is_refused(tiny_table: dict[str, Any]) -> None:
    for change in ({"quantization": "int8"}, {"grid": {"quantization": ["none", "int8"]}}):
        with pytest.raises(UserError, match=r'baselines = \["full"\] with quantization = "int8": .* leave out "full"'):
            load(None, [merge(tiny_table, {"baselines": ["full"], **change})])


def check(table: dict[str, Any], kind: str = "nf4") -> None:
    asked = load(None, [merge(table, {"quantization": kind})])
    refuse_what_cannot_be(asked, (), (asked.quantization,))


def test_a_missing_bitsandbytes_says_what_to_install(tiny_table: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes, which is not installed: pip install 'howlow\[quant\]'"):
        check(tiny_table)


@pytest.mark.parametrize("problem", [RuntimeError("no kernel for mps"), NotImplementedError("nf4"), OSError("libbnb")])
def test_a_device_that_cannot_train_it_is_named(
    tiny_table: dict[str, Any], monkeypatch: Any, problem: Exception
) -> None:
    def fail() -> None:
        raise problem

    monkeypatch.setattr(quantization, "_bitsandbytes", fail)
    with pytest.raises(UserError, match=rf"cannot train through such layers on cpu \({type(problem).__name__}: "):
        check(tiny_table)


def test_what_is_quantised_already_is_refused(tiny_model: Path, tiny_table: dict[str, Any], tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its weights are quantised already \(bitsandbytes\); give the original"):
        check(merge(tiny_table, {"model": str(tmp_path)}))
    with pytest.raises(UserError, match=r"its weights are quantised already \(bitsandbytes\)"):
        loaded(tmp_path)


def test_a_model_without_linear_layers_is_refused() -> None:
    class Bare(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(UserError, match="Bare has no linear layer that could be quantised"):
        quantization.quantize(Bare(), "nf4", double=True, device=CPU)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "afmoe", "deepseek_v32", "phi", "mixtral", "opt"])
def test_the_layers_are_those_that_transformers_quantises(architecture: str) -> None:
    """By transformers' own replacement, on models without storage: an adapter has to fit the base that it loads."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    with torch.device("meta"):
        ours, theirs = (AutoModelForCausalLM.from_config(config_of(architecture)) for _ in range(2))
    kept = HfQuantizer.get_modules_to_not_convert(theirs, None, theirs._keep_in_fp32_modules)
    replaced = replace_with_bnb_linear(theirs, kept, BitsAndBytesConfig(load_in_8bit=True))
    expected = {name for name, module in replaced.named_modules() if type(module).__name__ == "Linear8bitLt"}
    found = {name for name, _ in quantization._layers_to_quantize(ours)}
    assert found == expected != set()


def test_a_layer_that_stands_at_two_places_stays_one(tiny_model: Path) -> None:
    model = loaded(tiny_model)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    quantization.quantize(model, "nf4", double=True, device=CPU)
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    assert isinstance(first, QuantizedLinear)
    assert first is second


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize("zeros", ["row", "block", "all"])
def test_weights_of_zero_are_read_as_zero(kind: Quantization, double: bool, zeros: str) -> None:
    """Pruned rows, and rows that pad a matrix: their largest magnitude, by which codes are scaled, is 0."""
    weight = torch.randn(8, 128)
    place = {"row": (slice(3, 4), slice(None)), "block": (3, slice(64, 128)), "all": (slice(None), slice(None))}[zeros]
    weight[place] = 0.0
    read = QuantizedLinear(weight, None, kind, double=double).weight
    assert torch.isfinite(read).all()
    assert not read[place].any()


def test_int8_refuses_weights_beyond_fp16(tiny_model: Path) -> None:
    model = loaded(tiny_model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    words = r"model\.layers\.1\.mlp\.up_proj has a weight of 1e\+05, and int8 starts from fp16"
    with pytest.raises(UserError, match=words):
        quantization.quantize(model, "int8", double=True, device=CPU)


def test_a_weight_that_is_no_number_is_found_before_it_is_a_code(tiny_model: Path, tmp_path: Path) -> None:
    model = loaded(tiny_model)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its weights hold NaN: model\.layers\.1\.mlp\.up_proj\.weight"):
        quantized(tmp_path, "int8")


# -- a sweep ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "run"
    grid = {"lora.rank": [2], "quantization": ["none", "nf4", "int8"]}
    changes = {"grid": grid, "inference": {"adapter": "merged"}, "training": {"layout": "shared"}}
    assert not sweep(load(None, [merge(tiny_table, changes)]), out).failed
    return out


@pytest.mark.slow
def test_each_quantisation_has_its_base(swept: Path) -> None:
    records = {record.trial: record for record in read_records(swept)}
    kinds = ("none", "nf4", "int8")
    assert set(records) == {f"{stem}-s0-quantization={kind}" for stem in ("base", "r0002") for kind in kinds}
    found = [records[f"base-s0-quantization={kind}"] for kind in kinds]
    assert [record.resolved.quantization for record in found] == list(kinds)
    assert len({record.scores.loss for record in found}) == 3
    assert len({record.model.total_parameters for record in records.values()}) == 1
    sizes = [record.model.base_bytes for record in found]
    assert sizes[0] > max(sizes[1:])
    adapted = records["r0002-s0-quantization=nf4"]
    assert adapted.merged is not None
    assert adapted.merged.loss == pytest.approx(adapted.scores.loss, rel=1e-4)
    assert adapted.resolved.fused
    card = (swept / "trials" / adapted.trial / "adapter" / "README.md").read_text()
    assert "| base stored in | nf4 with double quantisation |" in card
    assert 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in card


@pytest.mark.slow
def test_a_full_baseline_of_a_sweep_of_its_own_stands_beside_it(
    swept: Path, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"grid": {"lora.rank": [2]}, "baselines": ["full"], "inference": {"adapter": "merged"}}
    changes["training"] = {"layout": "shared"}
    assert not sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "full").failed
    rows = json.loads(write_report([swept, tmp_path / "full"], into=tmp_path / "both").json_text())["rows"]
    assert {row["kind"] for row in rows} == {"base", "full", "lora"}


@pytest.mark.slow
def test_the_report_takes_it_as_any_axis(swept: Path) -> None:
    report = write_report([swept])
    assert {"none", "nf4", "int8"} == {row["quantization"] for row in json.loads(report.json_text())["rows"]}
    assert "nf4" in report.table_text(200)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_resumed_trial_is_the_unbroken_one(
    tiny_table: dict[str, Any], tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("howlow.trial.state._SECONDS_BETWEEN_REPORTS", 0.0)
    table = merge(
        tiny_table,
        {"quantization": kind, "training": {"checkpoint_every_s": 1e-9}, "grid": {"lora.rank": [1]}},
    )
    unbroken = run(table, tmp_path / "unbroken", Stopper())
    assert run(table, tmp_path / "ours", Stopper("train", 3)) is None
    resumed = run(table, tmp_path / "ours", Stopper())
    assert unbroken is not None
    assert resumed is not None
    assert resumed.resumed == 1
    assert what_counts(tmp_path / "ours", resumed) == what_counts(tmp_path / "unbroken", unbroken)
    assert resumed.model.base_bytes < 4 * resumed.model.total_parameters
