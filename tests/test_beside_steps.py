"""What runs beside the steps: batches are laid out ahead, and lines are written later."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_resuming import Stopper, run

from howlow.engine import generation, layouts
from howlow.records import LayoutChoice, LineWriter, read_lines
from howlow.settings import merge
from howlow.trial import prefetch
from howlow.trial.lines import PredictionLines, StepLines
from howlow.trial.prefetch import prefetched


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("howlow")}


# -- batches ahead --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(), max_size=12))
def test_results_come_in_order_from_one_other_thread(items: list[int]) -> None:
    with prefetched(lambda item: (2 * item, threading.get_ident()), items) as results:
        found = list(results)
    assert [result for result, _ in found] == [2 * item for item in items]
    idents = {ident for _, ident in found}
    assert len(idents) <= 1
    assert threading.get_ident() not in idents
    assert not threads()


def test_an_error_is_raised_where_its_result_is_asked_for() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    with prefetched(prepare, range(5)) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)
    assert not threads()


@given(items=st.integers(0, 60), ahead=st.integers(1, 30))
def test_no_more_is_laid_out_than_asked_for_and_that_before_the_first_step(items: int, ahead: int) -> None:
    made, taken = [], []
    with prefetched(made.append, range(items), ahead) as results:
        for _ in results:
            assert taken or len(made) >= min(items, ahead)
            taken.append(None)
            assert len(made) <= len(taken) + ahead
    assert made == list(range(items))


def test_long_steps_are_laid_out_a_few_ahead_and_short_ones_within_the_same_memory() -> None:
    assert prefetch.steps_ahead(40, 2048) == prefetch.STEPS_AHEAD
    assert prefetch.steps_ahead(4, 160) * 4 * 160 <= prefetch.AHEAD_TOKENS
    assert prefetch.steps_ahead(4, 160) > 100


def test_what_is_left_when_the_context_ends_is_dropped() -> None:
    made: list[int] = []
    with prefetched(made.append, range(1000)) as results:
        next(results)
    assert len(made) <= 1 + prefetch.STEPS_AHEAD
    assert not threads()


# -- lines behind ---------------------------------------------------------------------------------------------------


def test_lines_of_steps_are_in_order_and_there_after_a_flush(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    with StepLines(path) as lines:
        for number in range(50):
            lines.append(partial(json.dumps, {"step": number}))
        lines.flush()
        assert [found["step"] for found in read_lines(path)] == list(range(50))
        lines.append(lambda: "{}")
    assert len(list(read_lines(path))) == 51
    assert not threads()


def test_a_line_is_written_soon_and_by_another_thread(tmp_path: Path) -> None:
    made = threading.Event()
    made_by: list[int] = []

    def line() -> str:
        made_by.append(threading.get_ident())
        made.set()
        return "{}"

    with StepLines(tmp_path / "steps.jsonl") as lines:
        lines.append(line)
        assert made.wait(30)
    assert made_by != [threading.get_ident()]


class FullDisk:
    """A file system on which only so many lines find room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self._append = room, LineWriter.append
        monkeypatch.setattr(LineWriter, "append", lambda writer, line: self.append(writer, line))

    def append(self, writer: LineWriter, line: str) -> None:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        self.room -= 1
        self._append(writer, line)


def test_a_full_disk_is_raised_by_the_next_call_and_no_later_line_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, path = FullDisk(monkeypatch, 2), tmp_path / "steps.jsonl"
    with StepLines(path) as lines:
        for number in range(3):
            lines.append(partial(json.dumps, {"step": number}))
        with pytest.raises(OSError, match="No space left"):
            lines.flush()
        disk.room = 10  # space again: a line behind the lost one would make a hole
        lines.append(lambda: "{}")
    assert [line["step"] for line in read_lines(path)] == [0, 1]
    assert not threads()


def test_a_disk_that_is_full_at_the_end_of_a_phase_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def phase() -> None:
        with StepLines(tmp_path / "steps.jsonl") as lines:
            lines.append(lambda: "{}")

    FullDisk(monkeypatch, 0)
    with pytest.raises(OSError, match="No space left"):
        phase()
    assert not threads()


@pytest.mark.parametrize("kind", [StepLines, PredictionLines])
def test_whatever_ends_a_phase_its_lines_are_written(tmp_path: Path, kind: Any) -> None:
    def phase() -> None:
        with kind(tmp_path / "lines.jsonl") as lines:
            if kind is StepLines:
                lines.append(lambda: "{}")
            else:
                lines.add(lambda: ["{}"])
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed"):
        phase()
    assert list(read_lines(tmp_path / "lines.jsonl")) == [{}]


def test_answers_are_scored_when_they_are_asked_for_and_once(tmp_path: Path) -> None:
    path, scored = tmp_path / "predictions.jsonl", list[int]()

    def score(number: int) -> Iterator[str]:
        scored.append(number)
        yield json.dumps({"id": number})

    with PredictionLines(path) as predictions:
        predictions.add(lambda: score(0))
        predictions.add(lambda: score(1))
        assert not scored
        predictions.flush()
        predictions.add(lambda: score(2))
    assert scored == [line["id"] for line in read_lines(path)] == [0, 1, 2]


# -- in a trial -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_a_trial_lays_out_nothing_between_its_steps(
    tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any
) -> None:
    """In training, evaluation and generation: the trial's own thread lays out no batch."""
    seen: dict[str, set[bool]] = {}

    def noted(module: Any, name: str) -> None:
        work = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
            return work(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    noted(layouts, "lay_out")
    noted(generation, "lay_out_ahead")
    choice = LayoutChoice(layout=layout, kernel=None if layout == "padded" else "sdpa")
    record = run(merge(tiny_table, {"grid": {"lora.rank": [1]}}), tmp_path, Stopper(), layout=choice)
    assert record is not None
    assert record.status == "done", record.error
    assert seen == {"lay_out": {False}, "lay_out_ahead": {False}}
