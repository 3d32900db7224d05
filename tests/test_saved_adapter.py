"""What a saved adapter says of itself, and each kind that cannot be cut: one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from howlow.engine.saved_factors import check_factors, read_factors
from howlow.engine.spectra import Factors
from howlow.errors import UserError
from howlow.settings import LoraSettings, read_saved_adapter

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "use_rslora": False,
    "lora_dropout": 0.0,
    "target_modules": ["v_proj", "q_proj"],
    "base_model_name_or_path": "/models/base",
    "bias": "none",
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | changes), encoding="utf-8")
    return folder


def test_a_plain_adapter(tmp_path: Path) -> None:
    found = read_saved_adapter(adapter(tmp_path / "a", rank_pattern={"q_proj": 8}))
    assert (found.rank, found.alpha, found.is_rank_stabilized) == (8, 16.0, False)
    assert found.target_modules == ("q_proj", "v_proj")
    assert found.base_model == "/models/base"


def test_the_folder_of_a_trial_is_taken_for_its_adapter(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter")
    assert read_saved_adapter(tmp_path).folder == tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3, not LORA"),
        ({"peft_type": None}, "of the kind None, not LORA"),
        ({"use_dora": True}, "use_dora = true: DoRA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, 'bias = "all"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights"),
        ({"rank_pattern": {"q_proj": 4}}, "its ranks differ by module (rank_pattern: q_proj has 4, others 8)"),
        ({"alpha_pattern": {"v_proj": 4}}, "its alphas differ by module (alpha_pattern: v_proj has 4, others 16)"),
        ({"target_modules": ".*q_proj"}, "a list of names is expected"),
        ({"target_modules": None}, "a list of names is expected"),
        ({"r": 0}, "r = 0"),
        ({"r": "8"}, "r = '8'"),
        ({"r": 2.5}, "r = 2.5"),
        ({"lora_alpha": -1}, "lora_alpha = -1"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
        ({"r": float("inf")}, "r = inf"),
        ({"lora_dropout": "little"}, "lora_dropout = 'little'"),
        ({"lora_dropout": 1}, "lora_dropout = 1"),
        ({"use_rslora": "false"}, "use_rslora = 'false'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern in adapter_config.json is no JSON object"),
    ],
)
def test_other_kinds_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_saved_adapter(adapter(tmp_path / "a", **changes))
    assert said in str(caught.value)
    assert str(tmp_path / "a") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff", '{"r": ' + "[" * 5000])
def test_a_damaged_config_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match="copy it again"):
        read_saved_adapter(tmp_path)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no adapter_config.json in that folder"):
        read_saved_adapter(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_saved_adapter(tmp_path / "missing")


# -- its matrices ---------------------------------------------------------------------------------------------------


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def pair(layer: str, out: int = 6, rank: int = 2, into: int = 4) -> dict[str, torch.Tensor]:
    stem = f"base_model.model.{layer}"
    return {f"{stem}.lora_A.weight": torch.ones(rank, into), f"{stem}.lora_B.weight": torch.ones(out, rank)}


def test_matrices_are_read_by_the_layer(tmp_path: Path) -> None:
    found = read_factors(saved(tmp_path, **pair("layers.0.q"), **pair("layers.1.q")))
    assert set(found) == {"layers.0.q", "layers.1.q"}
    assert found["layers.0.q"].b.shape == (6, 2)
    check_factors(tmp_path, found, 2, {"layers.0.q": (4, 6), "layers.1.q": (4, 6)})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"base_model.model.q.lora_magnitude_vector.weight": torch.ones(3)}, "only pairs of matrices"),
        ({"base_model.model.q.lora_A.weight": torch.ones(2, 3, 1, 1)}, "only pairs of matrices"),
        ({"base_model.model.q.lora_embedding_A": torch.ones(2, 3)}, "only pairs of matrices"),
        ({"base_model.model.q.lora_A.weight": torch.ones(2, 3)}, "not its other matrix"),
        ({"base_model.model.q.lora_A.weight": torch.tensor([[float("nan")]])}, "not finite"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_factors(saved(tmp_path, **tensors))


def test_missing_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_factors(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled"):
        read_factors(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_factors(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "rank", "said"),
    [
        ({"q": (4, 6)}, 3, "its ranks differ by module: q has 2, its config says 3"),
        ({"q": (5, 6)}, 2, "made for another model: q maps 4 to 6"),
        ({"v": (4, 6)}, 2, "the adapter has q, which the model does not match"),
        ({"q": (4, 6), "v": (4, 6)}, 2, "the model matches v, which the adapter does not have"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], rank: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_factors(tmp_path, {"q": Factors(torch.ones(6, 2), torch.ones(2, 4))}, rank, shapes)


# -- the settings that follow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ["2r", "0.5r", 32.0])
@pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])
@pytest.mark.parametrize("rank", [1, 3, 16, 64])
def test_a_smaller_rank_keeps_the_scaling_of_its_start(alpha: float | str, scaling: Any, rank: int) -> None:
    whole = LoraSettings(rank=64, alpha=alpha, scaling=scaling)
    small = LoraSettings(rank=rank, alpha=alpha, scaling=scaling, start="/a", start_rank=64)
    assert small.scaling_factor == pytest.approx(whole.scaling_factor, rel=1e-12)
    divisor = rank if scaling == "standard" else rank**0.5
    assert small.alpha_value == pytest.approx(whole.scaling_factor * divisor, rel=1e-12)


@given(st.floats(0.01, 1000) | st.sampled_from(["2r", "0.3r"]), st.integers(1, 4096))
def test_an_adapter_of_its_own_rank_is_saved_with_its_own_alpha(alpha: float | str, rank: int) -> None:
    """To the last bit: by it a saved adapter is known again, and 32 / 49 * 49 is not 32."""
    for scaling in ("standard", "rank_stabilized"):
        lora = LoraSettings(rank=rank, alpha=alpha, scaling=scaling)
        assert (lora.saved_rank, lora.saved_alpha) == (rank, lora.alpha_value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": "/a"}, "go together"),
        ({"start_rank": 4}, "go together"),
        ({"continue_steps": 3}, "needs lora.start"),
        ({"start": "/a", "start_rank": 4, "rank": 8}, "above the rank of the adapter"),
    ],
)
def test_settings_of_a_start_that_say_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraSettings(**fields)
