"""The check of a loaded model: which architectures take our masks and positions, and which are told from them."""

import random
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from howlow.engine.execution import decide
from howlow.engine.layout_check import draws_at_random, problem_with
from howlow.engine.tokens import TokenizedExample

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32}


def examples() -> list[TokenizedExample]:
    draw = random.Random(0)
    return [
        TokenizedExample(str(index), "g", tuple(draw.randint(3, 60) for _ in range(20 + index)), (5, 6, 2))
        for index in range(6)
    ]


def model(name: str) -> Any:
    torch.manual_seed(0)
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
        ),
        "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**SMALL)),
        "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**SMALL, logits_scaling=3.0)),
        "starcoder2": lambda: transformers.Starcoder2ForCausalLM(
            transformers.Starcoder2Config(**SMALL, sliding_window=6)
        ),
        "bloom": lambda: transformers.BloomForCausalLM(transformers.BloomConfig(**FEW, n_layer=2, n_head=4)),
        "mamba": lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(**FEW, num_hidden_layers=2, state_size=4)
        ),
        "gpt_oss": lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
        ),
        "gptj": lambda: transformers.GPTJForCausalLM(
            transformers.GPTJConfig(vocab_size=61, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=128)
        ),
        "jamba": lambda: transformers.JambaForCausalLM(
            transformers.JambaConfig(
                **SMALL, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1, num_experts=2
            )
        ),
    }[name]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return made.requires_grad_(False)


def problem(found: Any, layout: Any, head: Any = "targets") -> str | None:
    execution = decide(device=torch.device("cpu"), precision="fp32", head=head, full_row=64)
    return problem_with(found, layout, examples(), execution=execution, pad_id=0)


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "phi", "granite", "starcoder2"])
def test_models_that_attend_by_position_take_every_layout(name: str, layout: str):
    assert problem(model(name), layout) is None
    assert problem(model(name), layout, head="all") is None


def test_a_model_that_does_not_name_its_decoder_is_told_so_with_either_head():
    config = transformers.Llama4TextConfig(
        **SMALL, head_dim=8, intermediate_size_mlp=40, num_local_experts=2, attention_chunk_size=16
    )
    found = transformers.Llama4ForCausalLM(config).eval().requires_grad_(False)
    for head in ("targets", "all"):
        said = problem(found, "shared", head) or ""
        assert "does not name its decoder" in said
        assert "training.head" not in said


def test_dropout_that_no_module_names_is_found_out():
    silent = transformers.OPTConfig(**{**FEW, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4})
    silent.dropout, silent.word_embed_proj_dim = 0.1, 32
    drops = transformers.OPTForCausalLM(silent).eval()
    assert draws_at_random(drops)
    assert not drops.training
    silent.dropout = 0.0
    assert not draws_at_random(transformers.OPTForCausalLM(silent))
    assert not draws_at_random(model("llama"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bloom", "takes no positions"),  # ALiBi: scores biased by the row
        ("mamba", "takes no positions"),  # a state along the row
        ("gpt_oss", "s_aux"),  # attention sinks
        ("gptj", "differ from those of padded"),  # attention of its own, which no one may replace
        ("jamba", "differ from those of padded"),  # some layers keep a state
    ],
)
@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_models_that_cannot_are_found_out(name: str, why: str, layout: str):
    assert why in (problem(model(name), layout) or "")


def test_attention_that_looks_across_examples_is_found_out(monkeypatch: pytest.MonkeyPatch):
    from howlow.engine import attention

    def careless(query: Any, key: Any, value: Any, mask: Any, limits: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=False, enable_gqa=True)

    monkeypatch.setattr(attention, "sdpa", careless)
    assert "differ from those of padded" in (problem(model("llama"), "shared") or "")


class FeedForwardFirst(LlamaDecoderLayer):
    """Its keys and values depend on what its feed-forward part made of tokens that no target is predicted from."""

    def forward(self, hidden_states: torch.Tensor, **further: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **further)[0]


def test_a_feed_forward_part_that_attention_reads_is_found_out():
    found = model("llama")
    found.model.layers[-1] = FeedForwardFirst(found.config, 1).eval().requires_grad_(False)
    assert "differ from those of padded" in (problem(found, "shared") or "")


def test_the_check_leaves_the_model_as_it_was():
    found = model("llama")
    before = found.config._attn_implementation
    assert problem(found, "shared") is None
    assert found.config._attn_implementation == before
    assert not found.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in found.parameters())
