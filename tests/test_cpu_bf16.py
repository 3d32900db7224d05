"""Fused parts of a base in bf16: as close to fp64 as the model's own code under autocast, with gradients in fp32."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from howlow.engine import layouts
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora
from howlow.engine.cpu import pointwise
from howlow.engine.execution import Execution, decide, running
from howlow.engine.loss import target_losses
from howlow.engine.tokens import TokenizedExample

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 on this CPU"),
]

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, sliding_window=16, query_pre_attn_scalar=16),
}
EXAMPLES = [TokenizedExample(str(n), "g", (*range(3, 40), 60 + n), (*range(50, 53 + n), 2)) for n in range(5)]


def adapted(name: str) -> Any:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).bfloat16().requires_grad_(False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    model = attach_lora(base, rank=3, alpha=6, scaling="standard", target_modules=targets, dropout=0.0, seed=1)
    for parameter in models.trainable(model).values():
        nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients(model: Any, execution: Execution) -> tuple[float, Tensor]:
    """The loss and all gradients of a row; those of parameters in fp32 are in fp32."""
    batch = layouts.lay_out(EXAMPLES, "shared", 64, 0, "completion")
    model.zero_grad(set_to_none=True)
    with running(model, execution) as run, run.batch(batch):
        with run.autocast():
            _, loss = target_losses(model, batch, "targets", 1 / batch.target_tokens)
        loss.backward()
    found = [parameter.grad for parameter in models.trainable(model).values()]
    assert all(one is not None and one.dtype == next(iter(models.trainable(model).values())).dtype for one in found)
    return float(loss.detach()), torch.cat([one.double().flatten() for one in found if one is not None])


def execution(precision: Any, **options: Any) -> Execution:
    return decide(device=torch.device("cpu"), precision=precision, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_as_close_to_fp64_as_the_models_own_code(name: str):
    model = adapted(name)
    exact_loss, exact = gradients(copy.deepcopy(model).double(), replace(execution("fp32"), fused=False))
    own_loss, own = gradients(model, replace(execution("bf16"), fused=False))
    fused_loss, found = gradients(model, execution("bf16", kernels_kept=256))
    assert float((found - exact).norm()) <= 1.2 * float((own - exact).norm())
    assert abs(fused_loss - exact_loss) <= max(2 * abs(own_loss - exact_loss), 2e-3 * exact_loss)


def by(function: Callable[..., Tensor], x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(dy.to(y.dtype))
    assert x.grad is not None
    return [y.detach().double(), x.grad.double()]


@given(
    shape=st.sampled_from([(1,), (7,), (2, 3), (1, 2, 2)]),
    width=st.integers(1, 40),
    size=st.sampled_from([0.01, 1.0, 50.0]),
    in_cache=st.sampled_from([1, 64, 1 << 17]),
)
@settings(max_examples=30)
def test_a_norm_sums_in_fp32_whatever_its_parts(shape: tuple[int, ...], width: int, size: float, in_cache: int):
    chance = torch.Generator().manual_seed(0)
    x = (torch.randn(*shape, width, generator=chance) * size).bfloat16()
    weight, dy = (
        torch.randn(width, generator=chance).bfloat16(),
        torch.randn(*shape, width, generator=chance).bfloat16(),
    )

    def exact(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointwise, "_IN_CACHE", in_cache)
        found = by(lambda x: pointwise.RmsNorm.apply(x, weight, 1e-6), x, dy)
    for one, other in zip(found, by(exact, x.double(), dy), strict=True):
        assert float((one - other).abs().max()) <= 2**-7 * float(other.abs().max()) + 1e-6
