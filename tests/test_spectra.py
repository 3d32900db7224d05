"""Singular values of adapters' updates, the best update of a smaller rank, and what the report says of them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howlow.analysis.spectra import UpdateSpectra, effective_rank, place_of
from howlow.engine.adapter import attach_lora
from howlow.engine.spectra import Factors, singular_values, truncated
from howlow.errors import UserError
from howlow.records import ModuleSpectrum, Spectra, read_spectra, write_spectra
from howlow.records.spectra import energy_kept

pytestmark = pytest.mark.usefixtures("one_thread")


def factors(out: int, rank: int, into: int, seed: int, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(out, rank, generator=generator) * scale, torch.randn(rank, into, generator=generator) * scale
    )


sides = st.integers(1, 12)
some_factors = st.builds(factors, sides, sides, sides, st.integers(0, 10**6), st.sampled_from([1e-8, 1e-3, 1.0, 1e3]))


def product(pair: Factors) -> torch.Tensor:
    return pair.b.double() @ pair.a.double()


@given(some_factors)
def test_singular_values_are_those_of_the_full_matrix(pair: Factors) -> None:
    whole = torch.linalg.svdvals(product(pair))
    found = singular_values(pair)
    assert len(found) == min(*product(pair).shape, pair.a.shape[0])
    assert torch.allclose(found, whole[: len(found)], rtol=1e-9, atol=1e-12 * float(whole[0]))


@given(some_factors, st.integers(1, 12))
def test_a_cut_is_the_best_approximation_of_its_rank(pair: Factors, rank: int) -> None:
    found = truncated(pair, rank)
    assert found.b.shape == (pair.b.shape[0], rank)
    assert found.a.shape == (rank, pair.a.shape[1])
    u, values, vh = torch.linalg.svd(product(pair), full_matrices=False)
    kept = min(rank, len(values))
    best = (u[:, :kept] * values[:kept]) @ vh[:kept]
    assert torch.allclose(product(found), best, rtol=0, atol=1e-5 * float(values[0]))


def test_a_cut_shares_the_singular_values_between_its_factors() -> None:
    found = truncated(factors(9, 5, 7, 0), 3)
    assert torch.allclose(found.b.T @ found.b, found.a @ found.a.T, atol=1e-4)


def test_a_zero_update_stays_zero() -> None:
    zero = Factors(torch.zeros(4, 2), torch.randn(2, 3))
    assert not product(truncated(zero, 1)).any()
    assert energy_kept([singular_values(zero).tolist()], 1) is None
    assert effective_rank(singular_values(zero).tolist()) is None


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_effective_rank_lies_between_one_and_the_number_of_values(values: list[float]) -> None:
    found = effective_rank(values)
    assert found is not None
    assert 1 - 1e-9 <= found <= len(values) + 1e-9
    scaled = effective_rank([3 * value for value in values])
    assert scaled == pytest.approx(found)


def test_effective_rank_by_hand() -> None:
    assert effective_rank([2.0, 2.0, 2.0, 2.0]) == pytest.approx(4)
    assert effective_rank([5.0, 0.0]) == pytest.approx(1)
    assert effective_rank([3.0, 1.0]) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_energy_kept_by_hand_is_over_all_modules_together() -> None:
    assert energy_kept([[3.0, 1.0], [2.0, 2.0]], 1) == pytest.approx((9 + 4) / (9 + 1 + 4 + 4))
    assert energy_kept([[3.0, 1.0]], 2) == 1.0


@given(st.lists(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), min_size=1, max_size=5), st.floats(0.01, 1.0))
def test_the_rank_that_keeps_a_share_is_the_smallest_that_does(spectra: list[list[float]], share: float) -> None:
    values = [sorted(one, reverse=True) for one in spectra]
    modules = tuple(ModuleSpectrum(module=str(n), singular_values=tuple(one)) for n, one in enumerate(values))
    rank = UpdateSpectra("t", 4, Spectra(modules=modules)).rank_keeping(share)
    assert rank is not None
    kept = energy_kept(values, rank)
    assert kept is not None
    assert kept >= share * (1 - 1e-6)
    less = energy_kept(values, rank - 1)
    assert less is not None
    assert less < share


@pytest.mark.parametrize(
    ("module", "layer", "name"),
    [
        ("model.layers.12.self_attn.q_proj", 12, "self_attn.q_proj"),
        ("transformer.h.0.attn.c_attn", 0, "attn.c_attn"),
        ("model.layers.3.mlp.experts.7.w1", 3, "mlp.experts.*.w1"),
        ("proj", 0, "proj"),
        ("blocks.1", 0, "blocks.1"),
    ],
)
def test_the_place_of_a_module(module: str, layer: int, name: str) -> None:
    assert (place_of(module).layer, place_of(module).name) == (layer, name)


def test_spectra_are_read_as_they_were_written(tmp_path: Path) -> None:
    spectra = Spectra(modules=(ModuleSpectrum(module="a.0.b", singular_values=(2.0, 0.5)),), left_out=("c",))
    assert read_spectra(tmp_path) is None
    write_spectra(tmp_path, spectra)
    assert read_spectra(tmp_path) == spectra


@pytest.mark.parametrize("text", ["", "[]", '{"modules": 3}', '{"modules": [{"module": "a", "singular_values": "x"}]}'])
def test_damaged_spectra_are_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "spectra.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"spectra.json: cannot be read as spectra"):
        read_spectra(tmp_path)


def test_the_spectra_of_a_model_are_those_of_its_merged_weights(tiny_model: Path) -> None:
    from conftest import loaded

    from howlow.engine import model as models
    from howlow.engine.spectra import scaled_singular_values

    options: dict[str, Any] = {"alpha": 6.0, "scaling": "rank_stabilized", "dropout": 0.0, "seed": 0}
    model = attach_lora(loaded(tiny_model), rank=3, target_modules=["q_proj", "down_proj"], **options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in models.trainable(model).items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    found = scaled_singular_values(model)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    assert len(found) == len(layers) == 4
    for name, values in found.items():
        delta = layers[f"base_model.model.{name}"].get_delta_weight("default").double()
        assert torch.allclose(values, torch.linalg.svdvals(delta)[:3], rtol=1e-5)
