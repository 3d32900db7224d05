"""What a worker's machine must see before it joins, and which GPU a worker has."""

import errno
import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_rows import settings_of

from howlow.errors import UserError
from howlow.jobs import ModelJob, PreparationReport
from howlow.meters import machine
from howlow.meters.machine import choose_device
from howlow.outcomes import Returned
from howlow.sweeping.sweep import _devices as devices_of
from howlow.worker import board, door, joining
from howlow.worker.board import Board, clock_ahead_s
from howlow.worker.joining import work

HERE = door._here()


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    (tmp_path / ".howlow").mkdir()
    return tmp_path


def test_a_folder_that_is_not_there_or_is_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no such folder on {HERE}; name the run directory"):
        work(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: a file, no run directory"):
        work(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_refused(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    assert abs(door.refuse_unwritable(run_directory)) < 5.0
    assert list((run_directory / ".howlow").iterdir()) == []
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match=f"{HERE} cannot write there .Read-only file system.; mount it for writing"):
        door.refuse_unwritable(run_directory)


@pytest.mark.parametrize(("shift_s", "words"), [(60.0, "60 s ahead of"), (-3600.0, "3,600 s behind")])
def test_a_clock_that_disagrees_is_refused_and_may_be_accepted(
    shift_s: float, words: str, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Board(code="a", trials=(), host="node1", clock_ahead_s=clock_ahead_s(run_directory))
    board.board_path(run_directory).write_text("")
    door.refuse_other_clock(door.refuse_unwritable(run_directory), there, run_directory, ())
    now_s = board.date_s
    for module in (board, door):
        monkeypatch.setattr(module, "date_s", lambda: now_s() + shift_s)
    ahead_s = door.refuse_unwritable(run_directory)
    with pytest.raises(UserError, match=f"the clock of {HERE} is {words} that of node1") as caught:
        door.refuse_other_clock(ahead_s, there, run_directory, ())
    assert "--accept-different environment.clock" in str(caught.value)
    door.refuse_other_clock(ahead_s, there, run_directory, ["environment.clock"])
    as_far = there.model_copy(update={"clock_ahead_s": ahead_s})
    if shift_s > 0:  # both machines are as far ahead of the file server
        door.refuse_other_clock(ahead_s, as_far, run_directory, ())


def test_a_board_of_the_future_tells_of_a_clock_where_files_bear_the_time_of_their_writer(run_directory: Path) -> None:
    path = board.board_path(run_directory)
    path.write_text("")
    future_s = path.stat().st_mtime + 500
    os.utime(path, (future_s, future_s))
    with pytest.raises(UserError, match=r"is (499|500) s behind that of the machine of the sweep"):
        door.refuse_other_clock(0.0, Board(code="a", trials=()), run_directory, ())


@pytest.mark.parametrize("further", [{}, {"trials": "in another form"}, {"trials": [], "new_field": 1}])
def test_a_worker_of_another_version_is_refused_by_name_whatever_the_other_one_wrote(
    further: dict[str, Any], run_directory: Path
) -> None:
    """At once, although the sweep's process is alive: a board that this version cannot read never becomes readable."""
    board.write_owner(run_directory)
    written = {"code": "c0ffee" * 10, "revision": "d00d"} | further
    board.board_path(run_directory).write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"code_sha256 is \w{12} here, c0ffeec0ffee in the sweep; .*commit d00d in the"):
        work(run_directory)
    with pytest.raises(UserError, match="cannot read what the sweep's howlow wrote; run the same version of howlow"):
        work(run_directory, accept_different=["environment.code_sha256"])


def test_the_owner_of_a_sweep_is_named_with_its_machine_where_that_is_another(run_directory: Path) -> None:
    assert board.owner_name(run_directory) == "another process"
    board.write_owner(run_directory)
    assert board.owner_name(run_directory) == f"process {os.getpid()}"
    owner = json.loads((run_directory / ".howlow" / "owner.json").read_text())
    there = {"pid": 7, "host": owner["host"] | {"name": "node9", "boot": "another"}}
    (run_directory / ".howlow" / "owner.json").write_text(json.dumps(there))
    assert board.owner_name(run_directory) == "process 7 on node9"


@pytest.mark.parametrize("key", ["model", "tokenizer", "lora.start"])
def test_a_file_that_this_machine_does_not_see_is_refused(key: str, tmp_path: Path) -> None:
    changes = {key: "/not/here", **({"lora.start_rank": 8} if key == "lora.start" else {})}
    job: Any = SimpleNamespace(settings=settings_of("question_answering", 1, 0, **changes))
    with pytest.raises(UserError, match=f"{HERE} does not see {key} = /not/here; put it into a folder"):
        door.refuse_unseen_files([job], tmp_path)
    named: Any = SimpleNamespace(settings=settings_of("question_answering", 1, 0, model="owner/name"))
    door.refuse_unseen_files([named], tmp_path)


def test_another_model_under_the_same_name_is_refused_and_may_be_accepted(tmp_path: Path) -> None:
    door.refuse_other_model("/models/m", "a" * 64, "a" * 64, tmp_path, ())
    with pytest.raises(
        UserError, match=f"{HERE} has another model under model = /models/m .*: a{{12}} here, b{{12}} in"
    ):
        door.refuse_other_model("/models/m", "a" * 64, "b" * 64, tmp_path, ())
    door.refuse_other_model("/models/m", "a" * 64, "b" * 64, tmp_path, ["data.model_sha256"])


@pytest.mark.parametrize(("there", "asked"), [("a" * 64, 1), ("b" * 64, 1), (None, 0)])
def test_each_local_model_is_looked_at_once(there: str | None, asked: int, tmp_path: Path) -> None:
    questions: list[ModelJob] = []

    def run(job: ModelJob, log: Path) -> Returned[str]:
        questions.append(job)
        return Returned("a" * 64)

    runner: Any = SimpleNamespace(run=run)
    data = SimpleNamespace(model_sha256=there)
    jobs: Any = [SimpleNamespace(settings=settings_of("question_answering", rank, 0), data=data) for rank in (1, 2)]
    with pytest.raises(UserError, match="has another model") if there == "b" * 64 else nullcontext():
        joining._refuse_other_models(jobs, tmp_path, runner, ())
    assert len(questions) == asked


@pytest.mark.parametrize(("precision", "is_refused"), [("auto", True), ("fp32", False)])
def test_a_machine_on_which_auto_is_another_precision_is_refused(
    precision: str, is_refused: bool, tmp_path: Path
) -> None:
    """`--accept-different costs` lets it in, but its quality would be another, and the report would refuse all."""
    asked = settings_of("question_answering", 1, 0, **{"training.precision": precision})
    job: Any = SimpleNamespace(settings=asked, environment=SimpleNamespace(device="cuda:0"))
    here: Any = SimpleNamespace(device="cpu")
    if is_refused:
        with pytest.raises(UserError, match=f'"auto" is fp32 on {HERE} .cpu., and bf16 in the sweep .cuda:0.'):
            door.refuse_other_precision([job], here, tmp_path, ["costs"])
    door.refuse_other_precision([job], here, tmp_path, ["costs", "resolved.precision"])
    job.environment.device = "cpu"
    door.refuse_other_precision([job], here, tmp_path, ())


# -- which GPU ------------------------------------------------------------------------------------------------------


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_a_gpu_named_by_its_uuid_is_the_only_one_that_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    assert choose_device("GPU-1a2b") == torch.device("cuda:0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1a2b"
    assert choose_device("GPU-1a2b") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("asked", "number", "words"),
    [
        ("GPU-1a2b", 0, "run.device = GPU-1a2b: there is no such GPU here: it has no GPU that torch can use; use auto"),
        ("GPU-1,GPU-2", 1, "run.device = GPU-1,GPU-2: there is no such GPU here: it has cuda:0; use auto"),
        ("cuda:3", 2, "sees no such device here: it has cuda:0 to cuda:1; use auto"),
        ("cuda", 0, "sees no such device here: it has no GPU that torch can use; use auto"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_clear_line(
    asked: str, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, number)
    with pytest.raises(UserError) as caught:
        choose_device(asked)
    assert words in str(caught.value)


def test_every_gpu_is_listed_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"uuid-{device.index}")
    )
    assert machine.gpu_uuids() == ("GPU-uuid-0", "GPU-uuid-1")


@pytest.mark.parametrize(
    ("changes", "uuids", "devices"),
    [
        ({}, (), [None]),
        ({}, ("GPU-a",), [None]),
        ({}, ("GPU-a", "GPU-b"), ["GPU-a", "GPU-b"]),
        ({"run.device": "cuda:1"}, ("GPU-a", "GPU-b"), [None]),
        ({"run.workers": 3}, ("GPU-a", "GPU-b"), ["GPU-a", "GPU-b", "GPU-a"]),
        ({"run.workers": 2}, (), [None, None]),
    ],
)
def test_there_is_a_worker_a_gpu_and_one_on_a_cpu(
    changes: dict[str, Any], uuids: tuple[str, ...], devices: list[str | None]
) -> None:
    report = PreparationReport.model_construct(gpu_uuids=uuids)
    prepared: Any = {"one": SimpleNamespace(report=report)}
    assert devices_of(settings_of("question_answering", 1, 0, **changes), prepared) == devices
