"""No step reads the device: each runs on fake tensors, which have shapes and no values, so that any read raises.

The models are built from their configs alone: made on the meta device, and then given fake weights on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from test_step_graphs import Repeating
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from howlow.engine import layouts
from howlow.engine.adapter import attach_lora
from howlow.engine.decode_graphs import DecodeGraphs, DecodeShape
from howlow.engine.evaluation import evaluation_step
from howlow.engine.execution import Running, decide, running
from howlow.engine.layouts import Layout
from howlow.engine.sampling import most_likely
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import Optimization, Trainer
from howlow.engine.tree_generation import Continuation, lay_out_prompts

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, sliding_window=6, query_pre_attn_scalar=8),
}
PREFIX = tuple(range(3, 20))
EXAMPLES = [TokenizedExample(str(n), "g", (*PREFIX, 30 + n), (*range(40, 44 + n), 2)) for n in range(3)]
PROMPTS = [(*PREFIX, 30), (*PREFIX, 31, 32), (50, 51)]
LAYOUTS: tuple[Layout, ...] = ("padded", "packed", "shared")


def fake(mode: FakeTensorMode, value: Any) -> Any:
    """The same value with fake tensors in the place of real ones."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if isinstance(value, tuple):
        return tuple(fake(mode, one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in fields(value) if field.init and not field.name.startswith("_")]
        return replace(value, **{name: fake(mode, getattr(value, name)) for name in shown})
    return value


def give_fake_weights(mode: FakeTensorMode, model: nn.Module) -> None:
    """Fake parameters and buffers on the CPU for a model on the meta device; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                with mode:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            module._parameters[name] = None if parameter is None else made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                with mode:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def on_fake_tensors(name: str, **options: Any) -> Iterator[tuple[Running, FakeTensorMode]]:
    """A model with an adapter, built from its config alone, in its execution; outside of the mode."""
    with torch.device("meta"):
        base = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).requires_grad_(False)
        modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        model = attach_lora(base, rank=2, alpha=4, scaling="standard", target_modules=modules, dropout=0.0, seed=0)
    mode = FakeTensorMode()
    give_fake_weights(mode, model.train())
    with running(model, decide(device=CPU, precision=options.pop("precision", "fp32"), **options)) as run:
        yield run, mode


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_step_reads_nothing(name: str, layout: Layout):
    batch = layouts.lay_out(EXAMPLES, layout, 32, 0, "completion" if name == "llama" else "all")
    with on_fake_tensors(name, kernels_kept=1024) as (run, mode):
        batches = [fake(mode, batch), fake(mode, batch)]
        with mode:
            trainer = Trainer(run, Optimization(learning_rate=1e-3, total_steps=4))
            moved = [trainer.step(batches) for _ in range(2)]
        assert trainer.steps_done == 2
        assert {key for state in trainer.optimizer.state.values() for key in state} == {"step", "exp_avg", "exp_avg_sq"}
        assert moved[1].loss_sums.shape == (2,)
        assert all(isinstance(part, FakeTensor) for part in (moved[1].loss_sums, moved[1].gradient_norm))
        with pytest.raises(DataDependentOutputException):
            trainer.outcome(moved[1])


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "bf16", "joins_adapters": True},
        {"joins_adapters": True},
        {"head": "all"},
        {"attention": "sdpa", "full_row": 32},
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_form_of_a_step_reads(layout: Layout, options: dict[str, Any]):
    batch = layouts.lay_out(EXAMPLES, layout, 32, 0, "completion")
    with on_fake_tensors("llama", **options) as (run, mode):
        given = fake(mode, batch)
        with mode:
            trainer = Trainer(run, Optimization(learning_rate=1e-3))
            trainer.step([given, given])
            trainer.step([given])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_evaluation_step_reads_nothing(name: str, layout: Layout):
    batch = layouts.lay_out(EXAMPLES, layout, 32, 0, "completion")
    with on_fake_tensors(name, kernels_kept=1024) as (run, mode):
        run.model.eval()
        given = fake(mode, batch)
        with mode:
            losses = evaluation_step(run, given)
    assert losses.shape == (batch.target_tokens,)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("share", [True, False])
def test_a_decode_step_reads_nothing(name: str, share: bool):
    row = lay_out_prompts(PROMPTS, share=share, max_new_tokens=4)
    with on_fake_tensors(name, kernels_kept=1024) as (run, mode):
        run.model.eval()
        given = fake(mode, row)
        with mode, torch.inference_mode():
            continuation = Continuation(run, given)
            tokens, margins = most_likely(continuation.read_prompts())
            assert tokens.shape == margins.shape == (3,)
            tokens, _ = most_likely(continuation.step(row.order, tokens))
            kept = [0, 2]  # one prompt has ended
            tokens, _ = most_likely(continuation.step([row.order[index] for index in kept], tokens[kept]))
    assert tokens.shape == (2,)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recorded_decode_step_reads_nothing_until_the_host_looks(name: str):
    row = lay_out_prompts(PROMPTS, share=True, max_new_tokens=4, keeps_paths=True)
    with on_fake_tensors(name, kernels_kept=1024) as (run, mode):
        run.model.eval()
        given = fake(mode, row)
        with mode, torch.inference_mode():
            graphs = DecodeGraphs(run, [DecodeShape(4, 32)], 4)
            graphs.record(Repeating())
            assert graphs.read_prompts(given).shape == (3, SMALL["vocab_size"])
            assert graphs.step().shape == (4, SMALL["vocab_size"])
            written = graphs.written(0, 2)
            with pytest.raises(DataDependentOutputException):
                written.read()


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_tensors_are_not_read_either(name: str, layout: Layout):
    """transformers does not look at fake tensors where it would look at real ones."""
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).requires_grad_(False)
    model = attach_lora(base, rank=2, alpha=4, scaling="standard", target_modules=["q_proj"], dropout=0.0, seed=0)
    batch = layouts.lay_out(EXAMPLES, layout, 32, 0, "completion")
    with running(model.train(), decide(device=CPU, precision="fp32", kernels_kept=1024)) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-3))
        with Reads() as training:
            trainer.step([batch])
        with Reads() as evaluation:
            evaluation_step(run, batch)
    assert evaluation.count == 0
    assert training.count == len(trainer.parameters)  # AdamW's step counters, which are on the host


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recorded_decode_step_reads_no_real_tensors_either(name: str):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).requires_grad_(False).eval()
    row = lay_out_prompts(PROMPTS, share=True, max_new_tokens=4, keeps_paths=True)
    with torch.inference_mode(), running(model, decide(device=CPU, precision="fp32")) as run:
        graphs = DecodeGraphs(run, [DecodeShape(4, 32)], 4)
        with Reads() as reads:
            graphs.record(Repeating())
            graphs.read_prompts(row)
            graphs.step()
    assert reads.count == 0


def test_a_model_without_values_is_found_to_run_as_one_with_values():
    """Its parts are probed on copies with random weights, so the same parts are fused and cut to what is used."""
    with on_fake_tensors("llama") as (run, _):
        fake_by_token = [type(module).__name__ for module in run._by_token]
        fake_fused = {name for name, module in run.model.named_modules() if "forward" in vars(module)}
    torch.manual_seed(0)
    real = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).requires_grad_(False)
    model = attach_lora(
        real,
        rank=2,
        alpha=4,
        scaling="standard",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        dropout=0.0,
        seed=0,
    )
    with running(model, decide(device=CPU, precision="fp32")) as run:
        assert [type(module).__name__ for module in run._by_token] == fake_by_token == ["LlamaMLP"]
        assert {name for name, module in model.named_modules() if "forward" in vars(module)} == fake_fused
    assert len(fake_fused) > 10
