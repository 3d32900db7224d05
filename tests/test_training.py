"""Loss, optimizer steps, checkpoints and generation on a tiny model, against torch and transformers themselves."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded
from executions import evaluate, generate, on_cpu
from torch.nn import functional as F

from howlow.engine import checkpoint, generation, layouts, loss
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora, matched_layers, save_adapter
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import MAX_SKIPPED_STEPS, DivergedError, Optimization, StepOutcome, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
Make = Callable[..., Any]


@pytest.fixture
def make_model(tiny_model: Path) -> Make:
    """A fresh tiny model, with an adapter unless rank is None."""

    def make(rank: int | None = 4, dropout: float = 0.0, **lora: Any) -> Any:
        base = loaded(tiny_model)
        base.requires_grad_(False)
        if rank is None:
            return base
        chosen = {"alpha": 2 * rank, "scaling": "standard", "target_modules": ["q_proj", "v_proj"]} | lora
        return attach_lora(base, rank=rank, dropout=dropout, seed=0, **chosen)

    return make


def some_examples(count: int = 6) -> list[TokenizedExample]:
    generator = torch.Generator().manual_seed(1)

    def ids(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most, (1,), generator=generator))
        return tuple(torch.randint(0, 255, (length,), generator=generator).tolist())

    return [TokenizedExample(str(index), "g", ids(3, 14), ids(1, 9)) for index in range(count)]


def batch_of(examples: list[TokenizedExample], loss_on: str = "completion") -> layouts.Batch:
    return layouts.padded(examples, 24, 257, loss_on)  # type: ignore[arg-type]


def trainer_of(model: Any, precision: str = "fp32", **optimization: Any) -> Trainer:
    chosen = {"learning_rate": 1e-2, "total_steps": 20} | optimization
    with on_cpu(model.train(), precision) as run:  # these tests run the model's own code, so not within the context
        return Trainer(run, Optimization(**chosen))


def step(trainer: Trainer, batches: list[layouts.Batch]) -> StepOutcome:
    return trainer.outcome(trainer.step(batches))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in models.trainable(model).items()}


# -- loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_head_at_targets_only_gives_the_same_losses_and_gradients(make_model: Make, loss_on: str) -> None:
    batch, found = batch_of(some_examples(), loss_on), {}
    for head in ("targets", "all"):
        model = make_model()
        losses, total = loss.target_losses(model, batch, head)
        total.backward()
        found[head] = (losses, gradients(model))
    torch.testing.assert_close(found["targets"][0], found["all"][0])
    for name, gradient in found["all"][1].items():
        torch.testing.assert_close(found["targets"][1][name], gradient)


def test_the_loss_is_transformers_own_with_padding_told_by_place(make_model: Make) -> None:
    model = make_model(None)
    examples = some_examples()
    sums = evaluate(model, batch_of(examples))
    for example, total in zip(examples, sums, strict=True):
        ids = torch.tensor([example.prompt + example.completion])
        labels = torch.tensor([[-100] * len(example.prompt) + list(example.completion)])
        with torch.no_grad():
            theirs = model(ids, labels=labels).loss * len(example.completion)
        assert total == pytest.approx(float(theirs), rel=1e-5)


# -- steps ----------------------------------------------------------------------------------------------------------


def test_only_the_adapter_trains(make_model: Make) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(trainer_of(model), [batch_of(some_examples())])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all("lora_B" in name for name in changed)  # B starts at zero, so A has no gradient in the first step
    frozen = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_accumulation_is_the_loss_of_all_targets_together_not_a_mean_of_means(make_model: Make) -> None:
    examples = some_examples()
    together, apart = make_model(), make_model()
    whole = step(trainer_of(together), [batch_of(examples)])
    parts = step(trainer_of(apart), [batch_of(examples[:1]), batch_of(examples[1:3]), batch_of(examples[3:])])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    for name, parameter in models.trainable(together).items():
        torch.testing.assert_close(models.trainable(apart)[name], parameter, rtol=1e-4, atol=1e-6)


def test_ten_steps_are_those_of_a_plain_torch_loop(make_model: Make) -> None:
    examples = some_examples(8)
    ours, theirs = make_model(), make_model()
    trainer = trainer_of(ours, max_grad_norm=0.5, weight_decay=0.1)
    parameters = list(models.trainable(theirs).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    theirs.train()
    for index in range(10):
        chosen = [examples[index % 8], examples[(index + 3) % 8]]
        rows = [torch.tensor(example.prompt + example.completion) for example in chosen]
        total, count = torch.zeros(()), 0
        for example, row in zip(chosen, rows, strict=True):
            logits = theirs(row[None]).logits[0]
            first = len(example.prompt)
            total = total + F.cross_entropy(logits[first - 1 : -1], row[first:], reduction="sum")
            count += len(example.completion)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert step(trainer, [batch_of(chosen)]).loss == pytest.approx(float(total.detach()) / count, rel=1e-5)


def test_schedules_by_hand() -> None:
    linear = Optimization(learning_rate=1.0, schedule="linear", warmup_steps=2, total_steps=6)
    assert [round(linear.learning_rate_at(step), 6) for step in range(6)] == [0.333333, 0.666667, 1, 0.75, 0.5, 0.25]
    cosine = Optimization(learning_rate=2.0, schedule="cosine", total_steps=4)
    assert [cosine.learning_rate_at(step) for step in range(4)] == pytest.approx(
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    )
    assert Optimization(learning_rate=3.0, total_steps=9).learning_rate_at(8) == 3.0


def test_a_loss_that_is_not_finite_is_a_divergence(make_model: Make) -> None:
    model = make_model()
    with torch.no_grad():
        next(iter(models.trainable(model).values())).fill_(math.nan)
    with pytest.raises(DivergedError, match="step 0 is nan"):
        step(trainer_of(model), [batch_of(some_examples())])


def test_overflowing_fp16_gradients_skip_the_step_and_twenty_in_a_row_are_a_divergence(make_model: Make) -> None:
    model = make_model()
    trainer = trainer_of(model, "fp16-autocast")
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    for parameter in trainer.parameters.values():
        parameter.register_hook(lambda gradient: gradient * math.inf)
    for _ in range(MAX_SKIPPED_STEPS - 1):
        assert step(trainer, [batch_of(some_examples())]).skipped
    assert all(torch.equal(before[name], parameter) for name, parameter in trainer.parameters.items())
    with pytest.raises(DivergedError, match="20 steps in a row"):
        step(trainer, [batch_of(some_examples())])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-autocast"])
@pytest.mark.parametrize(
    "factors",
    [
        {"learning_rate": 1e38},
        {"learning_rate": 1e308},
        {"learning_rate": 1e308, "warmup_steps": 3},
        {"learning_rate": 1.0, "weight_decay": 1e308},
    ],
    ids=str,
)
def test_numbers_that_overflow_are_a_divergence(make_model: Make, precision: str, factors: dict[str, Any]) -> None:
    trainer = trainer_of(make_model(), precision, **factors)

    def train() -> None:
        for _ in range(4):
            step(trainer, [batch_of(some_examples())])
        trainer.refuse_if_not_finite()

    with pytest.raises(DivergedError):
        train()


@pytest.mark.parametrize("what", ["weights", "moments"])
def test_what_no_further_loss_shows_is_looked_at_after_the_last_step(make_model: Make, what: str) -> None:
    trainer = trainer_of(make_model())
    step(trainer, [batch_of(some_examples())])
    trainer.refuse_if_not_finite()
    last = list(trainer.parameters.values())[-1]
    with torch.no_grad():
        (last if what == "weights" else trainer.optimizer.state[last]["exp_avg_sq"]).flatten()[-1] = math.inf
    with pytest.raises(DivergedError, match="after 1 steps the weights or AdamW's moments"):
        trainer.refuse_if_not_finite()


# -- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-autocast"])
def test_a_restored_training_goes_on_bit_for_bit_with_dropout(make_model: Make, tmp_path: Path, precision: str) -> None:
    batches = [batch_of(some_examples(3 + index)) for index in range(6)]
    torch.manual_seed(5)
    unbroken = trainer_of(make_model(dropout=0.3), precision)
    losses = [step(unbroken, [batch]).loss for batch in batches]

    torch.manual_seed(5)
    first = trainer_of(make_model(dropout=0.3), precision)
    begun = [step(first, [batch]).loss for batch in batches[:3]]
    tensors, plain = first.state()
    generators, states = checkpoint.generator_states(CPU)
    checkpoint.save(tmp_path / "checkpoint", tensors | generators, {"trainer": plain, "generators": states})

    torch.manual_seed(99)
    second = trainer_of(make_model(dropout=0.3), precision)
    loaded = checkpoint.read(tmp_path / "checkpoint")
    assert loaded is not None
    second.restore(loaded[0], loaded[1]["trainer"])
    checkpoint.restore_generators(loaded[0], loaded[1]["generators"])
    assert begun + [step(second, [batch]).loss for batch in batches[3:]] == losses
    for name, parameter in unbroken.parameters.items():
        assert torch.equal(second.parameters[name], parameter)


def test_a_whole_checkpoint_is_found_whichever_operation_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    folder = tmp_path / "checkpoint"
    old, new = {"value": torch.zeros(2)}, {"value": torch.ones(2)}
    original = Path.rename
    for dies_at in range(1, 3):
        checkpoint.remove(folder)
        checkpoint.save(folder, old, {"number": 0})
        calls = iter(range(1, 9))

        def rename(path: Path, target: Path, dies_at: int = dies_at, calls: Any = calls) -> Path:
            if next(calls) == dies_at:
                raise KilledError
            return original(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            with pytest.raises(KilledError):
                checkpoint.save(folder, new, {"number": 1})
        loaded = checkpoint.read(folder)
        assert loaded is not None
        assert torch.equal(loaded[0]["value"], old["value"])
        checkpoint.save(folder, new, {"number": 1})
        assert checkpoint.read(folder)[1] == {"number": 1}  # type: ignore[index]


def test_a_checkpoint_holds_no_pickle(make_model: Make, tmp_path: Path) -> None:
    tensors, plain = trainer_of(make_model()).state()
    checkpoint.save(tmp_path / "checkpoint", tensors, plain)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["state.json", "state.safetensors"]


# -- generation -----------------------------------------------------------------------------------------------------


def continued(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], **options: Any) -> list[generation.Generated]:
    chosen: dict[str, Any] = {"max_new_tokens": 8, "stop": None, "eos": frozenset({257})} | options
    plain: dict[str, Any] = {"layout": "padded", "prompt_length": 16, "pad_id": 257}
    return generate(model, tokenizer, prompts, **(chosen | plain))[0]


def test_greedy_text_is_that_of_transformers_batched_or_alone(make_model: Make, tiny_tokenizer: Any) -> None:
    model = make_model(None)
    model.generation_config.repetition_penalty = 5.0  # ignored here, so taken back for theirs
    prompts = [example.prompt for example in some_examples()]
    batched = continued(model, tiny_tokenizer, prompts)
    assert batched == [continued(model, tiny_tokenizer, [prompt])[0] for prompt in prompts]
    model.generation_config.repetition_penalty = 1.0
    for prompt, row in zip(prompts, batched, strict=True):
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 257}
        theirs = model.generate(ids, do_sample=False, max_new_tokens=8, **options)[0, len(prompt) :].tolist()
        assert row.text == tiny_tokenizer.decode(theirs, skip_special_tokens=True)
        assert row.new_tokens == len(theirs)


def test_generation_ends_at_any_eos_and_before_the_stop_text(make_model: Make, tiny_tokenizer: Any) -> None:
    model = make_model(None)
    prompt = some_examples()[0].prompt
    given = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(given), "pad_token_id": 257}
    ids = model.generate(given, do_sample=False, max_new_tokens=8, **options)[0, len(prompt) :].tolist()
    second = next(token for token in ids if token != ids[0])
    ended = continued(model, tiny_tokenizer, [prompt], eos=frozenset({257, second}))[0]
    assert ended.new_tokens == ids.index(second) + 1
    whole = continued(model, tiny_tokenizer, [prompt])[0]
    stop = whole.text[2]
    stopped = continued(model, tiny_tokenizer, [prompt], stop=stop)[0]
    assert stopped.text == whole.text.partition(stop)[0]
    assert stopped.new_tokens <= whole.new_tokens


# -- the adapter ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scaling", "factor"), [("standard", 2.0), ("rank_stabilized", 4.0)])
def test_a_saved_adapter_loads_in_plain_peft_with_the_same_logits(
    make_model: Make, tmp_path: Path, scaling: str, factor: float
) -> None:
    from peft import PeftModel

    model = make_model(4, alpha=8, scaling=scaling)
    step(trainer_of(model), [batch_of(some_examples())])
    model.eval()
    assert {layer.scaling["default"] for layer in model.modules() if hasattr(layer, "lora_A")} == {factor}
    ids = torch.tensor([some_examples()[0].prompt])
    expected = model(ids).logits
    size = save_adapter(model, tmp_path / "adapter", "base", "a card")
    assert size == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8") == "a card"
    loaded = PeftModel.from_pretrained(make_model(None), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=0)


def test_gpt2s_layers_and_learned_positions_are_seen() -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    found = models.structure(config, False)
    assert found.learned_positions
    assert found.linear_shapes["transformer.h.0.attn.c_attn"] == (16, 48)
    assert matched_layers(found.linear_shapes, ["c_attn"]) == ["transformer.h.0.attn.c_attn"]
