"""DoRA and PiSSA: what their layers compute, what is saved of them and loads again, and where they are refused."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import loaded
from peft import LoraConfig, PeftModel, get_peft_model
from test_resuming import Stopper, run, what_counts
from torch import Tensor, nn

import howlow
from howlow import load_settings as load
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora, merge_adapter, save_adapter
from howlow.engine.cpu.patches import fused
from howlow.engine.spectra import scaled_singular_values
from howlow.errors import UserError
from howlow.records import read_record, read_records
from howlow.records.spectra import read_spectra
from howlow.settings import merge
from howlow.sweeping.sweep import sweep
from howlow.trial.asked_of_model import refuse_what_cannot_be

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(11)[None]


def adapted(folder: Path, variant: Literal["lora", "dora", "pissa"], rank: int = 3, **changes: Any) -> Any:
    options: dict[str, Any] = {"alpha": 2 * rank, "scaling": "standard", "dropout": 0.0, "seed": 1}
    options |= {"target_modules": ["q_proj", "v_proj", "down_proj"]} | changes
    base = loaded(folder, quantization=options.pop("quantization", "none")).requires_grad_(False)
    return attach_lora(base, rank=rank, variant=variant, **options)


def moved(model: Any) -> Any:
    """As after a training: every trained parameter is another."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std().clamp(min=0.1))
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("variant", ["dora", "pissa"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_training_starts_from_the_base_model(tiny_model: Path, variant: Any, quantization: str) -> None:
    if (variant, quantization) == ("pissa", "nf4"):
        return
    expected = logits(loaded(tiny_model, quantization=quantization))
    torch.testing.assert_close(logits(adapted(tiny_model, variant, quantization=quantization).eval()), expected)


@pytest.mark.parametrize("variant", ["dora", "pissa"])
@pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])
def test_the_saved_adapter_fits_the_base_as_it_came(
    tiny_model: Path, tmp_path: Path, variant: Any, scaling: str
) -> None:
    model = moved(adapted(tiny_model, variant, scaling=scaling))
    save_adapter(model, tmp_path / "adapter", str(tiny_model), "card")
    again = PeftModel.from_pretrained(loaded(tiny_model), tmp_path / "adapter").eval()
    assert not torch.allclose(logits(model), logits(loaded(tiny_model)), atol=1e-3)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(merge_adapter(model)), logits(again), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pissa_is_saved_as_peft_converts_it(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=["q_proj"], init_lora_weights="pissa", lora_dropout=0.0
    )
    torch.manual_seed(1)
    theirs = get_peft_model(loaded(tiny_model), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    moved(theirs).save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = moved(adapted(tiny_model, "pissa", target_modules=["q_proj"]))
    save_adapter(ours, tmp_path / "ours", str(tiny_model), "card")
    from safetensors.torch import load_file

    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")]
    same = ("r", "lora_alpha", "init_lora_weights", "use_rslora", "peft_type")
    assert [[config[key] for key in same] for config in configs] == [[6, 12, True, False, "LORA"]] * 2
    assert ours.peft_config["default"].r == 3


def test_the_spectra_of_pissa_are_those_of_what_training_adds(tiny_model: Path) -> None:
    model = moved(adapted(tiny_model, "pissa"))
    base = loaded(tiny_model)
    found = scaled_singular_values(model)
    merged = merge_adapter(model)
    for name, values in found.items():
        difference = merged.get_submodule(name).weight - base.get_submodule(name).weight
        torch.testing.assert_close(values.float(), torch.linalg.svdvals(difference)[:6], rtol=1e-3, atol=1e-5)


def test_dora_has_no_spectra_and_its_own_formula(tiny_model: Path) -> None:
    model = moved(adapted(tiny_model, "dora", target_modules=["q_proj"]))
    assert scaled_singular_values(model) == {}
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(4, 32)
    whole = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    direction = whole / whole.norm(dim=1, keepdim=True)
    expected = x @ (layer.lora_magnitude_vector["default"].weight[:, None] * direction).T
    torch.testing.assert_close(layer(x), expected)
    with fused(model):
        assert "forward" not in vars(layer), "PEFT's own code runs"
        torch.testing.assert_close(layer(x), expected)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"quantization": "nf4"}, 'lora.variant = "pissa" with quantization = "nf4": PiSSA changes the base'),
        ({"grid": {"quantization": ["none", "int8"]}}, 'with quantization = "int8": PiSSA changes the base'),
    ],
)
def test_pissa_of_codes_is_refused(tiny_table: dict[str, Any], change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load(None, [merge(tiny_table, {"lora": {"variant": "pissa"}, **change})])


def test_a_rank_above_pissas_directions_is_refused(tiny_table: dict[str, Any]) -> None:
    settings = load(None, [tiny_table])
    refuse_what_cannot_be(settings, [("pissa", 16, ("q_proj", "v_proj"))], ())
    with pytest.raises(UserError, match=r"lora.rank = 17 .*v_proj has only 16 .*; leave out ranks above 16"):
        refuse_what_cannot_be(settings, [("pissa", 17, ("q_proj", "v_proj"))], ())


# -- a sweep ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    (folder / "general.txt").write_text("A general text of a few words, which is not trained on.\n" * 3)
    changes = {
        "grid": {"lora.rank": [2], "lora.variant": ["lora", "dora", "pissa"]},
        "baselines": [],
        "task": {"general_text": str(folder / "general.txt")},
    }
    assert not sweep(load(None, [merge(tiny_table, changes)]), folder / "run").failed
    return folder / "run"


@pytest.mark.slow
def test_each_variant_is_recorded_for_what_it_is(swept: Path) -> None:
    records = {record.axes["lora.variant"]: record for record in read_records(swept)}
    sizes = {variant: record.model.trainable_parameters for variant, record in records.items()}
    assert sizes["dora"] > sizes["lora"] == sizes["pissa"]
    assert len({record.scores.loss for record in records.values()}) == 3
    before = [record.scores.general_loss_before for record in records.values()]
    assert before == [before[0]] * 3, "the base as it came, which PiSSA changes"
    kinds = {variant: {warning.kind.value for warning in record.warnings} for variant, record in records.items()}
    assert [variant for variant, found in kinds.items() if "adapter_not_fused" in found] == ["dora"]
    assert read_spectra(swept / "trials" / records["dora"].trial) is None
    spectra = read_spectra(swept / "trials" / records["pissa"].trial)
    assert spectra is not None
    assert {len(module.singular_values) for module in spectra.modules} == {4}


@pytest.mark.slow
def test_pissa_is_shrunk_as_what_it_is_saved_as(swept: Path, tmp_path: Path) -> None:
    trials = {record.axes["lora.variant"]: swept / "trials" / record.trial for record in read_records(swept)}
    settings = howlow.shrink_settings(trials["pissa"] / "adapter", [4, 1])
    assert (settings.lora.variant, settings.lora.start_rank) == ("lora", 4)
    assert not sweep(settings, tmp_path / "shrunk").failed
    whole, cut = (read_record(tmp_path / "shrunk" / "trials" / f"r000{rank}-s0-shrunk") for rank in (4, 1))
    trained = read_record(trials["pissa"])
    assert whole.scores.loss == pytest.approx(trained.scores.loss, rel=1e-5)
    assert cut.scores.loss != pytest.approx(trained.scores.loss, rel=1e-6)
    with pytest.raises(UserError, match="DoRA's magnitudes are no product of two matrices"):
        howlow.shrink_settings(trials["dora"] / "adapter", [1])


@pytest.mark.parametrize("variant", ["dora", "pissa"])
def test_a_resumed_trial_is_the_unbroken_one(
    tiny_table: dict[str, Any], tmp_path: Path, variant: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("howlow.trial.state._SECONDS_BETWEEN_REPORTS", 0.0)
    changes = {"lora": {"variant": variant}, "training": {"checkpoint_every_s": 1e-9}, "grid": {"lora.rank": [2]}}
    table = merge(tiny_table, changes)
    unbroken = run(table, tmp_path / "unbroken", Stopper())
    assert run(table, tmp_path / "ours", Stopper("train", 3)) is None
    resumed = run(table, tmp_path / "ours", Stopper())
    assert unbroken is not None
    assert resumed is not None
    assert what_counts(tmp_path / "ours", resumed) == what_counts(tmp_path / "unbroken", unbroken)
    base, again = loaded(Path(table["model"])), tmp_path / "ours" / "trials" / resumed.trial / "adapter"
    assert isinstance(PeftModel.from_pretrained(base, again), nn.Module)
