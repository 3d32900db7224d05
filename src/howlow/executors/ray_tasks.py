"""Ray: each job is one Ray task, in a Ray worker process that takes no other.

Ray Core alone is used. Ray decides on which node a task runs, and runs it again elsewhere where its node is lost. The
sweep is started on the cluster of RAY_ADDRESS, or on a Ray of its own that begins and ends with it.
"""

import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from howlow.errors import UserError, reason
from howlow.executors.remote import refuse_named_card, run_remote, threads_asked_for
from howlow.jobs.remote import RemoteJob
from howlow.meters.clock import now_s
from howlow.outcomes import Finished, Unfinished
from howlow.settings import Settings

_RETRIES = 20
"""How often Ray runs a trial again whose node or process was lost; each time it resumes from its checkpoint."""
_OBJECT_STORE_BYTES = 80 << 20  # jobs and their ends are small; Ray's default takes a third of the memory
_ANSWER_WITHIN_S = 5.0
_SETTINGS_FRAME = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0))
_STOP_WITHIN_S = 70.0


@contextmanager
def ray_cluster(settings: Settings) -> Iterator["RayTasks"]:
    """A connection to Ray; a Ray that was started for it ends with it.

    Raises:
        UserError: Ray is not installed, does not answer, or has not what the settings ask for.
    """
    ray, handler = imported_ray(), signal.getsignal(signal.SIGTERM)
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _connect(ray, settings)
            _restore(handler)
        yield RayTasks(ray, settings.run.workers, *_share_of_node(ray, settings))
    finally:
        if is_ours:
            ray.shutdown()
            _restore(handler)


def _restore(handler: Any) -> None:
    """Ray handles SIGTERM in the process that calls it, and would end it without a checkpoint."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


# -- connecting -----------------------------------------------------------------------------------------------------


def imported_ray() -> Any:
    """Ray's module.

    Raises:
        UserError: it is not installed.
    """
    _hide_amdsmi_without_library()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        problem = reason(error)
        raise UserError(f'run.executor = "ray": {problem}; install Ray with pip install "howlow[ray]"') from None
    return ray


def _hide_amdsmi_without_library() -> None:
    """Let Ray be imported where `amdsmi` is installed without AMD's library, as zeus has it everywhere.

    Ray expects an ImportError there, but amdsmi raises a KeyError and prints. Ray's own processes import Ray, too, and
    take a module from PYTHONPATH that raises what they expect.
    """
    try:
        with redirect_stdout(io.StringIO()):
            import amdsmi  # noqa: F401
    except ImportError:
        pass
    except (KeyError, OSError, AttributeError):
        sys.modules["amdsmi"] = None  # type: ignore[assignment]
        hidden = str(Path(__file__).parent / "without_amdsmi")
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = hidden if others is None else os.pathsep.join((hidden, others))


def _connect(ray: Any, settings: Settings) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address in ("", "local"):
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # out of memory is a result, as without Ray
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "address": "local"}
        advice = "free what it names, or set RAY_ADDRESS to a running cluster"
    else:
        _refuse_deaf(address)
        options["address"] = address
        advice = "start Ray there with ray start --head, of this version of Ray and Python, or unset RAY_ADDRESS"
    try:
        ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS {address}" if address else "Ray on this machine"
        raise UserError(f'run.executor = "ray": {where}: {reason(error)}; {advice}') from None


def _refuse_deaf(address: str) -> None:
    """Refuse an address at which nobody listens; Ray itself would try for a minute."""
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS {address}: an address of Ray Client; run howlow on a machine of the cluster, with "
            "RAY_ADDRESS=auto or HOST:6379"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # a name that Ray knows, such as auto
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_WITHIN_S) as connection:
            problem = "something else than Ray answers there" if _is_foreign(connection) else None
    except (OSError, OverflowError) as error:
        problem = reason(error)
    if problem is not None:
        raise UserError(
            f"RAY_ADDRESS {address}: {problem}; start Ray there with ray start --head (its port is 6379), or unset "
            "RAY_ADDRESS to run on this machine alone"
        )


def _is_foreign(connection: socket.socket) -> bool:
    """Whether a server's first answer is not that of gRPC, as Ray's dashboard or a Redis gives; not where it is silent.

    Ray itself would ask such a server for a quarter of an hour. An HTTP/2 server, which gRPC is, answers to a client's
    preface with a frame of settings (RFC 9113, section 3.4).
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return False
    try:
        connection.sendall(_PREFACE)
        answer = connection.recv(9)
    except TimeoutError:
        return False
    return len(answer) < 4 or answer[3] != _SETTINGS_FRAME


# -- what each trial is given -----------------------------------------------------------------------------------------


def _share_of_node(ray: Any, settings: Settings) -> tuple[dict[str, float], int | None]:
    """The resources of a task, and its OMP_NUM_THREADS."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind, devices = _kind(settings.run.device, any(node.get("GPU") for node in nodes)), settings.run.devices_per_trial
    able = [node for node in nodes if node.get(kind, 0) >= devices and node.get("CPU", 0) >= 1]
    if not able:
        raise _too_few(settings, kind, int(max([0, *(node.get(kind, 0) for node in nodes)])))
    asked = settings.ray.cpus_per_trial
    largest = int(max(node["CPU"] for node in able))
    if asked is not None and asked > largest:
        raise UserError(f"ray.cpus_per_trial = {asked}: the largest node of the Ray cluster has {largest} cores")
    trials = max(int(node["GPU"]) // devices if kind == "GPU" else 1 for node in able)
    cores = asked or max(1, int(min(node["CPU"] for node in able)) // trials)
    share: dict[str, float] = {"num_cpus": cores, "num_gpus": devices if kind == "GPU" else 0}
    return share, threads_asked_for(cores if trials > 1 else asked)


def _too_few(settings: Settings, kind: str, most: int) -> UserError:
    """The error where no node has what a trial needs; `most`: GPUs or cores of the best one."""
    flag, devices = f"--num-{kind.lower()}s", settings.run.devices_per_trial
    if devices > 1:
        return UserError(
            f"run.devices_per_trial = {devices}: the largest node of the Ray cluster has {most} {kind}s; start a "
            f"larger one with ray start {flag} N, or give at most {max(1, most)}"
        )
    return UserError(
        f'run.device = "{settings.run.device}": no node of the Ray cluster has a {kind}; start one that has, with '
        f"ray start {flag} N"
    )


def _kind(device: str, has_gpus: bool) -> str:
    refuse_named_card(device, "Ray chooses the cards of its tasks")
    return "GPU" if device == "cuda" or (device == "auto" and has_gpus) else "CPU"


# -- tasks ----------------------------------------------------------------------------------------------------------


def run_task(job: RemoteJob[Any]) -> Finished[Any]:
    """What a Ray worker process runs: a job, without the OMP_NUM_THREADS that Ray sets to the task's cores."""
    os.environ.pop("OMP_NUM_THREADS", None)
    return run_remote(job)


@dataclass
class RayTasks:
    """Jobs as Ray tasks, at most so many at one time."""

    ray: Any
    most: int | None
    share: Mapping[str, float]
    threads: int | None
    _waiting: list[RemoteJob[Any]] = field(default_factory=list)
    _running: dict[Any, RemoteJob[Any]] = field(default_factory=dict)

    def start(self, jobs: Sequence[RemoteJob[Any]]) -> None:
        """Hand jobs over to Ray, as many as may run at one time."""
        self._waiting += jobs
        task = self.ray.remote(max_calls=1, max_retries=_RETRIES, **self.share)(run_task)
        while self._waiting and (self.most is None or len(self._running) < self.most):
            job = self._waiting.pop(0)
            self._running[task.options(name=f"howlow {job.name}").remote(job)] = job

    def ended(self) -> list[tuple[RemoteJob[Any], Finished[Any]]]:
        """The jobs that have ended since the last call."""
        ready = self._wait(0.0)
        found = [(self._running.pop(task), self._end(task)) for task in ready]
        if found:
            self.start(())
        return found

    def why_waiting(self) -> str | None:
        """Ray does not say."""
        return None

    def stop(self) -> None:
        """Ask every task to save its work and end; a second interruption kills them."""
        self._waiting.clear()
        self._cancel(force=False)
        until = now_s() + _STOP_WITHIN_S
        try:
            while self._running and now_s() < until:
                for task in self._wait(1.0):
                    del self._running[task]
        finally:
            self._cancel(force=True)

    def _wait(self, timeout_s: float) -> list[Any]:
        running = list(self._running)
        ready: list[Any] = self.ray.wait(running, num_returns=len(running), timeout=timeout_s)[0] if running else []
        return ready

    def _cancel(self, *, force: bool) -> None:
        for task in self._running:
            with suppress(self.ray.exceptions.RayError, ValueError):  # it has just ended
                self.ray.cancel(task, force=force)

    def _end(self, task: Any) -> Finished[Any]:
        errors = self.ray.exceptions
        try:
            finished: Finished[Any] = self.ray.get(task)
        except errors.TaskCancelledError:
            return Unfinished("stopped")
        except errors.RayTaskError as error:
            return Unfinished(
                "user_error",
                f"a node of the Ray cluster cannot run howlow: {reason(error.cause)}; install the same version of "
                "howlow on all of its nodes",
            )
        except errors.RayError as error:
            return Unfinished("died", f"Ray lost it: {_first_sentence(error)}")
        return finished


def _first_sentence(error: BaseException) -> str:
    return reason(error).partition(". ")[0]
