"""What a record says of a trial that ran out of memory, by what its process or its worker could see."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import search_that_found_nothing
from hypothesis import given
from hypothesis import strategies as st
from test_resuming import Stopper, measure_job, run
from test_resuming import table as table
from test_resuming import told_at_every_step as told_at_every_step

from howlow.memory.limits import failed_allocation
from howlow.outcomes import Unfinished, requested_bytes
from howlow.records import BatchProbe, MemoryShortage, Reading, read_record, write_record
from howlow.reporting.failure import failure_words
from howlow.trial import method
from howlow.worker.diagnosis import diagnose, record_instead, too_large

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ON_CUDA = (
    "CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 79.11 GiB of which 12.00 MiB is "
    "free. Including non-PyTorch memory, this process has 78.9 GiB memory in use. Of the allocated memory 70.00 GiB is "
    "allocated by PyTorch, and 1.50 GiB is reserved by PyTorch but unallocated."
)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (ON_CUDA.format(asked="20.00 MiB"), 20 << 20),
        (ON_CUDA.format(asked="2.50 GiB"), 5 << 29),
        (ON_CUDA.format(asked="512 bytes"), 512),
        ("MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 256 bytes on private pool.", 256),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes. Error code 12", 4000000),
        ("Unable to allocate 7.45 GiB for an array with shape (1000000000,)", round(7.45 * 2**30)),
        ("unable to mmap 123456 bytes from file </w/model.safetensors>: Cannot allocate memory (12)", 123456),
        ("tried to allocate 1 bytes; then tried to allocate 7 bytes", 7),
        ("bad_alloc", None),
        ("", None),
    ],
)
def test_what_was_asked_for_is_read_from_the_message(text: str, asked: int | None) -> None:
    assert requested_bytes(text) == asked


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    found = requested_bytes(text)
    assert found is None or found >= 0


@pytest.mark.parametrize("allocate", [lambda n: torch.empty(n, dtype=torch.uint8), lambda n: np.empty(n, np.uint8)])
def test_the_messages_are_those_of_the_libraries(allocate: Callable[[int], Any]) -> None:
    asked = 1 << 60
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate(asked)
    wrapped = RuntimeError("the model cannot be loaded")
    wrapped.__cause__ = raised.value
    assert failed_allocation(raised.value) == failed_allocation(wrapped) == asked


# -- in the trial's own process -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "phase"), [("load_trial_model", "load"), ("fine_tune", "train"), ("_infer", "load"), ("release", "load")]
)
def test_a_trial_that_runs_out_of_memory_says_what_it_had_and_asked_for(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, phase: str
) -> None:
    def fail(state: Any, session: Any = None, *rest: Any, **others: Any) -> Any:
        if part == "fine_tune":
            with session.phase("train"):
                raise torch.OutOfMemoryError(ON_CUDA.format(asked="2.50 GiB"))
        raise torch.OutOfMemoryError(ON_CUDA.format(asked="2.50 GiB"))

    monkeypatch.setattr(method, part, fail)
    record = run(table, tmp_path, Stopper())
    assert record is not None
    assert record.status == "out_of_memory"
    found = record.shortage
    assert found is not None
    assert (found.source, found.phase, found.requested_bytes) == ("process", phase, 5 << 29)
    assert found.peak_memory_bytes is not None
    assert found.held_bytes is not None
    assert found.limit_bytes is not None
    assert 1e6 < found.peak_memory_bytes < found.limit_bytes
    has_trained = part in ("_infer", "release")
    assert [one.phase for one in record.phases] == ["load", "train"][: (phase != "load") + 2 * has_trained]
    assert "asked for 2.50 GiB" in failure_words(record)
    assert f"in {phase}" in failure_words(record)


def test_other_failures_have_no_shortage(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a wrong shape")

    monkeypatch.setattr(method, "fine_tune", fail)
    record = run(table, tmp_path, Stopper())
    assert record is not None
    assert (record.status, record.shortage) == ("failed", None)
    assert failure_words(record) == "RuntimeError: a wrong shape"


# -- by the worker --------------------------------------------------------------------------------------------------


def killed(table: dict[str, Any], folder: Path, phase: str, step: int) -> Any:
    """A trial whose process died there, with readings of its own making; its job and folder."""
    assert run(table, folder, Stopper(phase, step)) is None
    job = measure_job(table, folder).trial
    trial = folder / job.folder
    reading = Reading(time_s=1.0, device="cpu", memory_bytes=5, phase="load")
    last = [reading.model_copy(update={"phase": phase, "memory_bytes": size}) for size in (700, 900, 800)]
    (trial / "timeline.jsonl").write_text("".join(f"{one.model_dump_json()}\n" for one in (reading, *last)) + '{"ti')
    (trial / "log.txt").write_text("")
    return job, trial


@pytest.mark.parametrize(("phase", "phases"), [("train", ["load"]), ("evaluate", ["load", "train"])])
def test_of_a_trial_that_the_kernel_killed_the_last_reading_and_the_phases_before_are_kept(
    table: dict[str, Any], tmp_path: Path, phase: str, phases: list[str]
) -> None:
    job, folder = killed(table, tmp_path, phase, 3)
    found = diagnose(job, folder, Unfinished("died", exit_signal=9), "cpu", killed_by_kernel=True)
    assert found.status == "out_of_memory"
    assert found.shortage == MemoryShortage(
        source="timeline", phase=phase, peak_memory_bytes=900, limit_bytes=job.environment.memory_bytes
    )
    record = record_instead(job, folder, found, ())
    assert [one.phase for one in record.phases] == phases
    assert record.environment == job.environment
    assert record.model is not None
    write_record(folder, record)
    assert read_record(folder) == record
    assert f"in {phase}, last seen with 900 B, limit " in failure_words(record)


def test_the_log_of_a_process_that_crashed_says_what_it_asked_for(table: dict[str, Any], tmp_path: Path) -> None:
    job, folder = killed(table, tmp_path, "train", 1)
    (folder / "log.txt").write_text("terminate called: bad_alloc, you tried to allocate 4096 bytes")
    found = diagnose(job, folder, Unfinished("died", exit_signal=6), "cpu", killed_by_kernel=False)
    assert found.shortage is not None
    assert found.shortage.requested_bytes == 4096


@pytest.mark.parametrize("timeline", ["", "no JSON\n", None])
def test_without_a_whole_timeline_the_worker_says_what_is_left(
    table: dict[str, Any], tmp_path: Path, timeline: str | None
) -> None:
    job, folder = killed(table, tmp_path, "train", 3)
    (folder / "timeline.jsonl").unlink()
    if timeline is not None:
        (folder / "timeline.jsonl").write_text(timeline)
    (folder / "checkpoint" / "state.json").write_text("{")
    found = diagnose(job, folder, Unfinished("died", exit_signal=9), "cpu", killed_by_kernel=True)
    assert found.shortage == MemoryShortage(source="timeline", limit_bytes=job.environment.memory_bytes)
    record = record_instead(job, folder, found, ())
    assert (record.status, record.phases, record.environment) == ("out_of_memory", (), None)


def test_a_process_that_died_of_something_else_has_no_shortage(table: dict[str, Any], tmp_path: Path) -> None:
    job, folder = killed(table, tmp_path, "train", 1)
    found = diagnose(job, folder, Unfinished("died", exit_signal=9), "cpu", killed_by_kernel=False)
    assert (found.status, found.shortage) == ("failed", None)


def test_where_no_batch_fits_the_probe_says_what_one_example_took() -> None:
    probe = BatchProbe(batch=1, computed_tokens=160, peak_memory_bytes=120, fits=False)
    search = search_that_found_nothing(probe)
    found = too_large(search, "nothing fits")
    assert found.shortage == MemoryShortage(source="probe", held_bytes=120, limit_bytes=97)
