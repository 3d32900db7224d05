"""The last layer's feed-forward part runs for the tokens that are read, and for no others."""

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import transformers
from executions import on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from howlow.engine import layouts
from howlow.engine import model as models
from howlow.engine.last_layer import modules_by_token, only_rows
from howlow.engine.loss import target_losses
from howlow.engine.tokens import TokenizedExample

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(2, 14).view(2, 6)


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **options)).double().requires_grad_(False)


def last_layer_of(model: Any, rows: torch.Tensor) -> AbstractContextManager[None]:
    return only_rows(modules_by_token(model), rows)


def hidden_states(model: Any) -> torch.Tensor:
    return models.decoder_of(model)(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)


class Seen:
    """The shapes that a module is given."""

    def __init__(self, module: nn.Module) -> None:
        self.shapes: list[tuple[int, ...]] = []
        module.register_forward_pre_hook(lambda _, given: self.shapes.append(tuple(given[0].shape)))


@given(rows=st.lists(st.integers(0, 11), min_size=1, unique=True))
@settings(max_examples=20)
def test_what_is_read_is_what_it_would_be(rows: list[int]):
    model, read = llama(), torch.tensor(rows)
    expected = hidden_states(model)
    with last_layer_of(model, read):
        found = hidden_states(model)
    torch.testing.assert_close(found[read], expected[read], rtol=1e-13, atol=1e-13)
    assert torch.equal(hidden_states(model), expected)


def test_the_others_are_not_computed():
    model, read = llama(), torch.tensor([3, 7])
    with last_layer_of(model, read):
        first, last = (Seen(layer.mlp.down_proj) for layer in model.model.layers)
        attention = Seen(model.model.layers[1].self_attn.o_proj)
        hidden_states(model)
    assert first.shapes == [(2, 6, 24)]
    assert last.shapes == [(1, 2, 24)]
    assert attention.shapes == [(2, 6, 16)]


def test_a_loss_of_a_shared_row_computes_its_predictors_alone():
    model = llama()
    examples = [TokenizedExample(str(n), "g", (2, 3, 4, 5, 6, 7, 8, 9, 10), (11, 12 + n)) for n in range(3)]
    batch = layouts.lay_out(examples, "shared", 32, 0, "completion")
    seen = Seen(model.model.layers[1].mlp.up_proj)
    with on_cpu(model, head="targets") as run, run.batch(batch):
        target_losses(model, batch, "targets")
    with on_cpu(model, head="all") as run, run.batch(batch):
        target_losses(model, batch, "all")
    assert [shape[1] for shape in seen.shapes if shape[1] != 6][-2:] == [
        batch.predictors.numel(),
        batch.computed_tokens,
    ]
    assert batch.predictors.numel() < batch.computed_tokens


def test_nothing_is_drawn_and_the_mode_is_kept():
    class Dropping(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.dropout = inner, nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dropout(self.inner(x))

    model = llama()
    layer = model.model.layers[1]
    layer.mlp = Dropping(layer.mlp)
    model.train()
    before = torch.get_rng_state()
    with last_layer_of(model, torch.tensor([0])):
        assert torch.equal(torch.get_rng_state(), before)
        assert layer.mlp.dropout.training
        seen = Seen(layer.mlp.inner)
        hidden_states(model)
    assert seen.shapes == [(1, 1, 16)]


class Shifted(nn.Module):
    """Lets each token see the one before it, as RWKV's channel mix does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + torch.nn.functional.pad(x, (0, 0, 1, -1)))


class Two(nn.Module):
    """Gives two things, as an MoE block gives its router's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x), x


@pytest.mark.parametrize("part", [Shifted, Two])
def test_what_mixes_tokens_or_gives_more_runs_whole(part: type[nn.Module]):
    model = llama()
    model.model.layers[1].mlp = part().double()
    with last_layer_of(model, torch.tensor([0])):
        assert not model.model.layers[1].mlp._forward_hooks


def test_a_part_given_more_than_hidden_states_runs_whole():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
            return self.linear(x) * factor

    model = llama()
    part = model.model.layers[1].mlp = Scaled().double()
    with last_layer_of(model, torch.tensor([0])):
        x = torch.randn(1, 4, 16, dtype=torch.float64)
        torch.testing.assert_close(part(x, factor=2.0), 2 * part.linear(x))
        assert float(part(x)[0, 1:].detach().abs().max()) == 0


def test_a_decoder_with_two_stacks_and_a_compiled_one_run_whole():
    model = llama()
    model.model.further = nn.ModuleList([nn.Linear(16, 16)])
    with last_layer_of(model, torch.tensor([0])):
        assert not model.model.layers[1].mlp._forward_hooks
    model = llama()
    model.model.layers[1]._compiled_call_impl = lambda: None  # as nn.Module.compile leaves it
    with last_layer_of(model, torch.tensor([0])):
        assert not model.model.layers[1].mlp._forward_hooks


def test_layers_with_both_parts_side_by_side_are_found_too():
    config = transformers.GPTNeoXConfig(**SMALL, use_parallel_residual=True)
    model = transformers.GPTNeoXForCausalLM(config).double().requires_grad_(False).eval()
    expected = hidden_states(model)
    with last_layer_of(model, torch.tensor([4])):
        seen = Seen(model.gpt_neox.layers[1].mlp.dense_h_to_4h)
        found = hidden_states(model)
    assert seen.shapes == [(1, 1, 16)]
    torch.testing.assert_close(found[4], expected[4], rtol=1e-12, atol=1e-12)
