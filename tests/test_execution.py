"""How a model runs: what is decided from which arguments, and what a context leaves behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import loaded

from howlow.engine import layouts
from howlow.engine.attention import tree_attention
from howlow.engine.attention_context import Limits
from howlow.engine.execution import Execution, decide, running
from howlow.engine.prefix_tree import build_prefix_tree
from howlow.engine.tokens import TokenizedExample

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def decided(precision: Any = "fp32", device: torch.device = CPU, **options: Any) -> Execution:
    return decide(device=device, precision=precision, **options)


@pytest.mark.parametrize(
    ("precision", "trains_base", "storage", "compute", "scales_loss"),
    [
        ("fp32", False, torch.float32, torch.float32, False),
        ("bf16", False, torch.bfloat16, torch.bfloat16, False),
        ("bf16", True, torch.float32, torch.bfloat16, False),
        ("fp16-autocast", False, torch.float32, torch.float16, True),
    ],
)
def test_a_precision_is_a_storage_a_compute_dtype_and_a_scaling(
    precision: Any, trains_base: bool, storage: torch.dtype, compute: torch.dtype, scales_loss: bool
):
    found = decided(precision, trains_base=trains_base)
    assert (found.storage, found.compute, found.scales_loss) == (storage, compute, scales_loss)


def test_frozen_parts_on_a_cpu_run_fused_unless_it_trains_compiled():
    assert decided().fused
    compiled = decided(compiles=True)
    assert (compiled.fused, compiled.compiled) == (False, True)
    assert (compiled.for_evaluation().fused, compiled.for_evaluation().compiled) == (True, False)
    assert decided("bf16").fused == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not decided("bf16", trains_base=True).fused
    assert not decided("fp16-autocast").for_evaluation().fused
    assert not decided(device=CUDA).fused


def test_adapters_run_joined_where_it_is_asked_for_and_in_inference_unless_that_is_fused():
    assert decided("bf16", joins_adapters=True).joined_adapters
    on_cuda = decided("bf16", device=CUDA, joins_adapters=True)
    assert (on_cuda.for_evaluation().joined_adapters, on_cuda.for_generation().joined_adapters) == (True, True)
    assert not decided("bf16", device=CUDA).for_generation().joined_adapters
    fp32 = decided(joins_adapters=True)
    assert (fp32.fused, fp32.for_evaluation().fused) == (False, True), "one code for each adapter"
    assert not fp32.for_generation().joined_adapters


def test_the_next_plainer_way_leaves_out_graphs_then_compiling_then_joined_adapters():
    found, ways = decided("bf16", device=CUDA, compiles=True, graphs=True, joins_adapters=True), []
    while found is not None:
        ways.append((found.graphed, found.compiled, found.joined_adapters))
        found = found.plainer()
    assert ways == [(True, True, True), (False, True, True), (False, False, True), (False, False, False)]


def test_products_are_for_a_cpu_that_keeps_many_kernels_and_computes_in_the_dtype():
    assert decided(kernels_kept=256).attention == "products"
    assert decided(kernels_kept=32).attention == "sdpa"
    takes_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert decided("bf16", kernels_kept=256).attention == ("products" if takes_bf16 else "sdpa")
    assert decided("bf16", kernels_kept=32).attention == "sdpa"
    assert decided("fp16-autocast", kernels_kept=256).attention == "sdpa"
    assert decided(device=CUDA, kernels_kept=256).attention == "sdpa"
    assert decided(attention="own", kernels_kept=256).attention == "own"
    assert decided(device=CUDA, attention="flex", kernels_kept=256).attention == "flex"


def test_generation_follows_the_tokens_so_far_and_is_else_an_evaluation():
    execution = decided(kernels_kept=256, full_row=512, head="all")
    generation = execution.for_generation()
    assert (execution.full_row, execution.for_evaluation().full_row, generation.full_row) == (512, 512, None)
    assert (generation.attention, generation.head, generation.fused) == ("products", "all", True)


@pytest.mark.parametrize("graphs", [True, False])
def test_token_steps_are_graphed_on_cuda_where_training_compiles(graphs: bool):
    """With dropout a training step is not graphed; generation drops nothing."""
    assert decided(device=CUDA, compiles=True, graphs=graphs).for_generation().graphed
    assert not decided(device=CUDA, compiles=True, graphs=graphs).for_evaluation().graphed
    assert not decided(device=CUDA, graphs=graphs).for_generation().graphed
    assert not decided(compiles=True, graphs=graphs).for_generation().graphed


def test_the_facts_are_plain_values():
    assert decided("bf16", attention="flex", device=CUDA, kernels_kept=256).facts() == {
        "device": "cuda",
        "precision": "bf16",
        "storage": "bfloat16",
        "compute": "bfloat16",
        "loss_scaling": False,
        "attention": "flex",
        "kernels_kept": 256,
        "head": "targets",
        "fused": False,
        "joined_adapters": False,
        "compiled": False,
        "graphed": False,
        "quantization": "none",
    }


def test_the_model_is_as_it_was_afterwards(tiny_model: Any):
    model = loaded(tiny_model).requires_grad_(False)
    before, ids = model.config._attn_implementation, torch.tensor([[1, 2, 3]])
    expected = model(input_ids=ids).logits
    examples = [TokenizedExample(str(n), "g", (3, 4, 5), (6, 7 + n)) for n in range(2)]
    batch = layouts.lay_out(examples, "shared", 16, 0, "completion")
    with pytest.raises(ZeroDivisionError), running(model, decided(full_row=16)) as run, run.batch(batch):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before
    assert all("forward" not in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_the_card_of_an_execution_is_torchs_current_one_while_the_model_runs(monkeypatch: pytest.MonkeyPatch):
    """Streams, events and graphs are made on the current card, which is the first one unless somebody says so."""
    entered = list[torch.device]()

    @contextmanager
    def device(one: torch.device) -> Iterator[None]:
        entered.append(one)
        yield
        entered.append(CPU)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", device)
    second = torch.device("cuda:1")
    with running(torch.nn.Linear(2, 2), decided(device=second, attention="own")):
        assert entered == [second]
    assert entered == [second, CPU]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_in_what_autocast_says():
    """As SDPA does: rotary positions leave queries and keys in fp32 where the hidden states are."""
    tree, _, _ = build_prefix_tree([(1, 2, 3), (4, 5)], share=False)
    query, key = torch.randn(2, 1, 2, 5, 16).unbind()
    value = torch.randn(1, 2, 5, 16).bfloat16()
    limits = Limits(scale=0.25, window=None, chunk=None, softcap=None)
    with torch.autocast("cpu", torch.bfloat16):
        flex = tree_attention(tree, "flex", 0).attend(query, key, value, limits)
        sdpa = tree_attention(tree, "sdpa", 0).attend(query, key, value, limits)
    assert flex.dtype == sdpa.dtype == torch.bfloat16
    torch.testing.assert_close(flex, sdpa, rtol=2e-2, atol=2e-2)


def test_a_recording_has_the_masks_of_the_steps_before_it(monkeypatch: pytest.MonkeyPatch):
    """Some releases of transformers make a mask while a CUDA graph is recorded, and none before."""
    from transformers import masking_utils

    from howlow.engine.attention_context import one_sequence_a_row

    own = masking_utils.is_tracing
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert masking_utils.is_tracing(None)
    with one_sequence_a_row():
        assert not masking_utils.is_tracing(None)
        assert masking_utils.is_tracing(torch.ones(2)), "a mask that is given cannot be looked at while it is recorded"
    assert masking_utils.is_tracing is own
