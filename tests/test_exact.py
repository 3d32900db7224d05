"""Layouts are exact: losses, adapter gradients and greedy text do not depend on the layout.

Random example sets with random nesting of prefixes, on small random models of several architectures: grouped key and
value heads, tied and untied heads, scaled, dynamic and long-context rotary positions, sliding windows shorter than the
examples, soft caps, learned positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from executions import evaluate, generate, on_cpu
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from howlow.engine import layouts
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora
from howlow.engine.cpu import attention as cpu_attention
from howlow.engine.layouts import Layout, LossOn
from howlow.engine.loss import per_example, target_losses
from howlow.engine.tokens import TokenizedExample

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 64
MANY = 1024  # compiled kernels kept: products are used where they pay
FAST = (Phase.explicit, Phase.reuse, Phase.generate)  # a model's run is too slow to shrink with
SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
ROPE = {"rope_theta": 10000.0}
SCALED = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ROPE,
    "dynamic": {"rope_type": "dynamic", "factor": 2.0} | ROPE,
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]} | ROPE,
}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SMALL | changes)))


def architecture(name: str) -> Any:
    """A small model with random weights."""
    if name in ("llama", "tied"):
        return llama(tie_word_embeddings=name == "tied")
    if name == "llama3":
        return llama(rope_parameters=SCALED[name] | {"original_max_position_embeddings": 16})
    if name == "dynamic":
        return llama(rope_parameters=SCALED[name], max_position_embeddings=20)
    if name == "longrope":
        config = transformers.Phi3Config(
            **SMALL, rope_parameters=SCALED[name] | {"original_max_position_embeddings": 20}, sliding_window=None
        )
        return transformers.Phi3ForCausalLM(config)
    if name == "sliding mistral":
        return transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, sliding_window=7))
    if name == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL))
    if name == "gemma2":
        small = SMALL | {"num_hidden_layers": 2}
        return transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**small, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=3.0)
        )
    if name == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        config = transformers.Gemma3TextConfig(**SMALL, sliding_window=6, query_pre_attn_scalar=8, layer_types=kinds)
        return transformers.Gemma3ForCausalLM(config)
    if name == "neox":
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL))
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=128, n_embd=32, n_layer=2, n_head=4, eos_token_id=2, **NO_DROPOUT
    )
    return transformers.GPT2LMHeadModel(config)


TARGETS = {"neox": ["query_key_value", "dense"], "gpt2": ["c_attn"], "longrope": ["qkv_proj", "o_proj"]}
NAMES = (
    "llama",
    "tied",
    "llama3",
    "dynamic",
    "longrope",
    "sliding mistral",
    "qwen2",
    "gemma2",
    "gemma3",
    "neox",
    "gpt2",
)


def keep_double(model: Any) -> None:
    """Let norms compute in fp64: transformers' own go through fp32, which is all of the difference that is left."""

    def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
        weight = module.weight + 1 if "Gemma" in type(module).__name__ else module.weight
        epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(norm, module)


@pytest.fixture(autouse=True, scope="module")
def double_softmax() -> Iterator[None]:
    """Likewise the softmax of attention that is written out (Gemma 2)."""
    plain = torch.nn.functional.softmax

    def softmax(x: torch.Tensor, *args: Any, dtype: Any = None, **options: Any) -> torch.Tensor:
        return plain(x, *args, dtype=None if x.dtype == torch.float64 else dtype, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", softmax)
        yield


@cache
def adapted(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    base = architecture(name).to(dtype)
    if dtype == torch.float64:  # spread, so that who sees whom matters; in fp32 rounding would be the difference
        with torch.no_grad():
            for parameter in base.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)
    base.requires_grad_(False)
    targets = TARGETS.get(name, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
    if dtype == torch.float64:
        keep_double(base)
    model = attach_lora(base, rank=3, alpha=6, scaling="standard", target_modules=targets, dropout=0.0, seed=1).to(
        dtype
    )
    for parameter in models.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.3 if dtype == torch.float64 else 0.05)
    return model.train()


TOKEN = st.integers(3, 60)


def part(least: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(TOKEN, min_size=least, max_size=most).map(tuple)


@st.composite
def example_sets(draw: st.DrawFn) -> list[TokenizedExample]:
    """Instruction > paragraph > question > answer, each level present or not, some examples twice."""
    instruction = draw(part(0, 12))
    paragraphs = draw(st.lists(part(0, 20), min_size=1, max_size=3))
    stems = draw(st.lists(part(0, 9), min_size=1, max_size=2))
    found = []
    for index in range(draw(st.integers(1, 6))):
        prompt = instruction + draw(st.sampled_from(paragraphs)) + draw(st.sampled_from(stems)) + draw(part(1, 6))
        found.append(TokenizedExample(str(index), "g", prompt, (*draw(part(0, 6)), 2)))
    if draw(st.booleans()):
        found.append(found[0])
    return found


EXAMPLE = TokenizedExample("0", "g", tuple(range(3, 30)), (*range(30, 40), 2))


def computed(
    model: Any, examples: Sequence[TokenizedExample], layout: Layout, loss_on: LossOn, **options: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each example's loss, and the gradient of the mean over all targets."""
    batch = layouts.lay_out(examples, layout, LENGTH, 0, loss_on)
    with on_cpu(model, full_row=LENGTH, **options) as run, run.batch(batch):
        with run.autocast():
            losses, total = target_losses(model, batch, "targets", 1 / batch.target_tokens)
        total.backward()
    gradients = {name: parameter.grad for name, parameter in models.trainable(model).items()}
    model.zero_grad(set_to_none=True)
    return per_example(losses, batch), gradients


@contextmanager
def attending(as_products: bool) -> Iterator[None]:
    """Attention as products also where it is too small to pay, or never."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "_FLOPS_A_THREAD", 0 if as_products else float("inf"))
        yield


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def zero(gradients: dict[str, torch.Tensor]) -> float:
    """What a gradient that is 0 in exact arithmetic (a query with a single key) may come out as."""
    return 1e-13 * float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())


@pytest.mark.parametrize("name", NAMES)
@given(examples=example_sets(), loss_on=st.sampled_from(["completion", "all"]))
@settings(max_examples=12, phases=FAST)
def test_losses_and_gradients_are_those_of_padded_in_fp64(name: str, examples: Any, loss_on: Any):
    model = adapted(name, torch.float64)
    expected, gradients = computed(model, examples, "padded", loss_on)
    for layout in ("packed", "shared"):
        losses, found = computed(model, examples, layout, loss_on)
        assert relative(losses, expected) < 1e-10
        for key, gradient in gradients.items():
            assert float((found[key] - gradient).norm()) <= 1e-10 * float(gradient.norm()) + zero(gradients), (
                layout,
                key,
            )


@pytest.mark.parametrize("name", NAMES)
@given(examples=example_sets(), as_products=st.booleans())
@settings(max_examples=4, phases=FAST)
def test_gradients_are_those_of_padded_in_fp32(name: str, examples: Any, as_products: bool):
    model = adapted(name, torch.float32)
    expected, gradients = computed(model, examples, "padded", "completion")
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for layout in ("packed", "shared"):
        with attending(as_products):
            losses, found = computed(model, examples, layout, "completion", kernels_kept=MANY)
        assert relative(losses, expected) < 1e-5
        difference = torch.stack([(found[key] - gradients[key]).norm() for key in gradients]).norm()
        assert float(difference / norm) < 1e-5, layout


@pytest.mark.parametrize("precision", ["fp16-autocast", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_under_autocast_queries_and_values_may_differ_in_their_dtype(name: str, precision: str):
    """Rotated queries and keys are fp32 there, values are not."""
    model, examples = adapted(name, torch.float32), [EXAMPLE, EXAMPLE]
    options = {"precision": precision, "kernels_kept": MANY}
    with attending(True):
        expected, _ = computed(model, examples, "padded", "all", **options)
        for layout in ("packed", "shared"):
            losses, gradients = computed(model, examples, layout, "all", **options)
            assert relative(losses, expected) < 2e-2
            assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated", "ignore:.*gradient_checkpointing_disable"
)
@pytest.mark.parametrize("name", ["llama", "qwen2", "neox"])
@given(examples=example_sets(), as_products=st.booleans())
@settings(max_examples=3, phases=FAST)
def test_recomputing_activations_changes_nothing(name: str, examples: Any, as_products: bool):
    model = adapted(name, torch.float32)
    for layout in ("packed", "shared"):
        with attending(as_products):
            losses, plain = computed(model, examples, layout, "completion", kernels_kept=MANY)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers recomputes in training mode alone
        try:
            with attending(as_products):
                again, found = computed(model, examples, layout, "completion", kernels_kept=MANY)
        finally:
            model.gradient_checkpointing_disable()
            model.eval()
        assert relative(again, losses) < 1e-6
        norm = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
        assert all(float((found[key] - plain[key]).norm()) <= 1e-6 * float(norm) for key in plain)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["llama", "sliding mistral", "gemma2", "neox"])
@given(examples=example_sets(), loss_on=st.sampled_from(["completion", "all"]))
@settings(max_examples=4, phases=FAST)
def test_the_kernel_for_gpus_masks_the_same(name: str, examples: Any, loss_on: Any):
    """Forward only: FlexAttention has no backward pass on a CPU; `test_gpu.py` holds its gradients."""
    model = adapted(name, torch.float64)
    batch = layouts.shared(examples, loss_on)
    found = [evaluate(model, batch, attention=kernel) for kernel in ("sdpa", "flex")]
    assert found[1] == pytest.approx(found[0], rel=1e-10)


class Letters:
    """A tokenizer of single letters, enough to read what is written."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(64 + token) for token in ids)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("dynamic", "longrope")])
@given(examples=example_sets(), eos=st.integers(3, 60))
@settings(max_examples=4, phases=FAST)
def test_greedy_text_is_that_of_padded_and_of_transformers(name: str, examples: Any, eos: int):
    model = adapted(name, torch.float64).eval()
    prompts = [example.prompt for example in examples]
    options: dict[str, Any] = {"max_new_tokens": 9, "stop": None, "eos": frozenset({2, eos})}
    texts = {}
    for layout in ("padded", "packed", "shared"):
        rows, _ = generate(model, Letters(), prompts, layout=layout, prompt_length=LENGTH, pad_id=0, **options)
        texts[layout] = rows
    model.train()
    assert texts["packed"] == texts["padded"]
    assert texts["shared"] == texts["padded"]
    ids = torch.tensor([prompts[0]])
    plain = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": [2, eos], "pad_token_id": 0}
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **plain)[0, len(prompts[0]) :].tolist()
    assert texts["shared"][0].text == Letters().decode([token for token in theirs if token not in (2, eos)])
