"""Trials as Ray tasks: what each is given, bad addresses, and a cluster that loses a node in the middle of a sweep."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from stand_ins import soon
from test_remote_jobs import SMALL, submitter
from test_sweep import what_counts
from test_workers import end, settings_file, started, writing

from howlow import load_settings as load
from howlow.claims import latest
from howlow.errors import UserError
from howlow.executors import ray_tasks
from howlow.executors.ray_tasks import RayTasks, imported_ray, ray_cluster
from howlow.jobs.remote import RunTrialJob
from howlow.outcomes import Returned, Unfinished
from howlow.records import read_record
from howlow.settings import Settings, merge


def settings(**changes: Any) -> Settings:
    return load(None, [SMALL, {"run": {"executor": "ray"}}, changes])


# -- what a user can mend -------------------------------------------------------------------------------------------


def test_without_ray_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'run.executor = "ray": .*; install Ray with pip install "howlow\[ray\]"'):
        imported_ray()


@pytest.mark.parametrize("kind", ["deaf", "client", "no port"])
def test_an_address_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    address = {"deaf": f"127.0.0.1:{port}", "client": "ray://head:10001", "no port": "127.0.0.1:99999"}[kind]
    with pytest.raises(UserError, match=f"RAY_ADDRESS {address}: ") as found:
        ray_tasks._refuse_deaf(address)
    assert ("run howlow on a machine of the cluster" if kind == "client" else "ray start --head") in str(found.value)


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", True),  # a frame of settings, as gRPC's
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),  # the dashboard
        (b"-ERR unknown command\r\n", False),  # a Redis
        (b"", False),  # closed at once
        (None, True),  # silent: Ray itself finds out
    ],
)
def test_a_server_that_is_no_ray_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, is_ray: bool
) -> None:
    monkeypatch.setattr(ray_tasks, "_ANSWER_WITHIN_S", 0.2 if answer is None else 30.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            one, _ = server.accept()
            with one:
                one.recv(100)
                one.sendall(answer or b"")
                if answer is None:
                    one.recv(100)  # until the client has gone

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with nullcontext() if is_ray else pytest.raises(UserError, match=f"{address}: something else than Ray"):
                ray_tasks._refuse_deaf(address)
        finally:
            thread.join()


def test_amdsmi_without_its_library_does_not_keep_ray_from_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "amdsmi.py").write_text("print('no library')\n{}['libamd_smi.so']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    monkeypatch.setenv("PYTHONPATH", "before")
    ray_tasks._hide_amdsmi_without_library()
    assert capsys.readouterr().out == ""
    hidden, before = os.environ["PYTHONPATH"].split(os.pathsep)
    assert (Path(hidden) / "amdsmi.py").exists()
    assert before == "before"
    with pytest.raises(ImportError):
        import amdsmi  # noqa: F401
    monkeypatch.delitem(sys.modules, "amdsmi")


# -- what each trial is given ---------------------------------------------------------------------------------------


def cluster(*nodes: dict[str, float]) -> Any:
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    return SimpleNamespace(nodes=lambda: [*alive, {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 8.0}}])


CPUS, GPUS = ({"CPU": 8.0}, {"CPU": 4.0}), ({"CPU": 2.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0})


@pytest.mark.parametrize(
    ("nodes", "changes", "share", "threads"),
    [
        (CPUS, {}, {"num_cpus": 4, "num_gpus": 0}, None),
        (CPUS, {"ray": {"cpus_per_trial": 2}}, {"num_cpus": 2, "num_gpus": 0}, 2),
        (GPUS, {}, {"num_cpus": 4, "num_gpus": 1}, 4),
        (GPUS, {"run": {"device": "cuda"}}, {"num_cpus": 4, "num_gpus": 1}, 4),
        (GPUS, {"run": {"device": "cpu"}}, {"num_cpus": 2, "num_gpus": 0}, None),
        (({"CPU": 8.0, "GPU": 1.0},), {}, {"num_cpus": 8, "num_gpus": 1}, None),
        (GPUS, {"run": {"devices_per_trial": 2}}, {"num_cpus": 8, "num_gpus": 2}, 8),
        (GPUS, {"run": {"devices_per_trial": 4}}, {"num_cpus": 16, "num_gpus": 4}, None),
        (CPUS, {"run": {"devices_per_trial": 2}}, {"num_cpus": 4, "num_gpus": 0}, None),
    ],
)
def test_a_trial_is_given_its_gpus_or_a_node(
    monkeypatch: pytest.MonkeyPatch, nodes: Any, changes: Any, share: Any, threads: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert ray_tasks._share_of_node(cluster(*nodes), settings(**changes)) == (share, threads)


@pytest.mark.parametrize(
    ("nodes", "changes", "words"),
    [
        (CPUS, {"run": {"device": "cuda"}}, 'run.device = "cuda": no node of the Ray cluster has a GPU; start one'),
        (GPUS, {"run": {"device": "cuda:1"}}, 'Ray chooses the cards of its tasks; set run.device = "cuda"'),
        (GPUS, {"run": {"device": "GPU-1a2b"}}, 'run.device = "GPU-1a2b" names one card, and Ray chooses the cards'),
        (GPUS, {"run": {"devices_per_trial": 8}}, "devices_per_trial = 8: the largest node .* has 4 GPUs; start a"),
        (CPUS, {"run": {"devices_per_trial": 9}}, "devices_per_trial = 9: the largest node .* has 8 CPUs"),
        (CPUS, {"ray": {"cpus_per_trial": 9}}, "ray.cpus_per_trial = 9: the largest node .* has 8 cores"),
        (({"CPU": 0.0},), {}, "no node of the Ray cluster has a CPU"),
    ],
)
def test_what_no_node_has_is_one_line(nodes: Any, changes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ray_tasks._share_of_node(cluster(*nodes), settings(**changes))


class _Errors:
    """Ray's errors by their names."""

    class RayError(Exception):
        pass

    class TaskCancelledError(RayError):
        pass

    class RayTaskError(RayError):
        cause = ModuleNotFoundError("No module named 'howlow'")

    class NodeDiedError(RayError):
        pass


class FakeRay:
    """Runs a task when it is waited for."""

    exceptions = _Errors

    def __init__(self, **ends: Any) -> None:
        self.ends, self.begun, self.options = ends, list[str](), dict[str, Any]()

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda function: SimpleNamespace(options=lambda name: SimpleNamespace(remote=self._begin))

    def _begin(self, job: RunTrialJob) -> str:
        self.begun.append(job.name)
        return job.name

    def wait(self, tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return tasks[:1], tasks[1:]

    def get(self, task: str) -> Any:
        if isinstance(self.ends[task], Exception):
            raise self.ends[task]
        return self.ends[task]


def test_at_most_so_many_tasks_run_and_each_end_is_told(tmp_path: Path) -> None:
    ends = {
        "a": Returned(0),
        "b": _Errors.TaskCancelledError(),
        "c": _Errors.RayTaskError(),
        "d": _Errors.NodeDiedError("node 7 died. A long story"),
    }
    ray = FakeRay(**ends)
    tasks, told = RayTasks(ray, 2, {"num_cpus": 3}, None), {}
    tasks.start([RunTrialJob(submitter=submitter(tmp_path), trial=name) for name in ends])
    assert ray.begun == ["a", "b"]
    assert (ray.options["num_cpus"], ray.options["max_calls"]) == (3, 1)
    for number in range(4):
        assert len(ray.begun) == min(4, 2 + number)
        told |= {job.name: end for job, end in tasks.ended()}
    assert tasks.ended() == []
    assert (told["a"], told["b"]) == (Returned(0), Unfinished("stopped"))
    assert told["c"].outcome == "user_error"
    assert "No module named 'howlow'; install the same version of howlow" in told["c"].problem
    assert told["d"] == Unfinished("died", "Ray lost it: node 7 died")


# -- real clusters --------------------------------------------------------------------------------------------------


@contextmanager
def three_nodes() -> Iterator[Any]:
    """Three nodes of one core each, on this machine."""
    imported_ray()
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(wait=False, **node)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


def raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sweep_goes_on_when_a_node_is_lost(
    tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("msgpack", reason="Ray is not installed (pip install 'howlow[ray]')")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    changes = {
        "grid": {"lora.rank": [1, 2, 3, 4], "seed": [0, 1]},
        "baselines": [],
        "training": {"epochs": 10, "checkpoint_every_s": 0.05},
        "lora": {"dropout": 0.1},
    }
    asked, out = settings_file(tmp_path, merge(tiny_table, changes)), tmp_path / "out"
    alone = started("sweep", asked, "--out", tmp_path / "alone")
    try:
        shown, err = alone.communicate(timeout=400)
        assert alone.returncode == 0, shown + err
    finally:
        end(alone)
    with three_nodes() as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        sweep = started("sweep", asked, "--out", out, "--set", "run.executor=ray")
        try:
            others = [node for node in nodes.list_all_nodes() if node != nodes.head_node]
            lost, trial, child = _node_in_training(others, out)
            child.suspend()  # it ends neither before nor after its node
            nodes.remove_node(lost, allow_graceful=False)
            child.resume()
            shown, err = sweep.communicate(timeout=400)
            assert sweep.returncode == 0, shown + err
        finally:
            end(sweep)
    assert len(what_counts(out)) == 8
    assert what_counts(out) == what_counts(tmp_path / "alone")
    claims = {folder.name: latest(folder / ".claim") for folder in (out / "trials").iterdir()}
    assert claims == dict.fromkeys(claims, 1) | {trial: 2}
    record = read_record(out / "trials" / trial)
    assert record is not None
    assert record.resumed == 1
    assert f"its process ended early; it resumes on {socket.gethostname()}" in err


def _node_in_training(nodes: list[Any], out: Path) -> tuple[Any, str, psutil.Process]:
    """A node with a trial that has a checkpoint, and the trial's process."""
    until = time.monotonic() + 400
    while time.monotonic() < until:
        for node in nodes:
            for trial, child in writing(raylet(node), out).items():
                if (out / "trials" / trial / "checkpoint" / "state.json").exists():
                    return node, trial, child
        time.sleep(0.02)
    raise AssertionError("no trial has begun on these nodes")


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_ctrl_c_stops_the_tasks_of_a_ray_of_our_own(
    tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    changes = {"grid": {"lora.rank": [1]}, "baselines": [], "training": {"epochs": 2000, "checkpoint_every_s": 1000.0}}
    out = tmp_path / "out"
    asked = settings_file(tmp_path, merge(tiny_table, changes))
    sweep = started("sweep", asked, "--out", out, "--set", "run.executor=ray")
    try:
        soon(lambda: (out / "trials" / "r0001-s0" / "steps.jsonl").exists(), 300)
        family = psutil.Process(sweep.pid).children(recursive=True)
        os.killpg(sweep.pid, signal.SIGINT)
        shown, err = sweep.communicate(timeout=120)
    finally:
        end(sweep)
    assert (sweep.returncode, shown) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("howlow: stopped")
    assert (out / "trials" / "r0001-s0" / "checkpoint" / "state.json").exists()
    _, left = psutil.wait_procs(family, timeout=30)
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []


def test_a_ray_that_the_caller_has_started_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook may have one."""
    ray: Any = cluster({"CPU": 4.0})
    ray.is_initialized, ray.shutdown = lambda: True, lambda: pytest.fail("it is not ours")
    monkeypatch.setattr(ray_tasks, "imported_ray", lambda: ray)
    with ray_cluster(settings()) as tasks:
        assert tasks.share == {"num_cpus": 4, "num_gpus": 0}
