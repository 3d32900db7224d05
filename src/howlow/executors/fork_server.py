"""Runs jobs, each in a fresh process of this machine, with the heavy imports already done.

On Linux a *fork server* imports `howlow.trial.entries` (torch, transformers, peft) once and does nothing else: no torch
operation, no CUDA or NVML call, one thread. Every job is forked from it, so that it starts in milliseconds and yet
shares no state with the job before. Elsewhere processes are spawned.

A child holds one end of a pipe: its events and its result go up, "stop" comes down. When the process that started it
dies, however it dies, the pipe breaks, and the child ends itself. Several threads may run jobs at one time; `stop` and
`kill` reach the children of all of them.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker, util
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from howlow.console import write_log_as_utf8
from howlow.errors import UserError, reason
from howlow.jobs import Hear, Job, JobEvent, JobFailedError, Link
from howlow.outcomes import ClaimLostError, Finished, Returned, StoppedError, Unfinished
from howlow.places import unfinished

T = TypeVar("T")
Pipe = connection.Connection
PRELOADED = "howlow.executors.preloaded"
_FROM_A_SCHEDULER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Sent to every process of a job whose time is nearly up; unhandled, they kill."""
_HANDLED_BY_US = (signal.SIGINT, signal.SIGTERM, *_FROM_A_SCHEDULER)
_CAN_BLOCK = hasattr(signal, "pthread_sigmask")
_LONGEST_FOLDER = 60
"""Leaves room for `/pymp-xxxxxxxx/listener-xxxxxxxx` in the 92 bytes that the strictest system has for an address."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


class PipeLink:
    """The child's end of the pipe."""

    def __init__(self, pipe: "Pipe[Any, Any]") -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._listen, name="howlow-lifeline", daemon=True).start()

    @property
    def stop_requested(self) -> bool:
        """Whether to stop at the next chance."""
        return self._stop.is_set()

    def request_stop(self, *_: object) -> None:
        """Ask this process to stop (also as a signal handler)."""
        self._stop.set()

    def report(self, event: JobEvent) -> None:
        """Send an event up."""
        self.send(event)

    def send(self, message: object) -> None:
        """Send an event or the end up."""
        with self._lock:
            self._pipe.send(message)

    def end(self, finished: Unfinished) -> NoReturn:
        """End this process at once, with that end."""
        with self._lock:  # nothing is sent after it
            self._pipe.send(finished)
            os._exit(1)

    def _listen(self) -> None:
        try:
            while True:
                self._pipe.recv()
                self._stop.set()
        except (EOFError, OSError):
            os._exit(1)  # the process that started us is gone; the last checkpoint is kept


def _child(job: Job[Any], pipe: "Pipe[Any, Any]", log: str) -> None:
    """What a child runs first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent passes it on as "stop"
    link = PipeLink(pipe)
    for number in (signal.SIGTERM, *_FROM_A_SCHEDULER):
        signal.signal(number, link.request_stop)
    if _CAN_BLOCK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED_BY_US)
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    write_log_as_utf8()
    link.send(end_of(job, link, Path(log).parent))


def end_of(job: Job[Any], link: Link, folder: Path) -> Finished[Any]:
    """Call a job's entry in this process, and say how that ended; a traceback goes to stderr."""
    module, _, name = job.entry.rpartition(".")
    try:
        return Returned(getattr(importlib.import_module(module), name)(job, link))
    except BaseException as error:
        if not isinstance(error, UserError | StoppedError | ClaimLostError | KeyboardInterrupt):
            with suppress(OSError):  # the log's disk may be the full one
                traceback.print_exc()
                sys.stderr.flush()
        return unfinished(error, folder)


@dataclass(eq=False)
class _Running:
    """A child and our end of its pipe."""

    process: Any
    pipe: "Pipe[Any, Any]"
    stop_within_s: float
    is_killed: bool = False
    """by us: it was stopped, and has not failed"""


class ForkServer:
    """Runs jobs, each in a process of its own."""

    def __init__(self) -> None:
        method = "forkserver" if sys.platform == "linux" else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([PRELOADED])
        # multiprocessing collects every ended child whenever one is started: two threads would read one exit code.
        self._processes = threading.RLock()
        self._running: list[_Running] = []
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""
        return self._stopping.is_set()

    def rest(self, seconds: float) -> None:
        """Wait, but return at once when no further job may start."""
        self._stopping.wait(seconds)

    def run(self, job: Job[T], log: Path, hear: Hear | None = None) -> Finished[T]:
        """Run a job in a child and wait for it; its events go to `hear`.

        On KeyboardInterrupt the child is asked to stop and given `stop_within_s` to save its work; a second one kills
        it. What it reported before it ended still reaches `hear`.
        """
        hear = hear or (lambda event: None)
        child = self._start(job, log)
        if child is None:
            return Unfinished("stopped")
        try:
            return self._wait(child, hear)
        except KeyboardInterrupt:
            self._stop_and_wait(child)
            _hear_the_rest(child.pipe, hear)
            raise
        except BaseException:
            self._stop_and_wait(child)
            raise
        finally:
            with self._processes:
                self._running.remove(child)
            child.pipe.close()

    def stop(self) -> None:
        """Ask every child to save its work and end, kill those that take too long, and start no other."""
        with self._processes:
            self._stopping.set()
            for child in self._running:
                with suppress(OSError):
                    child.pipe.send("stop")
                timer = threading.Timer(child.stop_within_s, self._kill, [child])
                timer.daemon = True
                timer.start()

    def kill(self) -> None:
        """Kill every child, and start no other."""
        with self._processes:
            self._stopping.set()
            for child in self._running:
                self._kill(child)

    def _start(self, job: Job[T], log: Path) -> _Running | None:
        """A child that runs the job; None where no job is started any more."""
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(target=_child, args=(job, theirs, str(log)), daemon=False)  # type: ignore[attr-defined]
        with self._processes, _plain_start():
            if self.is_stopping:
                return None
            if self._context.get_start_method() == "forkserver":
                _have_short_folder()
                with _signals_blocked():
                    forkserver.ensure_running()
                try:
                    process.start()  # waits for the server's imports, and may be interrupted in that time
                except (EOFError, ConnectionError) as error:
                    raise JobFailedError("the process that starts trials has died; start the command again") from error
            else:
                with _signals_blocked():
                    process.start()
            child = _Running(process, ours, job.stop_within_s)
            self._running.append(child)
        theirs.close()
        return child

    def _wait(self, child: _Running, hear: Hear) -> Finished[Any]:
        end: Finished[Any] | None = None
        while True:
            ready = connection.wait([child.pipe, child.process.sentinel])
            if child.pipe in ready:
                try:
                    message = child.pipe.recv()
                except (EOFError, OSError):
                    break
                if isinstance(message, Returned | Unfinished):
                    end = message
                else:
                    hear(message)
            elif child.process.sentinel in ready:
                break
        code = self._exit_code(child)
        if end is not None:
            return end
        if child.is_killed and code < 0:
            return Unfinished("stopped")
        return Unfinished("died", f"exit code {code}", exit_signal=-code if code < 0 else None)

    def _exit_code(self, child: _Running) -> int:
        connection.wait([child.process.sentinel])
        with self._processes:
            child.process.join()
            return child.process.exitcode or 0

    def _stop_and_wait(self, child: _Running) -> None:
        try:
            child.pipe.send("stop")
            connection.wait([child.process.sentinel], child.stop_within_s)
        except (KeyboardInterrupt, OSError):
            pass
        self._kill(child)
        self._exit_code(child)

    def _kill(self, child: _Running) -> None:
        with self._processes:
            if child.process.is_alive():
                child.is_killed = True
                child.process.kill()


def _hear_the_rest(pipe: "Pipe[Any, Any]", hear: Hear) -> None:
    """What a child that has ended left in its pipe."""
    with suppress(EOFError, OSError):
        while pipe.poll():
            message = pipe.recv()
            if not isinstance(message, Returned | Unfinished):
                hear(message)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started here never receives Ctrl-C or SIGTERM: both reach the whole group, and we handle them.

    The child inherits the mask, and unblocks the signals once it has its handlers. We receive ours afterwards.
    """
    if not _CAN_BLOCK:
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_BY_US)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _have_short_folder() -> None:
    """Let the fork server's socket have an address that fits, however long the name of the temporary folder is.

    A socket's address holds about 100 bytes. multiprocessing makes one folder for all sockets of a process, keeps it,
    and removes it at the end.

    Raises:
        UserError: no folder with a short name can be written.
    """
    before = tempfile.tempdir
    for folder in (tempfile.gettempdir(), *_SHORT_FOLDERS):
        if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
            tempfile.tempdir = folder
            try:
                util.get_temp_dir()
            except OSError as error:
                problem = f"{folder}: {reason(error)}"
            else:
                return
            finally:
                tempfile.tempdir = before
    raise UserError(
        f"TMPDIR: no folder for a socket ({problem}); set TMPDIR to one with a short name that you may write"
    )


@contextmanager
def _plain_start() -> Iterator[None]:
    """Let the fork server and the child inherit one thread, and nothing of the program that calls us.

    OpenBLAS starts threads of its own when NumPy is imported, and threads do not survive a fork; the fork server keeps
    the environment it was started with, and ours is restored. multiprocessing would run the caller's main module again
    in every child. No child of ours needs it, and it fails for a script without a guard, a notebook or standard input.
    """
    before, main = os.environ.get("OPENBLAS_NUM_THREADS"), sys.modules["__main__"]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before
