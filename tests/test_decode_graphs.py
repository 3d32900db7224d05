"""Recorded token steps write what plain ones do; a recorder that repeats the recorded call stands for CUDA's graphs."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from conftest import loaded
from executions import on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact import FAST, Letters, adapted, double_softmax, example_sets  # noqa: F401  (a fixture)
from test_resuming import KilledError, Stopper
from test_resuming import run as run_trial
from test_step_graphs import Failing, Repeating

from howlow.engine import decode_check, decode_graphs, generation
from howlow.engine.decode_check import trusted_graphs
from howlow.engine.decode_graphs import LOOK_EVERY, DecodeGraphs, DecodeShape, Written, decode_shapes
from howlow.engine.execution import Execution, Running
from howlow.engine.generation import Generated
from howlow.engine.tree_generation import PromptRow, lay_out_prompts
from howlow.records import LayoutChoice, WarningKind, read_lines
from howlow.settings import merge
from howlow.trial import decoding, fine_tuning

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:unclosed file"),  # a killed process leaves its files to the system
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

T = TypeVar("T")
Prompts = Sequence[Sequence[int]]
NAMES = ("llama", "sliding mistral", "qwen2", "gemma2", "gemma3", "gpt2")
NEW = 9
BATCHES = [[(3, 4, 5, 6), (7, 8)], [(30, 31, 32, 33, 34, 35)] * 3]


@contextmanager
def recording(
    model: Any, shapes: Sequence[DecodeShape], new: int = NEW, **options: Any
) -> Iterator[tuple[Running, DecodeGraphs]]:
    with torch.inference_mode(), on_cpu(model, **options) as run, run.autocast():
        graphs = DecodeGraphs(run, shapes, new)
        graphs.record(Repeating())
        yield run, graphs


def laid_out(prompts: Prompts, share: bool, new: int = NEW) -> PromptRow:
    return lay_out_prompts(prompts, share=share, max_new_tokens=new, keeps_paths=True)


def continued(
    run: Running, prompts: Prompts, graphs: DecodeGraphs | None, share: bool = True, **options: Any
) -> tuple[list[Generated], int]:
    new = options.pop("max_new_tokens", NEW)
    chosen: dict[str, Any] = {"stop": None, "eos": frozenset({2}), "pad_id": 0, "prompt_length": 64} | options
    layout: Any = "shared" if share else "packed"
    chosen |= {"layout": layout, "max_new_tokens": new, "laid_out": laid_out(prompts, share, new)}
    return generation.generate(run, Letters(), prompts, recorded=graphs, **chosen)


@pytest.mark.parametrize("name", NAMES)
@given(sets=st.lists(example_sets(), min_size=2, max_size=2), eos=st.integers(3, 60), data=st.data())
@settings(max_examples=4, phases=FAST)
def test_texts_are_those_of_plain_steps(name: str, sets: Any, eos: int, data: st.DataObject):
    """Two batches through one recording, with prefixes that are shared or not, and stops of several tokens."""
    new, many = data.draw(st.integers(1, NEW), "max_new_tokens"), data.draw(st.sampled_from([0, 8]), "many")
    batches = [[example.prompt for example in examples] for examples in sets]
    options: dict[str, Any] = {"max_new_tokens": new, "eos": frozenset({2, eos})}
    model, shapes = adapted(name, torch.float64).eval(), decode_shapes(batches, new)
    with pytest.MonkeyPatch.context() as patch, recording(model, shapes, new) as (run, graphs):
        patch.setattr(decode_graphs, "_MANY", many)
        for prompts in batches:
            share = data.draw(st.booleans(), "share")
            expected, _ = continued(run, prompts, None, share, **options)
            stop = max((row.text for row in expected), key=len)[1:3]
            if stop and data.draw(st.booleans(), "stops"):
                options["stop"] = stop
                expected, _ = continued(run, prompts, None, share, **options)
            found, _ = continued(run, prompts, graphs, share, **options)
            assert found == expected
            margins = [row.smallest_margin for row in expected]
            assert [row.smallest_margin for row in found] == pytest.approx(margins, rel=1e-4, abs=1e-6)
    adapted(name, torch.float64).train()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_joined_adapters_write_what_pefts_own_code_does(name: str):
    """On a GPU inference keeps the joined adapters of training."""
    model, shapes = adapted(name, torch.float32).eval(), decode_shapes(BATCHES, NEW)
    found = []
    for joins in (False, True):
        with recording(model, shapes, joins_adapters=joins) as (run, graphs):
            assert run.execution.joined_adapters is joins
            found.append([continued(run, prompts, one)[0] for prompts in BATCHES for one in (None, graphs)])
    texts, joined = ([[row.text for row in rows] for rows in one] for one in found)
    assert joined == texts
    assert len({text for rows in texts for text in rows}) > 1
    adapted(name, torch.float32).train()


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """The tiny model with its weights spread, so that its continuations vary."""
    found = loaded(tiny_model)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return found.requires_grad_(False)


def test_the_host_looks_every_few_tokens_and_counts_what_was_computed(model: Any, monkeypatch: pytest.MonkeyPatch):
    looks, read = [0], Written.read

    def counted(self: Written) -> Any:
        looks[0] += 1
        return read(self)

    monkeypatch.setattr(Written, "read", counted)
    prompts = [(65, 66, 67), (65, 66, 70, 71)]
    with recording(model, [DecodeShape(3, 64)], 12) as (run, graphs):
        rows, computed = continued(run, prompts, graphs, eos=frozenset(), max_new_tokens=12)
        assert [row.new_tokens for row in rows] == [12, 12]
        assert looks[0] == 1 + math.ceil(11 / LOOK_EVERY)
        assert computed == laid_out(prompts, True).length + 3 * 11, "a row without a prompt is computed, too"
        plain, _ = continued(run, prompts, None, eos=frozenset(), max_new_tokens=12)
        assert rows == plain


def test_rows_that_end_at_different_steps_end_the_batch_with_the_last(model: Any):
    prompts = [(65, 66, 67, 68), (32,), (97, 98), (10, 20, 30), (200, 13, 7)]
    with recording(model, decode_shapes([prompts], 24), 24) as (run, graphs):
        whole, _ = continued(run, prompts, None, eos=frozenset(), max_new_tokens=24)
        plain, _ = continued(run, prompts, None, max_new_tokens=24, eos=frozenset(range(0, 264, 7)))
        found, computed = continued(run, prompts, graphs, max_new_tokens=24, eos=frozenset(range(0, 264, 7)))
    assert found == plain != whole
    last = max(row.new_tokens for row in found)
    assert len({row.new_tokens for row in found}) > 1
    steps = (computed - sum(map(len, prompts))) / len(prompts)
    assert last - 1 <= steps < last - 1 + LOOK_EVERY, "the host looks once more at most"


def test_shapes_hold_their_batches_and_are_few():
    batches = [[(1,) * (length + row) for row in range(rows)] for length, rows in ((5, 3), (300, 2), (40, 3))]
    shapes = decode_shapes(batches, 32)
    assert {shape.rows for shape in shapes} == {3}
    assert [shape.length for shape in shapes] == [128, 384]
    long = [(1,) * length for length in range(1, 3000)]
    assert len(decode_shapes([[prompt] for prompt in long], 8)) <= 8


def test_a_batch_takes_the_shortest_shape_and_one_that_fits_none_runs_plain(model: Any):
    shapes = [DecodeShape(2, 32), DecodeShape(2, 16)]
    with recording(model, shapes) as (run, graphs):
        for prompts, rows in (([(5,) * 6], 2), ([(5,) * 20, (6,)], 2)):
            row = laid_out(prompts, True)
            assert graphs.holds(row)
            assert continued(run, prompts, graphs)[0] == continued(run, prompts, None)[0]
            assert graphs.rows == rows
        for prompts in ([(5,)] * 3, [(5,) * 30]):
            assert not graphs.holds(laid_out(prompts, True))
            assert continued(run, prompts, graphs) == continued(run, prompts, None)
        assert not graphs.holds(lay_out_prompts([(5,)], share=True, max_new_tokens=NEW)), "its paths are not kept"


def test_nothing_of_a_batch_is_left_in_the_next(model: Any):
    """Values of an earlier batch that are not finite would spoil what a mask only multiplies by 0."""
    with recording(model, [DecodeShape(2, 32)]) as (run, graphs):
        expected = continued(run, [(5, 6)], graphs)
        for layer in graphs._cache.layers:
            layer.keys.fill_(math.nan)
            layer.values.fill_(math.inf)
        assert continued(run, [(5, 6)], graphs) == expected


# -- the check before anything is trusted ------------------------------------------------------------------------------


class Wrong(Repeating):
    """A recording that gives other logits."""

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        again = super().record(work)

        def moved() -> T:
            result = again()
            result.copy_(result.roll(1, -1))  # type: ignore[attr-defined]
            return result

        return moved


class Twice(Repeating):
    """A recording that gives each row two tokens a step."""

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        return super().record(lambda: (work(), work())[0])


def checked(
    model: Any, recorder: Any, precision: str = "fp32", *, compiles: bool = False
) -> tuple[DecodeGraphs | None, tuple[str, ...]]:
    rows = [laid_out(prompts, True) for prompts in BATCHES]
    given: dict[str, Any] = {"max_new_tokens": NEW, "recorder": lambda: recorder, "compiles": compiles}
    with on_cpu(model, precision) as run, run.autocast():
        return trusted_graphs(run, decode_shapes(BATCHES, NEW), rows, **given)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recording_that_is_right_and_pays_is_trusted(model: Any, monkeypatch: pytest.MonkeyPatch, precision: str):
    monkeypatch.setattr(decode_check, "PAYS", 1e9)  # a stand-in saves no time
    graphs, problems = checked(model, Repeating(), precision)
    assert problems == ()
    assert graphs is not None
    assert not graphs.is_compiled


@pytest.mark.parametrize(
    ("recorder", "pays", "said"),
    [
        (Failing(), 1e9, "failed (RuntimeError: operation not permitted when stream is capturing)"),
        (Wrong(), 1e9, "changes the logits by"),
        (Twice(), 1e9, "changes the logits by"),
        (Repeating(), 0.0, "pays nothing"),
    ],
)
def test_what_does_not_hold_is_left_out(
    model: Any, monkeypatch: pytest.MonkeyPatch, recorder: Any, pays: float, said: str
):
    monkeypatch.setattr(decode_check, "PAYS", pays)
    graphs, problems = checked(model, recorder)
    assert graphs is None
    assert len(problems) == 1
    assert problems[0].startswith("replaying token steps as CUDA graphs ")
    assert said in problems[0]


def test_a_token_that_is_not_the_most_likely_is_found(model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_check, "PAYS", 1e9)
    monkeypatch.setattr(decode_graphs, "most_likely", lambda logits: (logits.argmin(-1), logits.amax(-1)))
    graphs, problems = checked(model, Repeating())
    assert graphs is None
    assert problems == ("replaying token steps as CUDA graphs writes a token that is not the most likely one",)


def why_not_compiled(model: Any, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., None]) -> str:
    """The one reason why steps are recorded, and not compiled, with a stand-in for the compiler."""
    monkeypatch.setattr(decode_check, "PAYS", 1e9)
    monkeypatch.setattr(torch.nn.Module, "compile", stand_in)
    graphs, problems = checked(model, Repeating(), compiles=True)
    assert graphs is not None
    assert not graphs.is_compiled
    assert len(problems) == 1
    return problems[0]


def refuse_to_compile(*_: Any, **__: Any) -> None:
    raise RuntimeError("no compiler was found")


def test_steps_that_cannot_be_compiled_are_recorded_as_they_are(model: Any, monkeypatch: pytest.MonkeyPatch):
    problem = why_not_compiled(model, monkeypatch, refuse_to_compile)
    assert problem == (
        "compiling token steps and replaying them as CUDA graphs failed (RuntimeError: no compiler was found)"
    )


def slow_down(layer: Any, **_: Any) -> None:
    """Stands for a compilation whose code is slow."""

    def called(*given: Any, **named: Any) -> Any:
        time.sleep(0.05)
        return layer._call_impl(*given, **named)

    layer._compiled_call_impl = called


def test_compiled_steps_that_are_slower_than_others_recorded_are_left_out(model: Any, monkeypatch: pytest.MonkeyPatch):
    assert why_not_compiled(model, monkeypatch, slow_down).endswith("recorded without compiling")


def test_the_check_reads_the_longest_prompt_another_batch_and_the_smallest_row():
    first, long, short, last = [(1,) * 30] * 3, [(1,) * 50] * 3, [(1,) * 5], [(1,) * 40] * 3
    assert decoding._to_be_checked([first, long, short, last]) == [long, last, short]
    assert decoding._to_be_checked([first, short, long]) == [long, first, short]
    assert decoding._to_be_checked([short, long]) == [long, short]
    assert decoding._to_be_checked([long]) == [long, long]


def test_where_neither_holds_both_reasons_are_told(model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.nn.Module, "compile", refuse_to_compile)
    graphs, problems = checked(model, Failing(), compiles=True)
    assert graphs is None
    assert [problem.split(" failed")[0] for problem in problems] == [
        "compiling token steps and replaying them as CUDA graphs",
        "replaying token steps as CUDA graphs",
    ]


# -- a trial -----------------------------------------------------------------------------------------------------------


def test_a_trial_says_what_ran_and_its_answers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    inference = {"batch_size": 5, "max_new_tokens": 12, "adapter": "merged"}  # both adapters write all answers
    table = merge(tiny_table, {"inference": inference, "grid": {"lora.rank": [1]}})
    monkeypatch.setattr(decode_check, "PAYS", 1e9)
    found, plain = [], Execution.for_generation
    for recorder in (None, Repeating, Failing):
        graphed = recorder is not None
        monkeypatch.setattr(Execution, "for_generation", lambda self: replace(plain(self), graphed=graphed))  # noqa: B023
        monkeypatch.setattr(decoding, "CudaGraphs", lambda _: recorder())  # noqa: B023
        out, choice = tmp_path / str(len(found)), LayoutChoice(layout="shared", kernel="sdpa")
        record = run_trial(table, out, Stopper(), layout=choice)
        assert record is not None
        assert record.status == "done", record.error
        warned = [one.phase for one in record.warnings if one.kind == WarningKind.PLAINER_STEPS]
        assert record.resolved.generation_graphed is (recorder is Repeating)
        assert warned == (["generate"] if recorder is Failing else [])
        lines = list(read_lines(out / "trials/r0001-s0/predictions.jsonl"))
        found.append([{key: line[key] for key in ("id", "generated", "new_tokens")} for line in lines])
        assert record.merged is not None
        assert record.merged.equal_texts == len(lines)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 5


def test_what_ran_is_known_after_an_interruption_too(
    monkeypatch: pytest.MonkeyPatch, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    """In training, in generation, and where nothing but the record is left to do."""

    def die(*_: Any) -> None:
        raise KilledError

    def ready(state: Any, *given: Any) -> Any:
        state.resolve(row_lengths=(128, 256), row_padding=0.25, joined_adapters=True, compiled=True, graphed=False)
        return plainly(state, *given)

    plainly, plain = fine_tuning.ready, Execution.for_generation
    monkeypatch.setattr(fine_tuning, "ready", ready)
    monkeypatch.setattr(Execution, "for_generation", lambda self: replace(plain(self), graphed=True))
    monkeypatch.setattr(decoding, "CudaGraphs", lambda _: Repeating())
    monkeypatch.setattr(decode_check, "PAYS", 1e9)
    write = "howlow.trial.run.write_record"
    table = merge(tiny_table, {"grid": {"lora.rank": [1]}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, die)
        assert run_trial(table, tmp_path, Stopper(), layout=LayoutChoice(layout="shared", kernel="sdpa")) is None
    record = run_trial(table, tmp_path, Stopper(), layout=LayoutChoice(layout="shared", kernel="sdpa"))
    assert record is not None
    resolved = record.resolved
    assert (resolved.row_lengths, resolved.row_padding) == ((128, 256), 0.25)
    assert resolved.joined_adapters is True
    assert (resolved.compiled, resolved.graphed, resolved.generation_graphed) == (True, False, True)
