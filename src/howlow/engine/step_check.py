"""Is a training step that is compiled, recorded or has joined adapters right on this device?

It is held against the plain step, on a real batch. The loss, and the gradients of all trained weights, are compared in
the trial's own precision. An adapter's B starts at zero, where A has no gradient, so the weights are moved a little for
the check and put back.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from howlow.engine.alone import distance, logits_of
from howlow.engine.attention_context import one_sequence_a_row
from howlow.engine.compiled_layers import Compiled
from howlow.engine.cuda.graphs import drop_unused
from howlow.engine.execution import Execution, Precision, running
from howlow.engine.layouts import Batch
from howlow.engine.model import trainable
from howlow.engine.step_graphs import Recorder, kept_weights
from howlow.engine.training import Optimization, Trainer

LARGEST_DIFFERENCE: Mapping[Precision, float] = {"fp32": 1e-3, "bf16": 0.05, "fp16-autocast": 0.02}
"""Of the gradients, relative in the Euclidean norm. The order of sums differs, and each rounds to the precision."""
_OF_LOSS = 0.1  # of that, relative: a loss is a mean over many tokens
_MOVED_BY = 0.02
_LOSS_SCALE = 1024.0
_TIMED = 5
_TIMED_S = 1.0  # or fewer, if they take longer than this together
RECORDED, _JOINED = "replaying steps as CUDA graphs", "running adapters without casts"
UNTRACED = "compiling the layers does nothing: torch traced none of them, and ran them as they are"
_seen_compiled = WeakSet[nn.Module]()
PAYS = 0.97
"""A recording takes memory, and must take less of the time than this."""


@dataclass(frozen=True)
class Passed:
    """What forward and backward of a batch gave, and the median of its time where several were timed."""

    loss: float
    gradients: list[Tensor]
    seconds: float


def trusted(
    model: Any,
    execution: Execution,
    recorded: Batch,
    batch: Batch,
    recorder: Callable[[], Recorder],
    *,
    has_to_pay: bool = True,
) -> tuple[Execution, tuple[str, ...]]:
    """The first of an execution and its plainer forms that computes what the plainest does, and why others do not.

    The plainest form is taken as it is.

    recorded, batch: two of the training's longest batches, on the host and of one shape. A step is recorded on the
        first and held against the plain step on the second, so that a recording that keeps anything of its own batch
        is found.
    has_to_pay: whether recorded steps must also be faster than others. Where only memory matters, nothing is timed.
    """
    plain = execution.plainest()
    with _moved(model):
        check = _Check(model, recorded, batch, recorder, _passed(model, plain, batch), has_to_pay)
        problems: list[str] = []
        joined = replace(plain, joined_adapters=execution.joined_adapters)
        if joined != plain and (problem := check.problem(joined)) is not None:
            problems.append(problem)
            execution, joined = replace(execution, joined_adapters=False), plain
        forms = list(_forms(execution))
        while forms[0] != joined and (problem := check.problem(forms[0])) is not None:
            problems.append(problem)
            forms = [form for form in forms[1:] if not (form.compiled and problem == UNTRACED)]
    drop_unused(execution.device)
    return forms[0], tuple(problems)


def _forms(execution: Execution) -> Iterator[Execution]:
    """An execution and what is tried in its place, in this order.

    Steps whose layers are not compiled still gain from being recorded, as the device then waits for no Python.
    """
    yield execution
    if execution.compiled and execution.graphed:
        yield replace(execution, graphed=False)
        yield replace(execution, compiled=False)
    yield replace(execution, compiled=False, graphed=False)


@dataclass(frozen=True)
class _Check:
    """A model with what its plainest step gives on a batch; the parameters of `trusted`."""

    model: Any
    recorded: Batch
    batch: Batch
    recorder: Callable[[], Recorder]
    expected: Passed
    has_to_pay: bool

    def problem(self, execution: Execution) -> str | None:
        """Why this form cannot be used."""
        what, before = _in_words(execution), Compiled.so_far()
        try:
            found = self._found(execution)
            if execution.compiled and _is_untraced(self.model, before):
                return UNTRACED
            is_timed = execution.graphed and self.has_to_pay
            direct = _passed(self.model, replace(execution, graphed=False), self.batch, _TIMED) if is_timed else None
        except Exception as error:  # whatever a compiler or a driver raises, the plain step still runs
            return failed(what, error)
        expected, bound = self.expected, LARGEST_DIFFERENCE[execution.precision]
        if (wrong := difference(found.gradients, expected.gradients)) > bound:
            return f"{what} changes the gradients by {wrong:.2g} of their norm, more than rounding ({bound:g})"
        if abs(found.loss - expected.loss) > _OF_LOSS * bound * abs(expected.loss):
            return f"{what} changes the loss from {expected.loss:.6g} to {found.loss:.6g}"
        if direct is not None and found.seconds > PAYS * direct.seconds:
            return f"{what} pays nothing: {1e3 * found.seconds:.3g} ms a pass, {1e3 * direct.seconds:.3g} ms without"
        return None

    def _found(self, execution: Execution) -> Passed:
        if not execution.graphed:
            return _passed(self.model, execution, self.batch)
        times = _TIMED if self.has_to_pay else 1
        return _passed(self.model, execution, self.batch, times, (self.recorder(), self.recorded))


@torch.no_grad()
def evaluation_problem(model: Any, execution: Execution, ids: Sequence[int]) -> str | None:
    """Why adapters that no training has checked cannot run joined on a text, held against PEFT's own code."""
    joined = execution.for_evaluation()
    expected = _logits(model, replace(joined, joined_adapters=False), ids)
    try:
        apart = distance(_logits(model, joined, ids), expected)
    except Exception as error:  # whatever a driver raises, PEFT's own code still runs
        return failed(_JOINED, error)
    bound = LARGEST_DIFFERENCE[execution.precision]
    if apart > bound:
        return f"{_JOINED} changes the logits by {apart:.2g} of their norm, more than rounding ({bound:g})"
    return None


def _logits(model: Any, execution: Execution, ids: Sequence[int]) -> Tensor:
    with running(model, execution), one_sequence_a_row():
        return logits_of(model, ids, execution)


def failed(what: str, error: BaseException) -> str:
    """Why something cannot be used that raised an error when it was tried; a lack of memory is told as what it is.

    A recording that cannot be ended after it raises another error, with the lack of memory as its cause.
    """
    told, cause = error, error.__cause__ or error.__context__
    while cause is not None:
        told, cause = cause if isinstance(cause, torch.OutOfMemoryError) else told, cause.__cause__ or cause.__context__
    return f"{what} failed ({type(told).__name__}: {' '.join(str(told).split())[:300]})"


def _is_untraced(model: Any, before: Compiled) -> bool:
    """Whether torch has compiled nothing of a model's layers, which have just run and not only since `before`.

    Where its compiler cannot trace them it runs them as they are, without a word. The plain step came first, so that
    attention, which is compiled by itself there, adds nothing to the count.
    """
    if Compiled.so_far().regions > before.regions:
        _seen_compiled.add(model)
    return model not in _seen_compiled


def _in_words(execution: Execution) -> str:
    if execution.graphed:
        return RECORDED
    return "compiling the layers" if execution.compiled else _JOINED


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The distance of two sets of gradients, relative to the second one's norm."""
    apart = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)]).norm()
    size = torch.stack([other.norm() for other in expected]).norm()
    ratio = float(apart) / float(size) if float(size) else float(apart)
    return ratio if ratio == ratio else float("inf")  # a nan differs


def _passed(
    model: Any, execution: Execution, batch: Batch, times: int = 1, recording: tuple[Recorder, Batch] | None = None
) -> Passed:
    """Run forward and backward of the batch, at most so many times; with a recording, as recorded on another one."""
    drop_unused(execution.device)
    try:
        with running(model, execution) as run:
            return _timed_passes(Trainer(run, Optimization(learning_rate=0.0)), batch, times, recording)
    finally:
        model.zero_grad(set_to_none=True)  # also where it fails: the training would add to what is left


def _timed_passes(trainer: Trainer, batch: Batch, times: int, recording: tuple[Recorder, Batch] | None) -> Passed:
    execution = trainer.running.execution
    if recording is not None:
        recorder, recorded = recording
        trainer.record(recorder, [recorded])
    scale = torch.full((), (_LOSS_SCALE if execution.scales_loss else 1.0) / batch.target_tokens)
    scale, seconds = scale.to(execution.device), list[float]()
    for _ in range(times):
        trainer.clear()
        await_device(execution.device)
        started_s = perf_counter()
        loss = trainer.accumulate(batch, scale)
        await_device(execution.device)
        seconds.append(perf_counter() - started_s)
        if sum(seconds[1:]) > _TIMED_S:  # the first one may compile
            break
    gradients = [one.grad.detach().clone() for one in trainer.parameters.values() if one.grad is not None]
    return Passed(float(loss), gradients, statistics.median_low(seconds))


def await_device(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _moved(model: Any) -> Iterator[None]:
    """Within this context every trained weight is moved a little."""
    parameters = list(trainable(model).values())
    chance = torch.Generator().manual_seed(0)
    with kept_weights(parameters):
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(_MOVED_BY * torch.randn(parameter.shape, generator=chance).to(parameter))
        yield
