"""Fused forms of whole modules: only where they give what the module's own code gives, whatever its parts are."""

from typing import Any

import pytest
import torch
from torch import nn

from howlow.engine.cpu.patches import fused

pytestmark = pytest.mark.usefixtures("one_thread")


class PlainRMSNorm(nn.Module):
    """A norm whose weight is a parameter, a buffer, or neither."""

    def __init__(self, weight: Any, scales: bool = True) -> None:
        super().__init__()
        if isinstance(weight, nn.Parameter) or weight.shape[0] % 2:
            self.weight = weight
        else:
            self.register_buffer("weight", weight)
        self.eps, self.scales = 1e-6, scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return y * self.weight if self.scales else y


@pytest.mark.parametrize("width", [8, 7])
@pytest.mark.parametrize("is_parameter", [True, False])
def test_a_norm_is_fused_wherever_its_weight_is_kept(width: int, is_parameter: bool):
    weight: Any = torch.rand(width) + 0.5
    norm = PlainRMSNorm(nn.Parameter(weight, requires_grad=False) if is_parameter else weight)
    x = torch.randn(3, width)
    expected = norm(x)
    with fused(nn.ModuleList([norm])):
        assert "forward" in norm.__dict__
        torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)


def test_a_norm_that_is_given_another_width_than_its_weights_runs_its_own_code():
    """As in FalconMamba, whose norms without a scale keep a weight of ones that nothing reads."""
    norm, x = PlainRMSNorm(torch.ones(8), scales=False), torch.randn(3, 2)
    with fused(nn.ModuleList([norm])):
        torch.testing.assert_close(norm(x), x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_a_probe_that_fails_leaves_the_modules_own_code():
    class OddRMSNorm(PlainRMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return next(iter([]))  # type: ignore[no-any-return]

    norm = OddRMSNorm(torch.ones(8))
    with fused(nn.ModuleList([norm])):
        assert "forward" not in norm.__dict__
