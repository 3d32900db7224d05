"""Records: written and read, torn and damaged files."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow import load_settings
from howlow.errors import UserError
from howlow.records import (
    REMEDIES,
    SCHEMA_VERSION,
    DataRecord,
    EnergySource,
    EnergyWindow,
    Environment,
    LineWriter,
    ModelRecord,
    PhaseRecord,
    Reading,
    Record,
    RecordWarning,
    Scores,
    Step,
    WarningKind,
    clear_temporaries,
    cut_lines,
    read_lines,
    read_record,
    read_records,
    read_steps,
    read_timeline,
    write_atomically,
    write_record,
)
from howlow.settings import merge

TABLE = {"model": "m", "task": {"name": "completion", "train": "a", "test": "b"}}
ENVIRONMENT = {
    "device": "cuda:0",
    "device_name": "A100",
    "cpu": "c",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 1,
    "platform": "Linux",
    "python": "3.11",
    "versions": {"torch": "2.6"},
}
MODEL = {
    "reference": "m",
    "architecture": "Llama",
    "total_parameters": 10,
    "trainable_parameters": 1,
    "tokenizer": "m",
    "weights": "pretrained",
}
DATA = {
    "train_sha256": "aa",
    "test_sha256": "bb",
    **dict.fromkeys(
        ("train_examples", "train_groups", "test_examples", "test_groups", "train_tokens", "test_tokens"), 3
    ),
    **dict.fromkeys(("longest_tokens", "overlap_left_out", "dropped", "cut"), 1),
}


def record(
    name: str = "r0008-s0",
    *,
    environment: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """A whole record, with changes to its parts."""
    whole = {
        "trial": name,
        "kind": "lora",
        "rank": 8,
        "seed": 0,
        "axes": {},
        "status": "done",
        "settings": load_settings(None, [merge(TABLE, settings or {})]),
        "environment": Environment(**merge(ENVIRONMENT, environment or {})),
        "model": ModelRecord(**MODEL | (model or {})),
        "data": DataRecord(**DATA | (data or {})),
    }
    return Record(**whole | fields)


WINDOW = EnergyWindow(part="prefill", device="cpu", energy_j=1 / 3, duration_s=0.1, readings=7)
FULL = record(
    axes={"training.batch_size": 4, "lora.target_modules": ["q_proj", "v_proj"], "task.stop": "\n\u2028é"},
    status="diverged",
    error="the loss of step 3 is nan",
    resumed=2,
    phases=(
        PhaseRecord(phase="train", start_s=0.1, duration_s=1 / 3, windows=(WINDOW,)),
        PhaseRecord(phase="evaluate", start_s=0.5, duration_s=1e-9, peak_memory_bytes=2**40, measured_samples=3),
    ),
    energy=EnergySource(name=None, detail="no sensor"),
    scores=Scores(loss=2.5, exact_match=0.0),
    warnings=(RecordWarning(kind=WarningKind.ENERGY_ABSENT, detail="no sensor"),),
    settings={"lora": {"alpha": "3r"}, "training": {"betas": [0.8, 0.99]}},
    preparation_s=3.25,
)


# -- record.json ----------------------------------------------------------------------------------------------------


def test_a_record_written_and_read_is_the_same(tmp_path: Path):
    assert read_record(tmp_path) is None
    write_record(tmp_path, FULL)
    assert read_record(tmp_path) == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert (FULL.phase("train"), FULL.phase("generate")) == (FULL.phases[0], None)


def test_what_is_not_finite_is_written_as_absent(tmp_path: Path):
    write_record(tmp_path, record(scores=Scores(loss=math.inf, perplexity=math.nan)))
    text = (tmp_path / "record.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    read = read_record(tmp_path)
    assert read is not None
    assert (read.scores.loss, read.scores.perplexity) == (None, None)


def test_a_parts_absence_is_kept(tmp_path: Path):
    failed = FULL.model_copy(update={"environment": None, "model": None, "data": None, "energy": None, "rank": None})
    write_record(tmp_path, failed)
    assert read_record(tmp_path) == failed


def refusal(action: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_schema_version_is_refused(tmp_path: Path):
    write_record(tmp_path, FULL.model_copy(update={"schema_version": SCHEMA_VERSION + 1}))
    assert refusal(read_record, tmp_path) == (
        f"{tmp_path}/record.json: schema version {SCHEMA_VERSION + 1}, this howlow reads versions 1 and "
        f"{SCHEMA_VERSION}; "
        "use the howlow that wrote it, or another folder"
    )


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'"schema_version"', b"{}", b"null", b"\xff\xfe{}"])
def test_a_file_that_is_no_record_is_one_line(tmp_path: Path, text: bytes):
    (tmp_path / "record.json").write_bytes(text)
    assert refusal(read_record, tmp_path) == (
        f"{tmp_path}/record.json: no record; remove the file to run this trial again"
    )


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"status": "fine"}, "status"),
        ({"seed": "x"}, "seed"),
        ({"colour": "red"}, "colour"),
        ({"phases": [{"phase": "train"}]}, "phases.0.start_s"),
        ({"settings": {}}, "settings.model"),
    ],
)
def test_a_damaged_record_is_one_line_that_says_where(tmp_path: Path, change: dict[str, Any], where: str):
    document = json.loads(FULL.model_dump_json()) | change
    (tmp_path / "record.json").write_text(json.dumps(document))
    message = refusal(read_record, tmp_path)
    assert message.startswith(f"{tmp_path}/record.json: damaged at {where}: ")
    assert message.endswith("; remove the file to run it again")


def test_a_record_that_cannot_be_opened_is_one_line(tmp_path: Path):
    (tmp_path / "record.json").mkdir()
    assert refusal(read_record, tmp_path).endswith(
        "cannot be read as a record (Is a directory); make it readable, or remove it"
    )


def test_a_folder_without_records(tmp_path: Path):
    assert refusal(read_records, tmp_path / "no") == f"{tmp_path}/no: no such folder; give the --out folder of a sweep"
    assert "not a run directory" in refusal(read_records, tmp_path)
    for name in ("r0002-s0", "r0001-s0"):
        (tmp_path / "trials" / name).mkdir(parents=True)
        write_record(tmp_path / "trials" / name, record(name))
    (tmp_path / "trials" / "r0004-s0").mkdir()
    (tmp_path / "trials" / "notes.txt").write_text("mine")
    assert [found.trial for found in read_records(tmp_path)] == ["r0001-s0", "r0002-s0"]


def test_every_warning_has_a_remedy():
    assert set(REMEDIES) == set(WarningKind)
    assert RecordWarning(kind=WarningKind.RESUMED, detail="d").remedy == REMEDIES[WarningKind.RESUMED]


# -- whole or not there ---------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_file_before_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "record.json"
    write_atomically(path, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("howlow.records.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_temporaries_of_a_killed_writer_are_cleared(tmp_path: Path):
    (tmp_path / ".record.json.1.tmp").write_text("half")
    (tmp_path / ".adapter.1.tmp").mkdir()
    (tmp_path / ".adapter.1.tmp" / "half").write_text("")
    (tmp_path / "mine.tmp").write_text("")
    clear_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tmp"]


# -- lines ----------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.dictionaries(st.text(max_size=3), st.text(max_size=8) | st.floats(allow_nan=False) | st.none(), max_size=3),
    max_size=5,
)


def written(path: Path, lines: list[dict[str, Any]]) -> bytes:
    writer = LineWriter(path)
    for line in lines:
        writer.append(json.dumps(line, ensure_ascii=False))
    writer.close()
    return path.read_bytes()


@given(LINES, st.data())
def test_any_cut_of_a_file_of_lines_reads_as_its_whole_lines(lines: list[dict[str, Any]], data: st.DataObject):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        whole = written(path, lines)
        cut = whole[: data.draw(st.integers(0, len(whole)))]
        path.write_bytes(cut)
        assert list(read_lines(path)) == lines[: cut.count(b"\n")]


@given(LINES, st.binary(max_size=5).filter(lambda torn: b"\n" not in torn))
def test_after_cutting_a_torn_line_the_next_one_is_whole(lines: list[dict[str, Any]], torn: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        path.write_bytes(written(path, lines) + torn)
        cut_lines(path, lambda line: True)
        written(path, [{"next": 1}])
        assert list(read_lines(path)) == [*lines, {"next": 1}]


def test_lines_are_cut_at_the_first_that_is_not_kept(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    written(path, [{"step": step} for step in (0, 1, 5, 2)])
    cut_lines(path, lambda line: line["step"] < 3)
    assert list(read_lines(path)) == [{"step": 0}, {"step": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path):
    assert list(read_lines(tmp_path / "no.jsonl")) == []
    cut_lines(tmp_path / "no.jsonl", lambda line: True)
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_on_the_disk_before_the_file_is_closed(tmp_path: Path):
    writer = LineWriter(tmp_path / "lines.jsonl")
    writer.append('{"a": 1}')
    assert list(read_lines(tmp_path / "lines.jsonl")) == [{"a": 1}]
    writer.close()


STEP = Step(
    phase="generate",
    part="measured",
    step=0,
    start_s=0.5,
    duration_s=0.25,
    micro_batches=1,
    samples=4,
    tokens=10,
    target_tokens=3,
    computed_tokens=40,
    loss=None,
)


def test_steps_and_readings_written_without_what_is_absent_read_the_same(tmp_path: Path):
    reading = Reading(time_s=1.5, device="cpu", phase="train", utilization=0.5)
    steps = [STEP, STEP.model_copy(update={"phase": "train", "loss": 2.0, "skipped": True, "gradient_norm": 1.0})]
    for name, values in (("steps.jsonl", steps), ("timeline.jsonl", [reading])):
        written(tmp_path / name, [json.loads(value.model_dump_json(exclude_none=True)) for value in values])
    assert [found.loss for found in read_steps(tmp_path)] == [None, 2.0]
    assert read_steps(tmp_path) == steps
    assert read_timeline(tmp_path) == [reading]
