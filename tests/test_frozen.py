"""Fused frozen layers: PEFT's values and gradients, nothing kept for the base, and hands off what is not plain."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from howlow.engine.fused import fused

pytestmark = pytest.mark.usefixtures("one_thread")


class Two(nn.Module):
    """An adapted layer with a bias, and a plain one behind it."""

    def __init__(self, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, out, bias=bias)
        self.second = nn.Linear(out, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(width: int = 5, out: int = 7, bias: bool = True, rank: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=3, target_modules=["first"], **options)
    model = get_peft_model(Two(width, out, bias), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def run(model: Any, x: torch.Tensor, is_fused: bool) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    if is_fused:
        with fused(model):
            y = model(x)
            y.square().sum().backward()
    else:
        y = model(x)
        y.square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@given(
    width=st.integers(1, 9),
    out=st.integers(1, 9),
    rank=st.integers(1, 12),
    bias=st.booleans(),
    shape=st.sampled_from([(1,), (4,), (2, 3), (1, 2, 2)]),
)
@settings(deadline=None, max_examples=30)
def test_values_and_gradients_are_pefts(width: int, out: int, rank: int, bias: bool, shape: tuple[int, ...]):
    model, x = adapted(width, out, bias, rank), torch.randn(*shape, width)
    for found, expected in zip(run(model, x, True), run(model, x, False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_first_layer_computes_no_gradient_of_its_input():
    model = adapted()
    with fused(model):
        model(torch.randn(4, 5)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=["dropout", "dora", "bias"]
)
def test_what_is_not_plain_runs_its_own_code(options: dict[str, Any]):
    model = adapted(**options)
    with fused(model):
        assert "forward" not in vars(model.base_model.model.first)
        assert "forward" in vars(model.base_model.model.second)


def test_layers_that_train_and_other_dtypes_are_left_alone():
    model = Two(4, 4, True)
    with fused(model):
        assert "forward" not in vars(model.first)
    model.requires_grad_(False).double()
    with fused(model):
        assert "forward" not in vars(model.first)


def test_the_model_is_as_it_was_afterwards():
    model = adapted()
    with pytest.raises(ZeroDivisionError), fused(model):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())
