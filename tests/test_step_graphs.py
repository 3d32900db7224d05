"""Recorded steps do what fresh ones do; a recorder that repeats the recorded call stands for a GPU's graphs."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from executions import on_cpu
from test_training import Make, gradients, make_model, some_examples  # noqa: F401  (a fixture)

from howlow.engine import buckets, layouts, step_check
from howlow.engine import model as models
from howlow.engine.alone import distance
from howlow.engine.buckets import Buckets
from howlow.engine.cuda.graphs import CudaGraphs, drop_unused
from howlow.engine.execution import Execution, decide
from howlow.engine.layouts import Batch, Layout
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import Optimization, StepOutcome, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

T = TypeVar("T")
CPU = torch.device("cpu")
LENGTH = 24


class Repeating:
    """Repeats what was recorded on the tensors that it was recorded with; like a graph it has one result, in place."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, work: Callable[[], object]) -> None:
        for _ in range(2):
            work()

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        result = work()
        self.recorded += 1

        def again() -> T:
            _write(result, work())
            return result

        return again


def _write(kept: Any, new: Any) -> None:
    for one, other in zip(kept, new, strict=True) if isinstance(kept, tuple) else [(kept, new)]:
        if one is not None:
            one.copy_(other)


def parts(layout: Layout) -> tuple[list[list[TokenizedExample]], Buckets]:
    examples = some_examples(12)
    found = [examples[start : start + 3] for start in range(0, 12, 3)]
    sizes = [buckets.size_of(part, layout, LENGTH, "completion") for part in found]
    return found, buckets.choose_shapes(sizes, fills_rows=layout != "padded")


def laid_out(layout: Layout) -> list[Batch]:
    found, shapes = parts(layout)
    batches = []
    for part in found:
        bucket = shapes.of(buckets.size_of(part, layout, LENGTH, "completion"))
        assert bucket is not None
        batches.append(buckets.fill(layouts.lay_out(part, layout, LENGTH, 0, "completion"), bucket, 0))
    return batches


def trained(model: Any, steps: list[list[Batch]], recorder: Repeating | None, precision: str) -> list[StepOutcome]:
    with on_cpu(model.train(), precision) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-2, weight_decay=0.1, schedule="linear", total_steps=9))
        if recorder is not None:
            trainer.record(recorder, list({batch.input_ids.shape: batch for step in steps for batch in step}.values()))
        return [trainer.outcome(trainer.step(step)) for step in steps]


@pytest.mark.parametrize("together", [1, 2])
def test_recorded_steps_are_those_of_a_fresh_trainer(make_model: Make, together: int):  # noqa: F811
    """Rows that examples share need FlexAttention, which has no backward pass on a CPU: `test_gpu.py` has them."""
    batches, found = laid_out("padded"), {}
    steps = [batches[start : start + together] for start in range(0, len(batches), together)]
    for recorder in (None, Repeating()):
        model = make_model()
        outcomes = trained(model, steps, recorder, "fp32")
        found[recorder is None] = outcomes, {name: one.clone() for name, one in models.trainable(model).items()}
    for fresh, recorded in zip(found[True][0], found[False][0], strict=True):
        assert recorded.loss == pytest.approx(fresh.loss, rel=1e-5), "sums of gradients differ in their order"
        assert recorded.gradient_norm == pytest.approx(fresh.gradient_norm, rel=1e-4)
    for name, weight in found[True][1].items():
        assert distance(found[False][1][name].detach(), weight.detach()) < 1e-4, (
            "AdamW shows the rounding of gradients that are nearly 0"
        )


def test_the_gradient_scaler_of_recorded_steps_begins_where_it_did(make_model: Make):  # noqa: F811
    batches, found = laid_out("padded"), []
    for recorder in (None, Repeating()):
        found.append(trained(make_model(), [[batch] for batch in batches], recorder, "fp16-autocast"))
    assert found[0] == found[1]


def test_a_recorded_training_goes_on_from_a_checkpoint(make_model: Make):  # noqa: F811
    batches = laid_out("padded")
    model = make_model()
    optimization = Optimization(learning_rate=1e-2, total_steps=9)
    with on_cpu(model.train()) as run:
        whole = Trainer(run, optimization)
        losses = [whole.outcome(whole.step([batch])).loss for batch in batches[:2]]
        tensors, plain = whole.state()
        kept = {name: value.clone() for name, value in tensors.items()}, plain
        losses += [whole.outcome(whole.step([batch])).loss for batch in batches[2:]]
    other = make_model()
    with on_cpu(other.train()) as run:
        resumed = Trainer(run, optimization)
        resumed.record(Repeating(), batches)
        resumed.restore(*kept)
        found = [resumed.outcome(resumed.step([batch])).loss for batch in batches[2:]]
    assert found == pytest.approx(losses[2:], rel=1e-5)


def test_a_shape_is_recorded_once_and_another_runs_as_it_is(make_model: Make):  # noqa: F811
    batches, recorder = laid_out("padded"), Repeating()
    odd = layouts.padded(some_examples(5), LENGTH, 0, "completion")
    with on_cpu(make_model().train()) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-2, total_steps=9))
        trainer.record(recorder, [batches[0]])
        assert recorder.recorded == 2, "one pass and the move"
        loss = trainer.outcome(trainer.step([odd, batches[0]])).loss
    with on_cpu(make_model().train()) as run:
        plain = Trainer(run, Optimization(learning_rate=1e-2, total_steps=9))
        assert loss == pytest.approx(plain.outcome(plain.step([odd, batches[0]])).loss, rel=1e-6)


def test_no_pass_runs_beside_the_memory_of_a_recorded_one(make_model: Make, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """A graph keeps the memory of its pass, so a pass that runs then needs as much again."""
    done, run, recorder = list[str](), Trainer._pass, Repeating()
    record = recorder.record
    monkeypatch.setattr(Trainer, "_pass", lambda *given: (done.append("pass"), run(*given))[1])
    monkeypatch.setattr(recorder, "record", lambda work: (done.append("record"), record(work))[1])
    small = layouts.padded(some_examples(2), LENGTH, 0, "completion")
    with on_cpu(make_model().train()) as context:
        Trainer(context, Optimization(learning_rate=1e-2)).record(recorder, [laid_out("padded")[0], small])
    first = done.index("record")
    assert done[first:] == ["record", "pass", "record", "pass", "record"], "each runs only as it is recorded"
    assert done[:first].count("pass") >= 1 + 2 * 2


# -- the check before anything is trusted ------------------------------------------------------------------------------


def graphed() -> Execution:
    return replace(decide(device=CPU, precision="fp32"), graphed=True)


class Failing(Repeating):
    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        raise RuntimeError("operation not permitted when stream is capturing")


class Wrong(Repeating):
    """A recording that reads what it should not: it adds the same gradients twice."""

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        return super().record(lambda: (work(), work())[0])


def checked(model: Any, recorder: Any) -> tuple[Execution, tuple[str, ...]]:
    return step_check.trusted(model.train(), graphed(), *laid_out("padded")[:2], lambda: recorder)


def test_a_recording_that_is_right_and_pays_is_trusted(make_model: Make, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setattr(step_check, "PAYS", 1e9)  # a stand-in saves no time
    model = make_model()
    before = {name: one.clone() for name, one in models.trainable(model).items()}
    found, problems = checked(model, Repeating())
    assert (found.graphed, problems) == (True, ())
    for name, weight in models.trainable(model).items():
        assert torch.equal(weight, before[name]), "the check leaves the weights as they were"
        assert weight.grad is None


@pytest.mark.parametrize(
    ("recorder", "pays", "said"),
    [
        (Failing(), 1e9, "failed (RuntimeError: operation not permitted when stream is capturing)"),
        (Wrong(), 1e9, "changes the gradients by 1 of their norm"),
        (Repeating(), 0.0, "pays nothing"),
    ],
)
def test_what_does_not_hold_is_left_out(
    make_model: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    recorder: Any,
    pays: float,
    said: str,
):
    monkeypatch.setattr(step_check, "PAYS", pays)
    model = make_model()
    found, (problem,) = checked(model, recorder)
    assert not found.graphed
    assert said in problem
    left = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert left == [], "the training would add to them"


@pytest.mark.parametrize("has_to_pay", [True, False])
def test_only_what_is_compared_by_its_time_runs_more_than_once(
    make_model: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    has_to_pay: bool,
):
    passes, run, recorder = list[int](), Trainer.accumulate, Repeating()
    monkeypatch.setattr(step_check, "PAYS", 0.0)  # so that whatever is timed is left out
    monkeypatch.setattr(step_check, "_TIMED_S", 1e9)
    monkeypatch.setattr(Trainer, "accumulate", lambda *given: (passes.append(1), run(*given))[1])
    given = make_model().train(), graphed(), *laid_out("padded")[:2]
    found, problems = step_check.trusted(*given, lambda: recorder, has_to_pay=has_to_pay)
    assert (found.graphed, len(problems)) == ((False, 1) if has_to_pay else (True, 0))
    # the plain step; then the recorded one, and where they are compared, the same that is not recorded
    assert len(passes) == (1 + 2 * step_check._TIMED if has_to_pay else 2)


def test_a_recording_that_keeps_something_of_its_own_batch_is_left_out(
    make_model: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    """As on a CPU, where the blocks of a prefix tree are read on the host."""
    monkeypatch.setattr(step_check, "PAYS", 1e9)
    first, second = laid_out("shared")[:2]
    assert first.input_ids.shape == second.input_ids.shape
    found, (problem,) = step_check.trusted(make_model().train(), graphed(), first, second, Repeating)
    assert not found.graphed
    assert "changes the gradients" in problem


@pytest.mark.parametrize("pays", [1e9, 0.0])
def test_compiling_that_fails_is_left_out(
    make_model: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    pays: float,
):
    """Steps may be recorded all the same."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the compiler is not there")

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    monkeypatch.setattr(step_check, "PAYS", pays)
    execution = replace(decide(device=CPU, precision="fp32", compiles=True), graphed=True)
    found, problems = step_check.trusted(make_model().train(), execution, *laid_out("padded")[:2], Repeating)
    assert (found.graphed, found.compiled) == (pays > 0, False)
    assert all("the compiler is not there" in problem for problem in problems[:2])
    assert len(problems) == (2 if pays else 3)


# -- on a GPU ----------------------------------------------------------------------------------------------------------


class FakeGenerator:
    """torch's generator on a GPU: recordings are told to its state, which `set_state` does not change."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"is_recording": False, "seed": 0}

    def get_state(self) -> int:
        return int(self.state["seed"])

    def set_state(self, seed: int) -> None:
        self.state["seed"] = seed

    def graphsafe_set_state(self, other: "FakeGenerator") -> None:
        self.state = other.state


class FakeCuda:
    """torch's streams and graphs as far as they are called, in their order.

    Like torch's allocator it refuses to empty its cache while it believes that something is recorded, and it is told of
    a recording's end only by one that could be ended. Its generator counts as recorded just as long.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
        self.drawn = FakeGenerator()
        monkeypatch.setattr(torch.cuda, "default_generators", (self.drawn,))
        monkeypatch.setattr(torch, "Generator", lambda _: FakeGenerator())
        self.done, self.current, self.fails = list[str](), "own", fails
        self.is_recording, self.pool_uses, self.waits = False, 0, 0
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty_cache)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: self)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda _: setattr(self, "current", "own"))
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", lambda *_, pool: self)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)

    def wait_stream(self, _: Any) -> None:
        self.waits += 1

    def reset(self) -> None:
        self.pool_uses -= 1

    def replay(self) -> None:
        self.done.append("replay")

    def empty_cache(self) -> None:
        if self.is_recording:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.done.append("empty")

    def end_allocating(self, device: int, pool: tuple[int, int]) -> None:
        assert (device, pool) == (0, (0, 1))
        if not self.is_recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.is_recording = False

    def release(self, *_: Any) -> None:
        self.pool_uses -= 1

    def __enter__(self) -> None:
        self.current, self.is_recording = "recording", True
        self.drawn.state["is_recording"] = True
        self.pool_uses += 1

    def __exit__(self, *_: Any) -> None:
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current, self.is_recording = "own", False
        self.drawn.state["is_recording"] = False


def test_a_recording_begins_with_an_empty_cache_and_is_replayed(monkeypatch: pytest.MonkeyPatch):
    cuda, runs = FakeCuda(monkeypatch, fails=False), list[int]()
    graphs = CudaGraphs(torch.device("cuda"))
    graphs.warm_up(lambda: runs.append(1))
    again = graphs.record(lambda: len(runs))
    assert (again(), again(), len(runs)) == (3, 3, 3)
    assert cuda.done == ["empty", "replay", "replay"]
    assert cuda.pool_uses == 1, "a graph gives its pool back when it is deleted"


@pytest.mark.parametrize("can_be_ended", [True, False])
def test_where_a_recording_fails_work_goes_on_as_before(monkeypatch: pytest.MonkeyPatch, can_be_ended: bool):
    """torch leaves the stream of a recording, and tells its allocator, only if the recording could be ended."""

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    cuda = FakeCuda(monkeypatch, fails=not can_be_ended)
    cuda.drawn.set_state(7)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2 GiB") as caught:
        CudaGraphs(torch.device("cuda")).record(full)
    assert cuda.current == "own"
    assert cuda.drawn.state == {"is_recording": False, "seed": 7}, "random numbers go on, and are drawn eagerly"
    assert step_check.failed("recording", caught.value) == (
        "recording failed (OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB)"
    )
    drop_unused(torch.device("cuda"))
    assert cuda.done == ["empty"], "the plainer steps begin with an empty cache"
    assert cuda.pool_uses == 0, "what was recorded until then is given back"


def test_after_a_warm_up_that_fails_its_kernels_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    """What follows is given the memory that they may still write to."""

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    cuda = FakeCuda(monkeypatch, fails=False)
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs(torch.device("cuda")).warm_up(full)
    assert cuda.waits == 2, "the warm-up waits for what came before, and what comes after for the warm-up"


# -- streams -----------------------------------------------------------------------------------------------------------


def nodes_of(model: Any) -> list[Any]:
    """The nodes of autograd that add to the gradients of the trained weights and of their copies; made if not there."""
    groups = [module.group for module in model.modules() if getattr(module, "group", None) is not None]
    copies = [one for group in groups for one in (group.below, *group.above) if one is not None and one.requires_grad]
    return [torch.autograd.graph.get_gradient_edge(one).node for one in (*models.trainable(model).values(), *copies)]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"joins_adapters": True}])
@pytest.mark.parametrize("is_recomputed", [True, False])
def test_a_pass_leaves_no_node_of_autograd(
    make_model: Make,  # noqa: F811
    options: dict[str, Any],
    is_recomputed: bool,
):
    """A node keeps the stream on which it was made. One that were left of the warm-up would break a recording."""
    model = make_model().train()
    if is_recomputed:
        recompute = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)
    marks = list[int]()

    def mark(*_: Any) -> None:
        for node in nodes_of(model):
            node.metadata["mark"] = True
            marks.append(1)

    with on_cpu(model, **options) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-2))
        hook = models.decoder_of(model).layers[-1].register_forward_hook(mark)
        gc.disable()  # no help from the garbage collector
        try:
            trainer.accumulate(laid_out("padded")[0], torch.ones(()))
            hook.remove()
            left = [node for node in nodes_of(model) if node.metadata]
        finally:
            gc.enable()
    assert marks
    assert left == []
