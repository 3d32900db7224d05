"""Products with frozen weights: right through either library, and the library chosen by time, kept, or asked for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from howlow.engine.cpu import gemm
from howlow.engine.cpu.gemm import FrozenWeight, GemmChoice, Gemms, choose_gemms

pytestmark = pytest.mark.usefixtures("one_thread")


def frozen(width: int, out: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).requires_grad_(False)


@given(
    rows=st.sampled_from([1, 5, gemm.FEWEST_ROWS - 1, gemm.FEWEST_ROWS, 100]),
    width=st.integers(1, 40),
    out=st.integers(1, 40),
    bias=st.booleans(),
    libraries=st.tuples(*2 * [st.sampled_from(["onednn", "blas"])]),
    deep=st.booleans(),
)
@settings(max_examples=40)
def test_both_products_are_right_through_either_library(
    rows: int, width: int, out: int, bias: bool, libraries: Any, deep: bool
):
    layer = frozen(width, out, bias)
    weight = FrozenWeight(layer.weight, layer.bias, *libraries)
    x, dy = (torch.randn(*(1,) * deep, rows, size) for size in (width, out))
    wide, wide_bias = layer.weight.double(), layer.bias.double() if bias else torch.zeros(out).double()
    torch.testing.assert_close(weight.forward(x).double(), x.double() @ wide.T + wide_bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.backward(dy).double(), dy.double() @ wide, rtol=1e-4, atol=1e-5)


def timed(monkeypatch: pytest.MonkeyPatch, onednn_s: float, blas_s: float) -> list[int]:
    """Let the two libraries take these times; returns the rows of each product that is timed."""
    rows: list[int] = []

    def seconds(onednn: Any, blas: Any) -> tuple[float, float]:
        found, expected = onednn(), blas()
        assert torch.allclose(found, expected, atol=1e-3)
        rows.append(len(found))
        return onednn_s, blas_s

    monkeypatch.setattr(gemm, "_seconds", seconds)
    return rows


def model() -> nn.Module:
    """Two shapes that are timed, and one that is too small for it."""
    return nn.Sequential(frozen(400, 300), frozen(300, 400), frozen(400, 300), frozen(2, 3))


@pytest.mark.parametrize(("blas_s", "library"), [(0.5, "blas"), (0.95, "onednn"), (1.0, "onednn"), (2.0, "onednn")])
def test_blas_is_chosen_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch, blas_s: float, library: str):
    timed(monkeypatch, 1.0, blas_s)
    found = choose_gemms(model(), 1000)
    assert [(one.of, one.in_features, one.out_features) for one in found] == [
        ("forward", 400, 300),
        ("backward", 400, 300),
        ("forward", 300, 400),
        ("backward", 300, 400),
    ]  # each shape once; the last layer's products are too small to be timed
    assert {one.library for one in found} == {library}


def test_a_choice_that_was_made_before_is_kept(monkeypatch: pytest.MonkeyPatch):
    rows = timed(monkeypatch, 1.0, 0.5)
    known = GemmChoice("backward", 300, 400, 7, "onednn", 3.0, 2.0)
    found = choose_gemms(model(), 1000, [known, GemmChoice("forward", 9, 9, 9, "blas")])
    assert [one for one in found if one.library == "onednn"] == [known]
    assert (len(found), len(rows)) == (4, 3)


def test_a_library_that_is_asked_for_computes_every_product_untimed(monkeypatch: pytest.MonkeyPatch):
    rows = timed(monkeypatch, 1.0, 2.0)
    found = choose_gemms(model(), 1000, [GemmChoice("forward", 400, 300, 7, "onednn")], "blas")
    assert (len(found), {one.library for one in found}, rows) == (6, {"blas"}, [])


def test_a_wide_weight_is_timed_with_fewer_rows(monkeypatch: pytest.MonkeyPatch):
    rows = timed(monkeypatch, 1.0, 2.0)
    choose_gemms(frozen(64, 200_000, False), 4000)
    assert rows == [round(gemm._MOST_FLOPS / (2 * 64 * 200_000))] * 2


def test_a_narrow_weight_is_timed_with_no_more_rows_than_matter(monkeypatch: pytest.MonkeyPatch):
    """A batch of 2,048 rows of 512 tokens was timed with a million of them: 15 s for a model of 32 dimensions."""
    rows = timed(monkeypatch, 1.0, 2.0)
    choose_gemms(frozen(64, 64), 2048 * 512)
    assert rows == [gemm._MOST_ROWS] * 2
    rows.clear()
    assert choose_gemms(frozen(32, 48), 2048 * 512) == ()
    assert rows == []


def test_what_trains_and_other_dtypes_get_no_choice():
    layer = frozen(400, 300)
    assert choose_gemms(layer.bfloat16(), 1000) == ()
    assert choose_gemms(layer.float().requires_grad_(), 1000) == ()


def test_timing_takes_a_fraction_of_a_second_and_gives_rates():
    found = choose_gemms(frozen(400, 300), 500)
    assert all(one.onednn_gflops and one.blas_gflops and one.rows == 500 for one in found)


def test_a_layer_has_the_libraries_of_its_shape_alone():
    gemms = Gemms((GemmChoice("backward", 4, 3, 9, "blas"), GemmChoice("forward", 3, 4, 9, "blas")))
    assert [gemms.frozen(frozen(*shape)).backward_library for shape in ((4, 3), (3, 4))] == ["blas", "onednn"]
    assert [gemms.frozen(frozen(*shape)).forward_library for shape in ((4, 3), (3, 4))] == ["onednn", "blas"]
