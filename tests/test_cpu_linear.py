"""Fused parts of a frozen model: its own values and gradients, nothing kept for the base, the rest left alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

from howlow.engine.cpu.patches import fused

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
@settings(max_examples=30)
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


class Attending(nn.Module):
    """Layers with the names of an attention's; `asked` says which is given x, and which x + 1."""

    def __init__(self, asked: str) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(5, 7), nn.Linear(5, 3), nn.Linear(5, 3, bias=False)
        self.asked = asked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given, found = {"same": x, "other": x + 1}, x.sum()
        for word in self.asked.split():
            name, which = word.split(":")
            found = found + getattr(self, f"{name}_proj")(given[which]).square().sum()
        return found


def attending(asked: str) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(
        Attending(asked), LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "k_proj", "v_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    "asked",
    [
        "q:same k:same v:same",
        "v:same q:same k:same",
        "q:same k:other v:other",  # as an attention to another sequence
        "q:same v:same",
        "q:same q:other k:same v:same",
        "q:same",
    ],
)
def test_siblings_give_what_each_gives_alone(asked: str):
    model, x = attending(asked), torch.randn(4, 5)
    expected = [gradient for gradient in run(model, x, False) if gradient is not None]
    with fused(model):
        for _ in range(2):  # the second pass with what the first has learned
            found = [gradient for gradient in run(model, x, False) if gradient is not None]
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Clamping(Attending):
    """Changes in place what its layers give, as OLMo does with `clip_qkv`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return sum((one.clamp_(-0.5, 0.5).square().sum() for one in found), x.sum())


def test_what_is_given_may_be_changed_in_place():
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "k_proj"])
    torch.manual_seed(0)
    model, x = get_peft_model(Clamping(""), config), torch.randn(2, 4, 5)
    for found, expected in zip(run(model, x, True), run(model, x, False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def rotation(shape: tuple[int, ...]) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    angles = torch.rand((1, shape[2], shape[3] // 2), generator=chance).repeat(1, 1, 2)
    return [*(torch.randn(shape, generator=chance) for _ in range(2)), angles.cos(), angles.sin()]


@given(heads=st.integers(1, 3), tokens=st.integers(1, 5), half=st.integers(1, 4))
@settings(max_examples=20)
def test_rotations_are_the_models_own(heads: int, tokens: int, half: int):
    query, key, cos, sin = rotation((1, heads, tokens, 2 * half))
    own, weights = modeling_llama.apply_rotary_pos_emb, torch.randn(1, heads, tokens, 2 * half)

    def run_it() -> list[torch.Tensor]:
        leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
        rotated = modeling_llama.apply_rotary_pos_emb(*leaves, cos, sin)
        sum((part * weights).sum() for part in rotated).backward()
        return [*(part.detach() for part in rotated), *(leaf.grad for leaf in leaves)]

    expected = run_it()
    with fused(modeling_llama.LlamaForCausalLM(tiny_llama())):
        assert modeling_llama.apply_rotary_pos_emb is not own
        found = run_it()
        double = modeling_llama.apply_rotary_pos_emb(*(part.double() for part in (query, key, cos, sin)))
    assert modeling_llama.apply_rotary_pos_emb is own
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert double[0].dtype == torch.float64


def tiny_llama() -> Any:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return modeling_llama.LlamaConfig(vocab_size=8, **small)


def test_a_rotation_of_interleaved_halves_stays_the_models_own():
    own = modeling_cohere.apply_rotary_pos_emb
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = modeling_cohere.CohereConfig(vocab_size=8, **small, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with fused(modeling_cohere.CohereForCausalLM(config)):
        assert modeling_cohere.apply_rotary_pos_emb is own
