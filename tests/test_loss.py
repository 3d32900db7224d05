"""The loss of a batch's targets: both heads alike, sums of examples, and transformers' own loss."""

from typing import Any

import pytest
import torch
from conftest import loaded
from executions import evaluate

from howlow.engine import layouts
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora
from howlow.engine.layouts import Batch, padded
from howlow.engine.loss import head_logits, per_example, target_losses
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
EOS = 257
EXAMPLES = [
    TokenizedExample("long", "g", tuple(range(10, 22)), (*range(30, 38), EOS)),
    TokenizedExample("short", "g", (5,), (EOS,)),
    TokenizedExample("same", "g", (7, 7, 7), (7, 7, EOS)),
    TokenizedExample("full", "h", tuple(range(100, 120)), tuple(range(60, 64))),
]


def adapted(tiny_model: Any, rank: int | None = None) -> Any:
    model = loaded(tiny_model)
    if rank is None:
        return model
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    model = attach_lora(
        model, rank=rank, alpha=2.0 * rank, scaling="standard", target_modules=modules, dropout=0.0, seed=1
    )
    torch.manual_seed(2)
    for name, parameter in models.trainable(model).items():
        if "lora_B" in name:  # B starts at zero, which would leave A without a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(loss_on: Any = "completion", examples: list[TokenizedExample] = EXAMPLES) -> Batch:
    return padded(examples, 24, EOS, loss_on)


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_head_at_targets_gives_the_losses_and_gradients_of_the_head_everywhere(tiny_model: Any, loss_on: str):
    found = {}
    for head in ("targets", "all"):
        model = adapted(tiny_model, rank=3)
        losses, total = target_losses(model, batch(loss_on), head)
        assert losses.dtype == torch.float32
        assert float(total.detach()) == pytest.approx(float(losses.sum()), rel=1e-6)
        total.backward()
        gradients = {name: parameter.grad for name, parameter in models.trainable(model).items()}
        found[head] = losses, gradients
    (some, some_gradients), (every, every_gradients) = found["targets"], found["all"]
    assert torch.allclose(some, every, rtol=1e-6, atol=1e-6)
    for name, gradient in every_gradients.items():
        assert gradient.norm() > 0
        assert torch.linalg.norm(some_gradients[name] - gradient) <= 1e-6 * max(1.0, gradient.norm()), name


def test_the_head_sees_the_targets_predictors_only_and_is_left_as_it_was(tiny_model: Any):
    model, rows = loaded(tiny_model), []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: rows.append(tuple(output.shape)))
    with torch.no_grad():
        target_losses(model, batch(), "targets")
        target_losses(model, batch(), "all")
    handle.remove()
    assert rows == [(1, batch().target_tokens, 264), (4, 24, 264)]
    assert "forward" not in vars(model.get_decoder())


def test_a_head_that_fails_leaves_the_decoder_as_it_was(tiny_model: Any, monkeypatch: pytest.MonkeyPatch):
    model = loaded(tiny_model)
    monkeypatch.setattr(model.lm_head, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        head_logits(model, torch.zeros(2, 32))
    assert "forward" not in vars(model.get_decoder())


def test_a_model_that_does_not_name_its_decoder_is_refused():
    with pytest.raises(UserError, match="does not name its decoder"):
        target_losses(torch.nn.Module(), batch(), "targets")


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_head_in_chunks_gives_the_whole_heads_gradients(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, kind: str, rows_at_once: int
):
    monkeypatch.setattr(layouts, "ROWS_AT_ONCE", rows_at_once)
    found = {}
    for head in ("targets", "all"):
        model = adapted(tiny_model, rank=2 if kind == "adapter" else None)
        losses, total = target_losses(model, batch("all"), head, scale=0.25)
        total.backward()
        found[head] = losses, {name: parameter.grad for name, parameter in models.trainable(model).items()}
    torch.testing.assert_close(found["targets"][0], found["all"][0])
    assert len(found["all"][1]) > 10
    for name, gradient in found["all"][1].items():
        torch.testing.assert_close(found["targets"][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_losses_are_summed_for_each_example():
    sums = per_example(torch.arange(1.0, batch().target_tokens + 1), batch())
    counts = [9, 1, 3, 4]
    expected = [sum(range(1, 10)), 10, sum(range(11, 14)), sum(range(14, 18))]
    assert [len(example.completion) for example in EXAMPLES] == counts
    assert (sums.tolist(), sums.dtype) == (expected, torch.float64)


@pytest.mark.parametrize("head", ["targets", "all"])
def test_evaluation_is_transformers_own_loss(tiny_model: Any, head: Any):
    model = loaded(tiny_model)
    sums = evaluate(model, batch(), head=head)
    for example, total in zip(EXAMPLES, sums, strict=True):
        ids = torch.tensor([example.prompt + example.completion])
        labels = ids.clone()
        labels[:, : len(example.prompt)] = -100
        with torch.no_grad():
            mean = model(input_ids=ids, labels=labels).loss
        assert total / len(example.completion) == pytest.approx(float(mean), rel=1e-5)


def test_an_examples_loss_does_not_depend_on_its_company_or_on_the_padding(tiny_model: Any):
    model = adapted(tiny_model, rank=2).eval()
    together = evaluate(model, batch())
    for example, total in zip(EXAMPLES, together, strict=True):
        for length, pad in ((24, 0), (40, EOS), (24, 7)):
            alone = padded([example], length, pad, "completion")
            assert evaluate(model, alone) == pytest.approx([total], rel=1e-5)


def test_evaluation_leaves_no_gradient(tiny_model: Any):
    model = adapted(tiny_model, rank=2)
    evaluate(model, batch())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("head", ["targets", "all"])
@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_an_example_without_a_target_has_no_loss_and_changes_no_other(tiny_model: Any, layout: Any, head: Any):
    """A text of which the tokenizer makes no token: BOS alone. It once shifted the targets of its whole batch."""
    model, silent = loaded(tiny_model), TokenizedExample("silent", "s", (256,), ())
    alone = [evaluate(model, batch(examples=[one]), head=head)[0] for one in EXAMPLES]
    among = layouts.lay_out([silent, *EXAMPLES[:2], silent, *EXAMPLES[2:]], layout, 24, EOS, "completion")
    first, second = alone[:2], alone[2:]
    assert evaluate(model, among, head=head) == pytest.approx([0.0, *first, 0.0, *second], rel=1e-5)
    only = layouts.lay_out([silent, silent], layout, 24, EOS, "completion")
    assert evaluate(model, only, head=head) == [0.0, 0.0]
