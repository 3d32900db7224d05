"""Several workers on one run directory, in real processes: every trial once, the same losses, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from stand_ins import soon
from test_sweep import small_disk as small_disk
from test_sweep import what_counts

from howlow import load_settings as load
from howlow.analysis import load_results
from howlow.claims import Claims, latest
from howlow.errors import UserError
from howlow.records import WarningKind, read_record
from howlow.records.own_sources import code_sha256
from howlow.settings import merge, to_toml
from howlow.worker import joining
from howlow.worker.board import Board, read_board
from howlow.worker.joining import WorkerResult, work

pytestmark = pytest.mark.slow

COMMAND = "import sys; from howlow.cli import main; sys.argv = ['howlow', *sys.argv[1:]]; main()"
NAMES = {"base-s0", "r0001-s0", "r0002-s0", "r0004-s0"}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def table(tiny_table: dict[str, Any]) -> dict[str, Any]:
    """Three trained trials of 60 steps, a checkpoint every few of them, and dropout."""
    changes = {
        "grid": {"lora.rank": [1, 2, 4]},
        "training": {"epochs": 10, "checkpoint_every_s": 0.05},
        "lora": {"dropout": 0.1},
    }
    return merge(tiny_table, changes)


def started(*arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=os.environ | environment
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `howlow` in a process group of its own."""
    with ExitStack() as stack:

        def one(*arguments: str | Path) -> "subprocess.Popen[str]":
            process = started(*arguments)
            stack.callback(end, process)
            return process

        yield one


def signal_again(process: "subprocess.Popen[str]") -> None:
    """Send SIGTERM until a process ends: signals that come before the first is seen are one."""
    for _ in range(20):
        os.kill(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
            return
    raise AssertionError("it went on for 200 seconds")


def end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def settings_file(folder: Path, table: dict[str, Any], **changes: Any) -> Path:
    path = folder / "settings.toml"
    path.write_text(to_toml(load(None, [merge(table, changes)])), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trials, one after the other, with one thread."""
    folder = tmp_path_factory.mktemp("alone")
    process = started("sweep", settings_file(folder, table), "--out", folder / "out", OMP_NUM_THREADS="1")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    return folder / "out"


def generations(out: Path) -> dict[str, int]:
    """How often each trial was claimed."""
    return {name: latest(out / "trials" / name / ".claim") for name in NAMES}


def writing(process: "subprocess.Popen[str]", out: Path) -> dict[str, psutil.Process]:
    """The trained trials that children of a process write steps of."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            log = Path(f"/proc/{child.pid}/fd/1").readlink()
        except OSError:
            continue
        if log.name == "log.txt" and log.parent.parent == out / "trials" and (log.parent / "steps.jsonl").exists():
            found[log.parent.name] = child
    found.pop("base-s0", None)
    return found


def test_two_workers_run_every_trial_once_with_the_losses_of_one(
    table: dict[str, Any], alone: Path, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("sweep", settings_file(tmp_path, table), "--workers", "2", "--out", out)
    shown, err = process.communicate(timeout=280)
    assert process.returncode == 0, shown + err
    assert set(what_counts(out)) == NAMES
    assert what_counts(out) == what_counts(alone)
    assert set(generations(out).values()) == {1}
    beside = 0
    for name in NAMES:
        record = read_record(out / "trials" / name)
        assert record is not None
        assert record.environment is not None
        assert record.environment.threads == 1
        kinds = {warning.kind for warning in record.warnings}
        assert (WarningKind.RAN_BESIDE_OTHER_TRIALS in kinds) == bool(record.neighbours)  # the last may be alone
        beside += bool(record.neighbours)
    assert beside >= 2
    record = read_record(alone / "trials" / "r0004-s0")
    assert record is not None
    assert WarningKind.RAN_BESIDE_OTHER_TRIALS not in {warning.kind for warning in record.warnings}


def test_with_exclusive_trials_whose_costs_count_are_alone_and_the_others_have_no_costs_of_company(
    table: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changes = {"grid": {"lora.rank": [1, 2], "seed": [3, 4]}, "training": {"epochs": 4}, "run": {"exclusive": True}}
    process = start("sweep", settings_file(tmp_path, table, **changes), "--workers", "2", "--out", out)
    shown, err = process.communicate(timeout=280)
    assert process.returncode == 0, shown + err
    results = load_results(out)
    assert {row["trial"] for row in results.rows} == {"base-s0", "r0001-s3", "r0001-s4", "r0002-s3", "r0002-s4"}
    for trial in results.trials:
        record = trial.record
        company = {phase for one in record.neighbours or () for phase in one.phases}
        assert record.alone == (record.trial != "r0001-s4" and record.trial != "r0002-s4")
        assert record.neighbours == () or not record.alone
        assert (trial.row["inference_samples_per_s"] is None) == ("generate" in company)
        assert WarningKind.RAN_BESIDE_OTHER_TRIALS not in {warning.kind for warning in record.warnings}
        assert trial.row["inference_peak_memory_bytes"] is not None
    told = [line for line in err.splitlines() if line.endswith(": run.exclusive")]
    assert any(f"waits for {name} of " in line for line in told for name in ("base-s0", "r0001-s3", "r0002-s3"))


def test_a_worker_joins_a_running_sweep_and_a_killed_ones_trial_is_taken_over(
    table: dict[str, Any], alone: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    sweep = start("sweep", settings_file(tmp_path, table), "--out", out)
    soon(lambda: bool(writing(sweep, out)))
    (paused,) = writing(sweep, out).values()
    paused.suspend()  # until the worker has started and has a trial
    joined = start("worker", out)
    soon(lambda: any((out / "trials" / name / "checkpoint").exists() for name in writing(joined, out)))
    ((taken, child),) = writing(joined, out).items()
    child.suspend()  # until the sweep has seen who runs it
    told, told_err = f"{taken}: run by process {joined.pid} on ", list[str]()
    assert sweep.stderr is not None
    listener = threading.Thread(target=lambda: told_err.extend(iter(sweep.stderr.readline, "")), daemon=True)
    listener.start()
    soon(lambda: any(told in line for line in told_err))
    os.kill(joined.pid, signal.SIGKILL)
    child.resume()
    paused.resume()
    assert sweep.wait(280) == 0, told_err
    listener.join(10)
    assert what_counts(out) == what_counts(alone)
    assert generations(out) == dict.fromkeys(NAMES, 1) | {taken: 2}
    record = read_record(out / "trials" / taken)
    assert record is not None
    assert record.resumed == 1


def test_a_stopped_sweep_is_finished_by_a_worker(
    table: dict[str, Any], alone: Path, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sweep = start("sweep", settings_file(tmp_path, table), "--workers", "2", "--out", out)
    soon(lambda: len(writing(sweep, out)) == 2)
    running = writing(sweep, out)
    for child in running.values():
        child.suspend()  # however slow this machine is, they do not end before the signal has come
    os.killpg(sweep.pid, signal.SIGINT)
    time.sleep(1)
    for child in running.values():
        child.resume()
    shown, err = sweep.communicate(timeout=60)
    assert (sweep.returncode, shown) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("howlow: stopped")
    saved = {name for name in NAMES if (out / "trials" / name / "checkpoint").exists()}
    assert saved == set(running), "both trials have saved a checkpoint"
    worker = start("worker", out)
    shown, err = worker.communicate(timeout=280)
    assert (worker.returncode, shown) == (0, ""), err
    assert what_counts(out) == what_counts(alone)
    again = start("worker", out)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "trials run by this worker: 0" in err


def test_a_second_signal_kills_the_children_of_all_workers(table: dict[str, Any], start: Start, tmp_path: Path) -> None:
    slow = settings_file(tmp_path, table, training={"epochs": 2000, "checkpoint_every_s": 1000.0})
    sweep = start("sweep", slow, "--workers", "2", "--out", tmp_path / "out")
    soon(lambda: len(writing(sweep, tmp_path / "out")) == 2)
    children = psutil.Process(sweep.pid).children(recursive=True)
    running = writing(sweep, tmp_path / "out")
    for child in running.values():
        child.suspend()  # it cannot save a checkpoint
    os.kill(sweep.pid, signal.SIGTERM)
    time.sleep(1)
    assert sweep.poll() is None
    signal_again(sweep)
    assert sweep.returncode == 143
    left = [name for name in running if (tmp_path / "out" / "trials" / name / "record.json").exists()]
    assert left == [], "who was killed by us has not failed"
    _, left = psutil.wait_procs(children, timeout=20)
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


# -- the worker's door ----------------------------------------------------------------------------------------------


def test_a_folder_without_a_sweep_and_an_unknown_trial_are_refused(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared sweep is there; start one with howlow sweep"):
        work(tmp_path)
    with pytest.raises(UserError, match=r"--trial r0099-s0: .* has no trial of this name; it has r0002-s0, base-s0, "):
        work(alone, trial="r0099-s0")
    (tmp_path / ".howlow").mkdir()
    (tmp_path / ".howlow" / "board.json").write_text(Board(code=code_sha256(), trials=()).model_dump_json())
    assert work(tmp_path) == WorkerResult((), 0), "a sweep whose trials have all ended leaves nothing to take"


def test_a_worker_of_other_code_or_on_another_machine_is_refused(
    table: dict[str, Any], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = read_board(alone)
    assert board is not None
    out = tmp_path / "out"
    (out / ".howlow").mkdir(parents=True)

    def pinned(**changes: Any) -> None:
        environment = board.trials[0].environment.model_copy(update=changes)
        trials = tuple(trial.model_copy(update={"environment": environment}) for trial in board.trials)
        text = Board(code=board.code, trials=trials).model_dump_json()
        (out / ".howlow" / "board.json").write_text(text, encoding="utf-8")

    monkeypatch.setattr(joining, "_environment", lambda *_: board.trials[0].environment)
    monkeypatch.setattr(joining, "_refuse_other_models", lambda *_: None)
    for changes, words in (
        ({"threads": 7}, "environment.threads is 1 here, 7 in the sweep"),
        ({"versions": {"torch": "0.1"}}, "environment.versions.torch is '.*' here, '0.1' in the sweep"),
        ({"device_name": "H100"}, "environment.device_name is '.*' here, 'H100' in the sweep"),
    ):
        pinned(**changes)
        with pytest.raises(UserError, match=words):
            work(out)
    monkeypatch.setattr(joining, "code_sha256", lambda: "another")
    with pytest.raises(UserError, match=f"environment.code_sha256 is another here, {board.code[:12]} in the sweep"):
        work(out)
    pinned()
    monkeypatch.setattr(joining, "_take", lambda *_: set())
    assert work(out, accept_different=["environment.code_sha256"]).left == len(board.trials)


def test_a_trial_that_a_live_worker_holds_is_left_to_it(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".howlow").mkdir(parents=True)
    (out / ".howlow" / "board.json").write_text((alone / ".howlow" / "board.json").read_text())
    claims = Claims(out)
    held = {name: claims.take(name) for name in NAMES}
    assert all(held.values())
    process = started("worker", out, "--trial", "r0001-s0", OMP_NUM_THREADS="1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "trials run by this worker: 0; still run by others: 1" in err


def test_a_full_disk_in_one_worker_stops_all_of_them(
    table: dict[str, Any], start: Start, tmp_path: Path, small_disk: Path
) -> None:
    out = small_disk / "out"
    slow = settings_file(tmp_path, table, training={"epochs": 200})
    sweep = start("sweep", slow, "--workers", "2", "--out", out)
    soon(lambda: len(writing(sweep, out)) == 2)
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("howlow: the disk is full")
    (small_disk / "filler").unlink()
    for name in NAMES - {"base-s0"}:
        state = out / "trials" / name / "checkpoint" / "state.json"
        assert not state.exists() or json.loads(state.read_text())["identity"]["kind"] == "lora"
