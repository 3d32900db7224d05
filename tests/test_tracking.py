"""Trials as runs of experiment trackers, sent by the trackers' own clients; skipped where these are not installed."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_report import trial_of
from test_rows import write_trial

from howlow.errors import UserError
from howlow.records import read_record
from howlow.reporting import Report, write_report
from howlow.tracking import Sent, checked_tracker, send
from howlow.tracking.trial_runs import trial_runs

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    tmp_path = tmp_path_factory.mktemp("tracked")
    for rank in (1, 4):
        trial_of(tmp_path / "sweep", rank, 1.0, 0.5, started_at="2026-01-01T00:00:00+00:00")
    write_trial(tmp_path / "sweep", 8, status="out_of_memory", error="OutOfMemoryError: 2 GiB")
    (tmp_path / "sweep" / "sweep.toml").write_text('[grid]\n"lora.rank" = [1, 4, 8]\n')
    return write_report([tmp_path / "sweep"])


def client(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed (pip install 'howlow[track]'): {error}")


def test_a_trial_is_told_with_all_that_finds_it_again(report: Report) -> None:
    first, second, failed = trial_runs(report)
    assert [run.name for run in (first, second, failed)] == ["r0001-s0", "r0004-s0", "r0008-s0"]
    assert len({run.fingerprint for run in (first, second, failed)}) == 3
    assert first.parameters["lora.rank"] == 1
    assert first.parameters["resolved.precision"] == "fp32"
    assert first.metrics["f1"] == 0.5
    assert [step for step, _, _ in first.losses] == [0, 1, 2]
    assert first.started_ms == 1_767_225_600_000
    assert [path.name for path in first.artifacts] == ["record.json", "results.csv", "report.html"]
    assert read_record(first.artifacts[0].parent) is not None
    assert first.tags["howlow.train_sha256"] == "a" * 64
    assert len(first.tags["howlow.sweep_id"]) == 12
    assert (failed.is_done, failed.tags["howlow.error"]) == (False, "OutOfMemoryError: 2 GiB")


def test_a_tracker_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--track comet: one of mlflow, wandb, trackio is expected"):
        checked_tracker("comet")
    monkeypatch.setattr("howlow.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--track mlflow: its client is not installed; pip install mlflow"):
        checked_tracker("mlflow")


# -- MLflow ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real server on a free port, with SQLite in a temporary folder."""
    client("mlflow")
    client("sqlalchemy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "server"
    home.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{home}/runs.db", "--artifacts-destination", str(home / "artifacts")]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([*command, *stores], stdout=log, stderr=log, cwd=home, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, home / "log")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not answer within two minutes")


def test_mlflow_has_every_trial_once(report: Report, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    assert send(report, "mlflow", "ranks") == Sent(3, 0)
    assert send(report, "mlflow", "ranks") == Sent(0, 3)
    server = MlflowClient(mlflow_server)
    experiment = server.get_experiment_by_name("ranks")
    runs = {run.info.run_name: run for run in server.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "r0001-s0": "FINISHED",
        "r0004-s0": "FINISHED",
        "r0008-s0": "FAILED",
    }
    one = runs["r0004-s0"]
    assert (one.data.params["lora.rank"], one.data.metrics["f1"]) == ("4", 0.5)
    assert one.data.tags["howlow.sweep"] == "sweep"
    history = server.get_metric_history(one.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 4.0), (1, 3.0), (2, pytest.approx(2 + 2 / 3))]
    there = {file.path for file in server.list_artifacts(one.info.run_id)}
    assert there == {"record.json", "results.csv", "report.html"}
    server.delete_tag(one.info.run_id, "howlow.complete")  # as an interrupted call leaves it
    assert send(report, "mlflow", "ranks") == Sent(1, 2)
    assert len(server.search_runs([experiment.experiment_id])) == 3
    assert len(server.get_metric_history(one.info.run_id, "train_loss")) == 3


def test_a_server_that_cannot_be_reached_is_one_clear_line(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    client("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="--track mlflow: r0001-s0 was not sent: "):
        send(report, "mlflow", "ranks")


# -- the others -----------------------------------------------------------------------------------------------------


def test_wandb_has_every_trial_once_offline(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert send(report, "wandb", "ranks") == Sent(3, 0)
    assert send(report, "wandb", "ranks") == Sent(0, 3)
    folders = [path for path in (tmp_path / "wandb").glob("offline-run-*") if path.is_dir()]
    assert sorted(path.name[-16:] for path in folders) == sorted(run.key for run in trial_runs(report))
    assert all(list(path.glob("run-*.wandb")) for path in folders)


def test_trackio_has_every_trial_once(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "trackio" not in sys.modules:
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    client("trackio")
    import trackio

    assert send(report, "trackio", "ranks") == Sent(3, 0)
    assert send(report, "trackio", "ranks") == Sent(0, 3)
    names = sorted(run.name for run in trackio.Api().runs("ranks"))
    assert names == sorted(f"{run.name}-{run.key}" for run in trial_runs(report))
