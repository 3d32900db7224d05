"""Adapters without casts give what PEFT's own code gives under autocast, in every form of a step."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from executions import on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLayer
from safetensors.torch import load_file
from test_fake_tensors import CONFIGS, EXAMPLES, SMALL
from test_step_graphs import Repeating, laid_out
from test_training import Make, gradients, make_model, some_examples  # noqa: F401  (a fixture)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import howlow
from howlow.engine import layouts, step_check
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora, merge_adapter, save_adapter
from howlow.engine.alone import distance
from howlow.engine.cuda.adapters import CastAdapters, JoinedLayer, joined_adapters
from howlow.engine.cuda.layer_groups import LayerGroup
from howlow.engine.evaluation import evaluation_step
from howlow.engine.execution import decide, running
from howlow.engine.layouts import Batch
from howlow.engine.model import base_of
from howlow.engine.training import Optimization, Trainer
from howlow.trial.loading import decide_execution

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(
    name: str = "llama", rank: int = 4, alpha: float = 8.0, layers: int = 2, targets: Sequence[str] = ALL
) -> Any:
    """A tiny model, always the same, whose adapter changes what it gives."""
    torch.manual_seed(0)
    kind = transformers.Qwen2Config if name == "qwen2" else type(CONFIGS[name]())
    config = kind(**SMALL | {"num_hidden_layers": layers})
    base = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    for module in base.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    options: dict[str, Any] = {"scaling": "standard", "target_modules": list(targets), "dropout": 0.0, "seed": 0}
    return moved(attach_lora(base, rank=rank, alpha=alpha, **options).train())


def moved(model: Any) -> Any:
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=chance))
    return model


def in_bf16(model: Any) -> Any:
    """With the base in bf16, as `bf16` stores it; the adapter stays in fp32."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def batch_of(layout: Any = "padded", length: int = 32) -> Batch:
    return layouts.lay_out(EXAMPLES, layout, length, 0, "completion")


def gradients_of(model: Any, batches: list[Batch], precision: Any, **options: Any) -> dict[str, Tensor]:
    """The gradients of all batches together; nothing is fused, as on CUDA, where adapters are joined."""
    chosen = decide(device=torch.device("cpu"), precision=precision, **options)
    with running(model, replace(chosen, fused=False)) as run:
        trainer = Trainer(run, Optimization(learning_rate=0.0))
        for batch in batches:
            trainer.accumulate(batch, torch.tensor(1.0))
    return gradients(model)


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype
        assert float((found[name] - gradient).norm()) <= tolerance * float(gradient.norm()), name


# -- the copies --------------------------------------------------------------------------------------------------------


def cast_by_autocast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What a product under autocast computes with: the product with the unit matrix."""
    with torch.autocast("cpu", dtype=dtype):
        return F.linear(torch.eye(weight.shape[1]), weight).t()


@given(
    numbers=st.lists(st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 2**-10), min_size=32),
    alpha=st.sampled_from([0.5, 4.0, 8.0, 9.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
@settings(max_examples=40)
def test_a_copy_has_the_bits_that_autocast_gives(numbers: list[float], alpha: float, dtype: torch.dtype):
    layers = COPIED.base_model.model.model.layers[0].self_attn
    layers = [layers.q_proj, layers.k_proj, layers.v_proj]
    with torch.no_grad():
        for layer in layers:
            layer.scaling["default"] = alpha / 4
            for part in (layer.lora_A, layer.lora_B):
                weight = part["default"].weight
                weight.copy_(
                    torch.tensor(numbers).repeat(-(-weight.numel() // len(numbers)))[: weight.numel()].view_as(weight)
                )
    group = LayerGroup(layers, dtype)
    CastAdapters([group])
    assert group.folded * group.factor == alpha / 4
    for copied, master, place in group.copies():
        expected = cast_by_autocast(master.detach(), dtype)
        factor = group.folded if copied is group.below else 1.0
        assert torch.equal(copied[place], expected * factor)
        assert torch.equal((expected * factor) / factor, expected), "folding rounds nothing"


COPIED = adapted()


@pytest.mark.parametrize(
    ("alpha", "dtype", "folded"),
    [
        (8.0, torch.bfloat16, 2.0),
        (1.0, torch.float32, 0.25),
        (8.0, torch.float16, 1.0),  # a small number may lose bits
        (9.0, torch.bfloat16, 1.0),
        (2.0**100, torch.bfloat16, 1.0),
    ],
)
def test_only_a_factor_that_rounds_nothing_is_folded(alpha: float, dtype: torch.dtype, folded: float):
    with joined_adapters(adapted(alpha=alpha), dtype) as found:
        assert {group.folded for group in found.groups} == {folded}
        assert {group.factor * group.folded for group in found.groups} == {alpha / 4}


def test_layers_that_are_given_the_same_share_one_copy_of_as():
    with joined_adapters(adapted(rank=3), torch.bfloat16) as found:
        shapes = [(len(group.layers), tuple(group.below.shape)) for group in found.groups]
    assert shapes == 2 * [(3, (24, 32)), (1, (8, 32)), (2, (16, 32)), (1, (8, 40))], "q, k, v; o; gate, up; down"


# -- weights and As as one product ------------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return found


@pytest.mark.parametrize(
    ("targets", "inference", "backward"),
    [
        (ALL, 4 + 7, 2 * 4 + 2 * 7),
        (["q_proj", "v_proj"], 4 + 2, 4 + 1 + 2 * 2),  # q, k, v; o; gate, up; down; and the gradient of the A's
    ],
    ids=["all", "q and v"],
)
def test_layers_that_are_given_the_same_are_one_product(targets: list[str], inference: int, backward: int):
    """In a layer: W and A of all that are given one x, and each B. PEFT's own code has 7 + 2 for each adapter."""
    ids, counts = torch.arange(3, 27).view(2, 12), list[int]()
    for layers in (1, 2):
        model = adapted(layers=layers, targets=targets)
        with joined_adapters(model, torch.float32):
            with Counting() as forward:
                total = model(input_ids=ids).logits.sum()
            with Counting() as counting:
                total.backward()
            counts += [forward.products, counting.products]
    assert counts[2] - counts[0] == inference
    assert counts[3] - counts[1] == backward


def places(model: Any) -> dict[str, int]:
    return {name: weight.data_ptr() for name, weight in model.named_parameters() if not weight.requires_grad}


def test_frozen_weights_are_held_once_and_move_once():
    model, ids = adapted(targets=["q_proj", "v_proj"]), torch.arange(3, 27).view(2, 12)
    expected = {name: weight.clone() for name, weight in model.named_parameters()}
    with joined_adapters(model, torch.float32):
        model(input_ids=ids)
        moved = places(model)
    layer = base_of(model).model.layers[0]
    parts = [layer.self_attn.q_proj.base_layer, layer.self_attn.k_proj, layer.self_attn.v_proj.base_layer]
    assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    held = sum(
        {part.weight.untyped_storage().data_ptr(): part.weight.untyped_storage().nbytes() for part in parts}.values()
    )
    assert held == sum(4 * part.weight.numel() for part in parts) + 4 * 16 * 32, "and the A's of q and v"
    for _ in range(2):
        with joined_adapters(model, torch.float32):
            assert places(model) == moved
    for name, weight in model.named_parameters():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["q_proj"], ["gate_proj"]], ids="+".join)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_autograd_keeps_is_no_larger_than_what_it_needs(name: str, targets: list[str]):
    """A view that is kept would keep the product of all layers of a group."""
    ids, kept = torch.arange(3, 27).view(2, 12), dict[int, tuple[int, int]]()
    model = adapted(name, targets=targets)

    def keep(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            storage = tensor.untyped_storage()
            used = kept.get(storage._cdata, (0, 0))[0] + tensor.nbytes
            kept[storage._cdata] = used, storage.nbytes()
            held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with joined_adapters(model, torch.float32), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids).logits.sum().backward()
    assert kept
    assert all(used >= stored for used, stored in kept.values())


def test_a_layer_without_an_adapter_may_be_written_into():
    """Olmo's attention clamps q, k and v in place."""
    ids, found = torch.arange(3, 27).view(2, 12), []
    for joins in (False, True):
        model = adapted(targets=["q_proj", "v_proj"])
        for layer in base_of(model).model.layers:
            layer.self_attn.k_proj.register_forward_hook(lambda _, __, y: y.clamp_(-0.01, 0.01))
        with joined_adapters(model, torch.float32) if joins else nullcontext():
            logits = model(input_ids=ids).logits
            logits.square().sum().backward()
        found.append((logits.detach(), gradients(model)))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert_alike(found[1][1], found[0][1], 1e-5)


def test_merged_weights_leave_nothing_of_the_old_ones():
    model, ids = adapted(targets=["q_proj", "v_proj"]).eval(), torch.arange(3, 27).view(2, 12)
    with torch.no_grad(), joined_adapters(model, torch.float32):
        expected = model(input_ids=ids).logits
    base = merge_adapter(model)
    torch.testing.assert_close(base(input_ids=ids).logits, expected)
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in base.parameters())


def test_weights_that_moved_in_inference_train():
    found, ids = [], torch.arange(3, 27).view(2, 12)
    for infers in (False, True):
        model = adapted()
        if infers:
            with torch.inference_mode(), joined_adapters(model, torch.float32):
                model(input_ids=ids)
        with joined_adapters(model, torch.float32):
            model(input_ids=ids).logits.square().sum().backward()
        found.append(gradients(model))
    assert_alike(found[1], found[0], 0.0)


def test_a_weight_that_cannot_move_keeps_those_beside_it_in_place():
    ids = torch.arange(3, 27).view(2, 12)

    def make() -> Any:
        model = adapted().double()
        first, second = base_of(model).model.layers
        first.self_attn.k_proj.base_layer.weight.requires_grad_()
        second.self_attn.v_proj.base_layer.weight = first.self_attn.v_proj.base_layer.weight  # of two layers
        second.mlp.up_proj.base_layer.register_forward_hook(lambda _, __, found: found * 2)
        return model

    own, ours = by_peft_and_joined(make, torch.float64, ids)
    torch.testing.assert_close(ours[0], own[0], rtol=1e-12, atol=1e-12)
    assert_alike(ours[1], own[1], 1e-12)
    with joined_adapters(make(), torch.float64) as found:
        joint = [group._joint is not None for group in found.groups if len(group.layers) > 1]
    assert joint == [False, True, True, False], "q, k, v and gate, up of either layer; the shared one moves once"


# -- gradients ---------------------------------------------------------------------------------------------------------


def by_peft_and_joined(
    make: Callable[[], Any], dtype: torch.dtype, ids: Tensor
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    found = []
    for wanted in (False, True):
        model = make()
        with joined_adapters(model, dtype) if wanted else nullcontext():
            logits = model(input_ids=ids).logits
            (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        found.append((logits.detach(), gradients(model)))
    return found


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["k_proj", "down_proj"], ["gate_proj"]], ids="+".join)
@pytest.mark.parametrize(
    ("name", "rank", "alpha"), [("llama", 1, 2.0), ("qwen2", 8, 4.0), ("qwen3", 3, 5.0), ("gemma2", 12, 24.0)]
)
def test_in_fp64_results_and_gradients_are_pefts(name: str, rank: int, alpha: float, targets: list[str]):
    ids = torch.arange(3, 27).view(2, 12)
    own, ours = by_peft_and_joined(lambda: adapted(name, rank, alpha, targets=targets).double(), torch.float64, ids)
    torch.testing.assert_close(ours[0], own[0], rtol=1e-12, atol=1e-12)
    assert_alike(ours[1], own[1], 1e-12)


@pytest.mark.parametrize("precision", ["bf16", "fp16-autocast"])
@pytest.mark.parametrize("alpha", [8.0, 9.0])
def test_under_autocast_gradients_are_as_exact_as_pefts(precision: str, alpha: float):
    def make() -> Any:
        return in_bf16(adapted(alpha=alpha)) if precision == "bf16" else adapted(alpha=alpha)

    exact = make().double()
    total = layouts_loss(exact)
    total.backward()
    truth, wrong = gradients(exact), []
    for joins in (False, True):
        found = gradients_of(make(), [batch_of()], precision, joins_adapters=joins)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        wrong.append(step_check.difference(list(found.values()), list(truth.values())))
    assert wrong[1] <= 1.2 * wrong[0] < 0.05, wrong


def layouts_loss(model: Any) -> Tensor:
    batch = batch_of()
    logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.predictors]
    return F.cross_entropy(logits[batch.sources], batch.targets, reduction="sum")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_micro_batches_add_up_also_where_activations_are_recomputed(layout: Any, checkpointed: bool):
    found = []
    for joins in (False, True):
        model = adapted()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        batches = [batch_of(layout), layouts.lay_out(EXAMPLES[:2], layout, 32, 0, "all")]
        found.append(gradients_of(model, batches, "fp32", joins_adapters=joins))
    assert_alike(found[1], found[0], 1e-5)


def test_layers_that_are_given_other_tensors_run_separately():
    ids = torch.arange(3, 27).view(2, 12)

    def make() -> Any:
        model = adapted().double()
        for layer in base_of(model).model.layers:
            layer.self_attn.v_proj.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
        return model

    own, ours = by_peft_and_joined(make, torch.float64, ids)
    torch.testing.assert_close(ours[0], own[0], rtol=1e-12, atol=1e-12)
    assert_alike(ours[1], own[1], 1e-12)


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_a_pass_that_fails_leaves_nothing_to_the_next(layout: Any):
    """What q has computed for k and v would be held, and the next pass would take its own x for another one."""

    def broken(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    model, batch = adapted(), batch_of(layout)
    with on_cpu(model, joins_adapters=True) as run:
        hook = base_of(model).model.layers[1].self_attn.k_proj.register_forward_pre_hook(broken)
        trainer = Trainer(run, Optimization(learning_rate=0.0))
        with pytest.raises(torch.OutOfMemoryError):
            trainer.accumulate(batch, torch.tensor(1.0))
        hook.remove()
        groups = {layer.group for layer in model.modules() if isinstance(layer, JoinedLayer)}
        assert all(group is not None and group._x is None and group._kept == [] for group in groups)
        trainer.accumulate(batch, torch.tensor(1.0))
        assert not any(group is not None and group._is_apart for group in groups)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("variant", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_runs_pefts_own_code(variant: dict[str, Any]):
    base = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    model: Any = get_peft_model(base, LoraConfig(r=2, target_modules=ALL, **variant))
    with joined_adapters(model, torch.bfloat16) as found:
        assert found.groups == ()
        assert not any(isinstance(module, JoinedLayer) for module in model.modules())


def test_without_the_autocast_that_it_was_made_for_a_layer_runs_pefts_own_code():
    model = adapted()
    x = torch.randn((1, 4, 32), generator=torch.Generator().manual_seed(0))
    layer = base_of(model).model.layers[0].self_attn.q_proj
    expected = layer(x)
    with joined_adapters(model, torch.bfloat16):
        assert torch.equal(layer(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert torch.equal(copy.deepcopy(layer)(x), expected)


def test_the_model_is_as_it_was_afterwards():
    model = adapted()
    before = {name: list(vars(module)) for name, module in model.named_modules()}
    state = list(model.state_dict())
    with joined_adapters(model, torch.bfloat16):
        assert any(isinstance(module, JoinedLayer) for module in model.modules())
        assert list(model.state_dict()) == state
    with pytest.raises(ZeroDivisionError), joined_adapters(model, torch.bfloat16):
        raise ZeroDivisionError
    assert {name: list(vars(module)) for name, module in model.named_modules()} == before
    assert {type(module) for module in model.modules() if hasattr(module, "lora_A")} == {LoraLayer}


# -- steps -------------------------------------------------------------------------------------------------------------


def trained(model: Any, precision: Any, joins: bool, recorder: Repeating | None = None) -> tuple[list[float], Any]:
    """Three steps of two micro-batches each."""
    batches = laid_out("padded")
    with on_cpu(model.train(), precision, joins_adapters=joins) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-2, total_steps=9))
        if recorder is not None:
            trainer.record(recorder, [batches[0]])
        return [trainer.outcome(trainer.step([batches[n], batches[n + 1]])).loss for n in range(3)], model


def test_saved_adapters_and_losses_are_those_of_pefts_own_code(make_model: Make, tmp_path: Path):  # noqa: F811
    found = []
    for joins in (False, True):
        losses, model = trained(make_model(target_modules=["q_proj", "k_proj", "v_proj"]), "fp32", joins)
        save_adapter(model, tmp_path / str(joins), "base", "card")
        found.append((losses, load_file(tmp_path / str(joins) / "adapter_model.safetensors")))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[1][1].keys() == found[0][1].keys()
    for name, weight in found[0][1].items():
        assert distance(found[1][1][name], weight) < 1e-4, "AdamW shows the rounding of gradients that are nearly 0"


@pytest.mark.parametrize("recorder", [None, Repeating()])
def test_weights_are_cast_once_a_step(
    make_model: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    recorder: Repeating | None,
):
    casts, own = [], torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *given: (casts.append(1), own(*given))[1])
    trained(make_model(rank=8), "bf16", True, recorder)  # a rank that needs no filling: one call casts all
    assert len(casts) == 3 + (recorder is not None), "once before the first step, which has not moved the weights"


def test_no_cast_is_recorded_with_a_pass(make_model: Make, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """A recording holds the addresses of the copies; what is cast before a step is what it computes with."""
    casts, own = [], CastAdapters.cast_if_moved

    def cast(self: CastAdapters) -> None:
        before = list(self._versions)
        own(self)
        casts.append(before != self._versions)

    with on_cpu(make_model().train(), "bf16", joins_adapters=True) as run:
        trainer, batches = Trainer(run, Optimization(learning_rate=1e-2)), laid_out("padded")
        monkeypatch.setattr(CastAdapters, "cast_if_moved", cast)
        trainer.record(Repeating(), [batches[0]])
    assert casts
    assert not any(casts)


def test_recorded_steps_are_those_of_a_fresh_trainer(make_model: Make):  # noqa: F811
    fresh, recorded = (trained(make_model(), "bf16", True, recorder) for recorder in (None, Repeating()))
    assert recorded[0] == pytest.approx(fresh[0], rel=1e-4)


def test_weights_that_a_replay_moved_unseen_are_cast(make_model: Make, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    batch = laid_out("padded")[0]
    with on_cpu(make_model().train(), "bf16", joins_adapters=True) as run:
        trainer = Trainer(run, Optimization(learning_rate=0.0))

        def unseen() -> tuple[Tensor, None]:
            for parameter in trainer.parameters.values():
                parameter.data.add_(0.1)  # a version of its own, so the parameter's does not change
            trainer.clear()
            return torch.zeros(()), None

        monkeypatch.setattr(trainer, "_move", unseen)
        losses = [trainer.outcome(trainer.step([batch])).loss for _ in range(2)]
        evaluated = float(evaluation_step(run, batch).sum()) / batch.target_tokens
        assert losses[1] != losses[0]
        assert evaluated not in losses
    with on_cpu(run.model, "bf16") as plain:
        assert evaluated == pytest.approx(float(evaluation_step(plain, batch).sum()) / batch.target_tokens, rel=1e-2)


# -- the check before anything is trusted ------------------------------------------------------------------------------


def checked(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(step_check, "PAYS", 1e9)  # a stand-in saves no time
    execution = replace(decide(device=CPU, precision="bf16", joins_adapters=True), graphed=True)
    return step_check.trusted(model.train(), execution, *laid_out("padded")[:2], Repeating)


def test_joined_adapters_that_are_right_are_trusted(make_model: Make, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    found, problems = checked(make_model(), monkeypatch)
    assert (found.joined_adapters, found.graphed, problems) == (True, True, ())


def test_joined_adapters_that_are_wrong_are_left_out_and_nothing_else(
    make_model: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(LayerGroup, "_scaled", lambda _, reduced: reduced * 1.5)
    found, (problem,) = checked(make_model(), monkeypatch)
    assert (found.joined_adapters, found.graphed) == (False, True)
    assert "running adapters without casts changes the" in problem


def test_a_trial_joins_its_adapters_on_cuda_where_it_compiles():
    def joins(device: str, **options: Any) -> bool:
        table = {
            "model": "smollm2-135m",
            "task": {"name": "question_answering", "train": "train.json", "test": "test.json"},
            "training": {"compile": "auto"},
        }
        chosen = howlow.load_settings(None, [table | options.pop("changes", {})])
        return decide_execution(chosen, torch.device(device), 32, attention="own", **options).joined_adapters

    assert joins("cuda", has_adapter=True)
    assert not joins("cpu", has_adapter=True)
    assert not joins("cuda", has_adapter=False)
    assert not joins("cuda", has_adapter=True, changes={"lora": {"dropout": 0.1}})
    assert not joins("cuda", has_adapter=True, changes={"training": {"compile": False}})


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_what_no_training_has_checked_is_checked_in_evaluation(scale: float, monkeypatch: pytest.MonkeyPatch):
    own = JoinedLayer.forward
    monkeypatch.setattr(JoinedLayer, "forward", lambda *given: own(*given) * scale)
    execution = replace(decide(device=CPU, precision="bf16", joins_adapters=True), storage=torch.float32)
    assert execution.for_evaluation().joined_adapters
    problem = step_check.evaluation_problem(adapted().eval(), execution, range(3, 40))
    assert problem is None if scale == 1.0 else "changes the logits" in str(problem)
