"""A trial whose steps are to be compiled and recorded: its record says what ran, and why where that is less."""

from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from test_resuming import Stopper
from test_resuming import run as run_trial
from test_step_graphs import Failing, Repeating

from howlow.engine import execution, step_check
from howlow.engine.cuda.adapters import JoinedLayer
from howlow.engine.execution import Execution
from howlow.records import LayoutChoice, Record, WarningKind, read_lines
from howlow.settings import merge
from howlow.trial import acceleration, setup
from howlow.trial.followers import Followers

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

T = TypeVar("T")
OTHER_LOSS = "changes the loss from"


class Louder(Repeating):
    """A recording whose gradients are right and whose loss is not."""

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        again = super().record(work)

        def louder() -> T:
            result = again()
            if isinstance(result, torch.Tensor):
                result.mul_(1.5)
            return result

        return louder


class Full(Repeating):
    """Memory runs out in a recording, which then cannot be ended."""

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        except torch.OutOfMemoryError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904


def failing_after_the_check() -> Callable[[], Repeating]:
    """Makes recorders, of which the first one, that of the check, works."""
    made = iter([Repeating()])
    return lambda: next(made, Failing())


def trial(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], out: Path, recorder: Any, *, compiled: bool = False
) -> tuple[Record, list[float]]:
    """Run a trial that records its steps as on a GPU; None records nothing."""
    plain = setup.execution_of

    def asked(*given: Any) -> Execution:
        return replace(plain(*given), graphed=recorder is not None, compiled=compiled)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "execution_of", asked)
        patch.setattr(Execution, "fills_shapes", property(lambda self: self.graphed or self.compiled))
        patch.setattr(acceleration, "CudaGraphs", lambda _: recorder())
        record = run_trial(table, out, Stopper(), layout=LayoutChoice(layout="padded"))
    assert record is not None
    assert record.status == "done", record.error
    steps = read_lines(out / "trials/r0001-s0/steps.jsonl")
    return record, [step["loss"] for step in steps if step["phase"] == "train"]


@pytest.fixture
def table(tiny_table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(step_check, "PAYS", 1e9)  # a stand-in saves no time
    return merge(tiny_table, {"grid": {"lora.rank": [1]}})


def reasons(record: Record) -> list[str]:
    return [one.detail for one in record.warnings if one.kind is WarningKind.PLAINER_STEPS]


def test_recorded_steps_train_as_plain_ones_do(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, expected = trial(monkeypatch, table, tmp_path / "plain", None)
    record, losses = trial(monkeypatch, table, tmp_path / "recorded", Repeating)
    assert (plain.resolved.graphed, record.resolved.graphed) == (False, True)
    assert record.resolved.row_lengths == (table["training"]["sequence_length"],)
    assert reasons(plain) == reasons(record) == []
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("recorder", "said"),
    [
        (Failing, "replaying steps as CUDA graphs failed (RuntimeError: operation not permitted"),
        (Louder, OTHER_LOSS),
        (Full, "failed (OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB)"),
    ],
)
def test_where_recording_does_not_hold_plain_steps_run_and_the_record_says_why(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any, said: str
) -> None:
    _, expected = trial(monkeypatch, table, tmp_path / "plain", None)
    record, losses = trial(monkeypatch, table, tmp_path / "recorded", recorder)
    assert record.resolved.graphed is False
    (reason,) = reasons(record)
    assert said in reason
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_recording_that_fails_after_its_check_leaves_plain_steps(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trial(monkeypatch, table, tmp_path / "plain", None)
    record, losses = trial(monkeypatch, table, tmp_path / "recorded", failing_after_the_check())
    assert record.resolved.graphed is False
    (reason,) = reasons(record)
    assert "failed (RuntimeError: operation not permitted" in reason
    assert losses == pytest.approx(expected, rel=1e-5), "the attempt has changed nothing"


def test_where_compiling_fails_steps_are_recorded_without(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the compiler is not there")

    _, expected = trial(monkeypatch, table, tmp_path / "plain", None)
    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    record, losses = trial(monkeypatch, table, tmp_path / "compiled", Repeating, compiled=True)
    assert (record.resolved.compiled, record.resolved.graphed) == (False, True)
    assert len(reasons(record)) == 2
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("is_traced", [True, False])
def test_on_a_cpu_where_nothing_is_checked_the_record_tells_whether_layers_were_compiled(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_traced: bool
) -> None:
    compile_ = partialmethod(torch.nn.Module.compile, backend="aot_eager") if is_traced else (lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layout = LayoutChoice(layout="padded")
    record = run_trial(merge(table, {"training": {"compile": True}}), tmp_path, Stopper(), layout=layout)
    assert record is not None
    assert record.status == "done", record.error
    assert record.resolved.compiled is is_traced
    assert reasons(record) == ([] if is_traced else [step_check.UNTRACED])


def test_what_training_leaves_out_inference_leaves_out_too(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inference has a process of its own, and holds joined adapters against nothing."""
    _, expected = trial(monkeypatch, table, tmp_path / "plain", None)
    plain, own, seen = setup.execution_of, JoinedLayer.forward, list[Execution]()
    monkeypatch.setattr(execution, "_can_fuse", lambda *_: False)  # as on a GPU
    monkeypatch.setattr(JoinedLayer, "forward", lambda *given: own(*given) * 1.5)
    monkeypatch.setattr(setup, "execution_of", lambda *given: replace(plain(*given), joined_adapters=True))
    with monkeypatch.context() as patch:
        running = Followers.running
        patch.setattr(Followers, "running", lambda *given, **more: (seen.append(given[2]), running(*given, **more))[1])
        record, losses = trial(monkeypatch, table, tmp_path / "joined", Repeating)
    assert record.resolved.joined_adapters is False
    assert len(seen) > 1
    assert not any(one.joined_adapters for one in seen)
    assert losses == pytest.approx(expected, rel=1e-5)
