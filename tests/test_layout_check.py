"""The check of a loaded model: which architectures take our masks and positions, and which are told from them.

`tests/test_zoo.py` holds many more architectures against transformers alone.
"""

import random
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from howlow.engine.execution import decide
from howlow.engine.layout_check import UnfitError, draws_at_random, problem_with, truth_about, writing_problem
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
    """What keeps a model from a layout; where losses and gradients hold, what keeps it from writing answers in it."""
    attention: Any = "own" if layout in ("padded", "single") else "sdpa"
    execution = decide(device=torch.device("cpu"), precision="fp32", attention=attention, head=head, full_row=64)
    truth = truth_about(found, examples(), execution)
    said = None if layout == "single" else problem_with(found, layout, truth, execution=execution, pad_id=0)
    return said or writing_problem(found, layout, truth, execution=execution, pad_id=0)


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
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
        ("gptj", "differ from those of the model alone"),  # attention of its own, which no one may replace
        ("jamba", "differ from those of the model alone"),  # some layers keep a state
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
    assert "differ from those of the model alone" in (problem(model("llama"), "shared") or "")


def test_a_model_that_sees_later_tokens_is_refused_whatever_the_layout():
    found = model("llama")
    for layer in found.model.layers:
        layer.self_attn.is_causal = False
    found.config.is_causal = False
    with pytest.raises(UnfitError, match="not causal: a later token changes what it predicts from earlier ones"):
        problem(found, "padded")


def test_padded_is_held_against_the_model_alone_too():
    found = model("llama")
    own = found.model.forward

    def looks_at_the_row(*given: Any, **named: Any) -> Any:
        output = own(*given, **named)
        output.last_hidden_state = output.last_hidden_state * (1 + 0.01 * output.last_hidden_state.shape[1])
        return output

    found.model.forward = looks_at_the_row
    assert "padded losses with the model's own attention differ" in (problem(found, "padded") or "")


@pytest.mark.parametrize("name", ["mamba", "bloom", "gptj", "jamba"])
def test_answers_in_padded_batches_are_the_models_own(name: str):
    """Mamba in fp64: gradients through a state with such weights are so large that some CPUs' fp32 does not do."""
    found = model(name)
    assert problem(found.double() if name == "mamba" else found, "padded") is None


def test_positions_that_follow_the_row_are_found_out_where_answers_are_written():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 40}
    found = transformers.BartForCausalLM(transformers.BartConfig(vocab_size=61, **sizes)).eval()
    for parameter in found.parameters():
        parameter.data.mul_(3)
    found.requires_grad_(False)
    assert problem(found, "padded") == "answers written padded differ from those of the model alone"
    assert problem(found, "single") is None


def test_a_model_whose_own_code_fails_is_told_with_its_words(monkeypatch: pytest.MonkeyPatch):
    found = model("llama")

    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("no more\n  layers")

    monkeypatch.setattr(found.model.layers[1], "forward", fails)
    with pytest.raises(UnfitError, match="its own code fails on a text: ZeroDivisionError: no more layers"):
        problem(found, "padded")


def test_a_lack_of_memory_says_nothing_about_the_model(monkeypatch: pytest.MonkeyPatch):
    found = model("llama")

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(found.model.layers[1], "forward", fails)
    with pytest.raises(torch.OutOfMemoryError):
        problem(found, "padded")


class FeedForwardFirst(LlamaDecoderLayer):
    """Its keys and values depend on what its feed-forward part made of tokens that no target is predicted from."""

    def forward(self, hidden_states: torch.Tensor, **further: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **further)[0]


def test_a_feed_forward_part_that_attention_reads_is_found_out():
    found = model("llama")
    found.model.layers[-1] = FeedForwardFirst(found.config, 1).eval().requires_grad_(False)
    assert "differ from those of the model alone" in (problem(found, "shared") or "")


def test_the_check_leaves_the_model_as_it_was():
    found = model("llama")
    before = found.config._attn_implementation
    assert problem(found, "shared") is None
    assert found.config._attn_implementation == before
    assert not found.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in found.parameters())
