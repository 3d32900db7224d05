"""Layers are traced whole by torch's compiler, FlexAttention included, and a training compiles each kind of them once.

The backend is `aot_eager`: what is traced, forward and backward, runs as it is. FlexAttention refuses gradients on a
CPU because its compiled kernel has none there; the plain code that is traced has them.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, partialmethod
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from executions import on_cpu
from peft.tuners.lora.layer import Linear as LoraLayer
from test_adapters import adapted, in_bf16
from test_decode_graphs import continued
from test_exact import adapted as small
from test_step_graphs import Repeating
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from howlow.engine import buckets, compiled_layers, layouts, order, step_check
from howlow.engine.attention import sdpa
from howlow.engine.attention_context import Limits
from howlow.engine.cuda import attention
from howlow.engine.decode_check import trusted_graphs
from howlow.engine.decode_graphs import DecodeGraphs, decode_shapes
from howlow.engine.execution import Precision, decide
from howlow.engine.layouts import Batch
from howlow.engine.prefix_tree import added_mask, build_prefix_tree, within_limits
from howlow.engine.quantization import Quantization, QuantizedLinear
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import Optimization, Trainer
from howlow.engine.tree_generation import lay_out_prompts
from howlow.errors import UserError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # from within the tracer
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # likewise
]
LAYERS, OWN_COMPILE = 3, torch.nn.Module.compile
recomputing = pytest.mark.skipif(
    not compiled_layers._recomputing(), reason="this version of torch compiles no layer that recomputes its activations"
)
EXAMPLES, STEP_SIZE, LENGTH = 96, 16, 512


@pytest.fixture(autouse=True)
def _gradients_of_flex_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts what is compiled in an execution with compiled layers; a graph break is an error."""
    found = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(OWN_COMPILE, backend=found, fullgraph=True))
    return found


def squad(folder: Path) -> list[TokenizedExample]:
    """Real questions and their paragraphs, a token a word."""
    document = json.loads((folder / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))
    found: list[TokenizedExample] = []
    for number, paragraph in enumerate(one for article in document["data"] for one in article["paragraphs"]):
        for asked in paragraph["qas"]:
            prompt, answer = ids(f"{paragraph['context']} {asked['question']}"), ids(asked["answers"][0]["text"])
            if len(prompt) + len(answer) < LENGTH:
                found.append(TokenizedExample(asked["id"], str(number), prompt, (*answer, 2)))
        if len(found) >= EXAMPLES:
            return found[:EXAMPLES]
    raise AssertionError("the data have fewer questions")


def ids(text: str) -> tuple[int, ...]:
    return tuple(3 + zlib.crc32(word.encode()) % 58 for word in text.split())


def epoch(examples: Sequence[TokenizedExample]) -> tuple[list[Batch], int]:
    """The filled batches of an epoch in `shared`, and how many shapes they have."""
    steps = order.steps([example.group for example in examples], "groups", 0, 1, STEP_SIZE)
    parts = [[examples[index] for index in step] for step in steps]
    sizes = [buckets.size_of(part, "shared", LENGTH, "completion") for part in parts]
    shapes, batches = buckets.choose_shapes(sizes, fills_rows=True), []
    for part, size in zip(parts, sizes, strict=True):
        bucket = shapes.of(size)
        assert bucket is not None
        batches.append(buckets.fill(layouts.lay_out(part, "shared", LENGTH, 0, "completion"), bucket, 0))
    return batches, len({batch.input_ids.shape for batch in batches})


@pytest.mark.parametrize(("name", "kinds"), [("llama", 1), ("qwen3", 1), ("gemma2", 2)])
def test_an_epoch_of_squad_compiles_once_for_each_kind_of_layer(
    name: str, kinds: int, real_data: Path, counter: CompileCounterWithBackend
):
    """Whatever shapes its batches have; Gemma 2's layers with and without a sliding window are two kinds."""
    batches, shapes = epoch(squad(real_data))
    assert len(batches) == EXAMPLES // STEP_SIZE
    assert shapes > 2
    losses = []
    for options in ({"attention": "flex", "compiles": True, "joins_adapters": True}, {"attention": "sdpa"}):
        with on_cpu(in_bf16(adapted(name, layers=LAYERS)), "bf16", **options) as run:
            trainer = Trainer(run, Optimization(learning_rate=1e-3))
            losses.append([trainer.outcome(trainer.step([batch])).loss for batch in batches])
    assert counter.frame_count == kinds < LAYERS
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@recomputing
def test_layers_that_recompute_their_activations_are_compiled_too(real_data: Path, counter: CompileCounterWithBackend):
    """They keep their inputs for the pass backward; all that they compute would be seven times as much."""
    batch = epoch(squad(real_data))[0][0]
    compiled, compilations = passed(batch, compiles=True, recomputes=True), counter.frame_count
    plain, whole = passed(batch, compiles=False, recomputes=True), passed(batch, compiles=True, recomputes=False)
    assert compilations == 1
    assert compiled.loss == pytest.approx(plain.loss, rel=1e-2)
    assert step_check.difference(compiled.gradients, plain.gradients) < step_check.LARGEST_DIFFERENCE["bf16"]
    assert compiled.kept_bytes < 1.3 * plain.kept_bytes
    assert compiled.kept_bytes < whole.kept_bytes / 4


@dataclass(frozen=True)
class Pass:
    """A pass of three layers; kept_bytes: what the pass forward keeps for the one backward, without the weights."""

    loss: float
    gradients: list[torch.Tensor]
    kept_bytes: int


def recompute_activations(model: Any) -> None:
    recompute = {"use_reentrant": False, "preserve_rng_state": False}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)


def passed(batch: Batch, *, compiles: bool, recomputes: bool) -> Pass:
    model = in_bf16(adapted("llama", layers=LAYERS)).train()
    if recomputes:
        recompute_activations(model)
    kept: dict[int, int] = {}

    def keep(one: torch.Tensor) -> torch.Tensor:
        storage = one.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return one

    with on_cpu(model, "bf16", attention="flex" if compiles else "sdpa", compiles=compiles, joins_adapters=True) as run:
        trainer = Trainer(run, Optimization(learning_rate=0.0))
        trainer.accumulate(batch, torch.tensor(1.0))  # compiles
        weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
        trainer.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            loss = trainer.accumulate(batch, torch.tensor(1.0))
    gradients = [one.grad for one in trainer.parameters.values() if one.grad is not None]
    return Pass(float(loss), gradients, sum(size for place, size in kept.items() if place not in weights))


@pytest.mark.parametrize("stays", ["traced", "on the instance", "disabled", "broken", "without the option"])
@pytest.mark.parametrize("graphed", [True, False])
def test_layers_are_said_to_be_compiled_if_torch_has_compiled_them(
    monkeypatch: pytest.MonkeyPatch, stays: str, graphed: bool
):
    """What torch cannot trace it runs as it is, without a word. That has been recorded as compiled."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(OWN_COMPILE, backend=counter))
    monkeypatch.setattr(step_check, "PAYS", 1e9)  # a stand-in saves no time
    model = adapted("llama", layers=LAYERS).train()
    if stays == "disabled":
        monkeypatch.setattr(LlamaDecoderLayer, "forward", torch.compiler.disable(LlamaDecoderLayer.forward))
    if stays == "on the instance":
        for layer in model.get_decoder().layers:
            layer.forward = partial(lambda own, *given, **named: own(*given, **named), layer.forward)
    if stays in ("broken", "without the option"):
        recompute_activations(model)
    if stays == "broken":
        own = LlamaMLP.forward
        monkeypatch.setattr(LlamaMLP, "forward", lambda *given: (torch._dynamo.graph_break(), own(*given))[1])
    if stays == "without the option":  # as in older versions of torch
        monkeypatch.setattr(compiled_layers, "_recomputing", dict)
    whole = decide(device=torch.device("cpu"), precision="fp32", attention="own", compiles=True, joins_adapters=True)
    examples = [TokenizedExample(str(n), "g", tuple(range(3, 20 + n)), (7, 8, 2)) for n in range(4)]
    batch = layouts.lay_out(examples, "padded", 32, 0, "completion")
    for _ in range(2):  # also when all is compiled already
        found, problems = step_check.trusted(model, replace(whole, graphed=graphed), batch, batch, Repeating)
        is_traced = stays in ("traced", "on the instance")
        assert (found.compiled, found.graphed) == (is_traced, graphed)
        assert problems == (() if is_traced else (step_check.UNTRACED,))
        assert (counter.frame_count > 0) == is_traced


def test_attention_that_is_compiled_by_itself_has_all_its_forms(monkeypatch: pytest.MonkeyPatch):
    """More forms than torch's own limit, beyond which it would run uncompiled, where a long row has no memory."""
    own, counter = torch.compile, CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", lambda function, **options: own(function, backend=counter, **options))
    compiled = attention._compiled.__wrapped__()
    monkeypatch.setattr(torch, "compile", own)
    generator, forms = torch.Generator().manual_seed(0), 0
    for blocks, window, cap in product((1, 2), (None, 9), (None, 7.0, 8.0)):
        length, limits = blocks * attention.BLOCK - 9, Limits(0.25, window, None, cap)
        given = [torch.randn((1, 2, length, 16), generator=generator) for _ in range(3)]
        tree, _, _ = build_prefix_tree([list(range(length))], share=False)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "flex_attention", compiled)  # as where no layer is compiled on a GPU
            found = attention.FlexTreeAttention(tree).attend(*given, limits)
        here, there = torch.arange(length)[:, None], torch.arange(length)[None]
        mask = added_mask(within_limits(there <= here, here, there, window, None), torch.float32)
        torch.testing.assert_close(found, sdpa(*given, mask[None, None], limits), rtol=1e-4, atol=1e-5)
        forms += 1
    assert counter.frame_count == forms == 12


def test_rows_that_examples_share_go_through_one_recording(real_data: Path):
    """Batches of different paragraphs and one shape: what is recorded keeps nothing of the first one's tree."""
    batches, _ = epoch(squad(real_data)[:64])
    found = []
    for recorder in (None, Repeating()):
        with on_cpu(adapted(), attention="flex") as run:
            trainer = Trainer(run, Optimization(learning_rate=1e-2))
            if recorder is not None:
                by_shape = {batch.input_ids.shape: batch for batch in reversed(batches)}
                trainer.record(recorder, list(by_shape.values()))
                assert len(by_shape) < len(batches), "one recording is for several batches"
            found.append([trainer.outcome(trainer.step([batch])).loss for batch in batches])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


# -- generation --------------------------------------------------------------------------------------------------------

PROMPTS = [
    [(*(3 + 7 * place % 50 for place in range(length + row)), 6 + row) for row in range(rows)]
    for length, rows in ((20, 3), (90, 2), (150, 3), (260, 2))
]
NEW = 6


@pytest.mark.parametrize(
    ("name", "kinds", "precision"),
    [("llama", 1, "bf16"), ("qwen3", 1, "fp32"), pytest.param("gemma2", 2, "fp32", marks=pytest.mark.exhaustive)],
)
def test_token_steps_compile_once_for_each_kind_of_layer(
    name: str, kinds: int, precision: Precision, counter: CompileCounterWithBackend
):
    """Whatever layer it is and whatever shape it is recorded for; and the texts are those of plain steps."""
    model = adapted(name, layers=LAYERS).eval()
    model = in_bf16(model) if precision == "bf16" else model
    shapes, found = decode_shapes(PROMPTS, NEW), []
    assert len(shapes) > 1
    with torch.inference_mode(), on_cpu(model, precision, attention="flex", joins_adapters=True) as run, run.autocast():
        graphs = DecodeGraphs(run, shapes, NEW, compiles=True)
        graphs.record(Repeating())
        assert graphs.is_compiled
        assert counter.frame_count == kinds < LAYERS
        for prompts in PROMPTS:
            plain, ours = (continued(run, prompts, one, max_new_tokens=NEW)[0] for one in (None, graphs))
            found.append(ours)
            assert [row.text for row in ours] == [row.text for row in plain]
    assert len({row.text for rows in found for row in rows}) > 1
    # Rows of one block and longer ones are two forms; the last layer, whose rows are cut, is not compiled.
    assert counter.frame_count <= kinds + 2 * kinds
    model.train()


def test_compiled_steps_keep_their_keys_where_they_are(monkeypatch: pytest.MonkeyPatch):
    """What is compiled writes into the slots. A copy of all slots a step would take longer than the step."""
    written, own = list[str](), torch.nn.Module.compile

    def compile_noting(self: torch.nn.Module, *, dynamic: bool | None = None) -> None:
        own(self, backend=noting, fullgraph=True, dynamic=dynamic)

    def noting(graph: torch.fx.GraphModule, given: Any) -> Any:
        written.extend(str(node.target) for node in graph.graph.nodes if node.op in ("call_function", "call_method"))
        return graph

    monkeypatch.setattr(torch.nn.Module, "compile", compile_noting)
    model = adapted(layers=LAYERS).eval()
    with torch.inference_mode(), on_cpu(model, joins_adapters=True) as run:
        graphs = DecodeGraphs(run, decode_shapes(PROMPTS, NEW), NEW, compiles=True)
        graphs.record(Repeating())
    assert written.count("index_put_") == 2
    assert "clone" not in written


def quantised(kind: Quantization) -> Any:
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed here")
    model = adapted(layers=LAYERS)
    for layer in (one for one in model.modules() if isinstance(one, LoraLayer)):
        dense = layer.base_layer
        layer.base_layer = QuantizedLinear(dense.weight, dense.bias, kind, double=True)
    return model


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_training_over_a_quantised_base_is_traced_whole(kind: Quantization, counter: CompileCounterWithBackend):
    examples = [TokenizedExample(str(n), "g", tuple(range(3, 20 + n)), (7, 8, 2)) for n in range(4)]
    batches = [layouts.lay_out(part, "shared", LENGTH, 0, "completion") for part in (examples, examples[:2])]
    losses = []
    for compiles in (True, False):
        with on_cpu(quantised(kind), attention="flex", joins_adapters=True, compiles=compiles) as run:
            trainer = Trainer(run, Optimization(learning_rate=1e-2))
            losses.append([trainer.outcome(trainer.step([batch])).loss for batch in batches])
    assert counter.frame_count == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_steps_over_a_quantised_base_are_traced_whole(kind: Quantization, counter: CompileCounterWithBackend):
    model = quantised(kind).eval()
    with torch.inference_mode(), on_cpu(model, joins_adapters=True) as run:
        graphs = DecodeGraphs(run, decode_shapes(PROMPTS, NEW), NEW, compiles=True)
        graphs.record(Repeating())
        assert counter.frame_count == 1
        for prompts in PROMPTS:
            plain, ours = (continued(run, prompts, one, max_new_tokens=NEW)[0] for one in (None, graphs))
            assert [row.text for row in ours] == [row.text for row in plain]


def test_layers_that_each_need_a_form_of_their_own_are_refused(
    counter: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
):
    """And not compiled for minutes, nor left uncompiled where the record says that they are compiled."""
    model = adapted(layers=LAYERS).eval()
    for number, layer in enumerate(one for one in model.modules() if isinstance(one, LlamaAttention)):
        layer.scaling *= 1 + number / 16
    monkeypatch.setattr(compiled_layers, "MOST_IN_GENERATION", LAYERS - 1)
    rows = [lay_out_prompts(PROMPTS[0], share=True, max_new_tokens=NEW, keeps_paths=True)]
    with on_cpu(model, joins_adapters=True) as run:
        graphs, problems = trusted_graphs(
            run,
            decode_shapes(PROMPTS[:1], NEW),
            rows,
            max_new_tokens=NEW,
            recorder=Repeating,
            compiles=True,
            has_to_pay=False,
        )
    assert graphs is not None
    assert not graphs.is_compiled
    assert len(problems) == 1
    assert "FailOnRecompileLimitHit" in problems[0]
    assert counter.frame_count == LAYERS - 1


def test_layers_that_share_their_keys_are_left_uncompiled():
    model = adapted(layers=LAYERS).eval()
    with pytest.raises(UserError, match="1 of the 3 layers keep no keys of their own"):
        compiled_layers.LayersOverCache(model, object(), [object()] * (LAYERS - 1))


def test_a_model_that_names_no_layers_says_so():
    model = small("gpt2", torch.float32).eval()
    with torch.inference_mode(), on_cpu(model, joins_adapters=True) as run:
        graphs = DecodeGraphs(run, decode_shapes(PROMPTS, NEW), NEW, compiles=True)
        with pytest.raises(UserError, match="does not name its decoder's layers"):
            graphs.record(Repeating())
