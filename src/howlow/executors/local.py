"""Where work runs: each piece in a fresh process of this machine, with the heavy imports already done.

On Linux a *fork server* imports `howlow.trial.entries` (torch, transformers, peft) once and does nothing else: no torch
operation, no CUDA or NVML call, one thread. Every trial is forked from it, so that it starts in milliseconds and yet
shares no state with the trial before. Elsewhere processes are spawned.

A child holds one end of a pipe: its events and its result go up, "stop" comes down. When the sweep dies, however it
dies, the pipe breaks, and the child ends itself.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

from howlow.errors import UserError
from howlow.outcomes import Finished, StoppedError, is_disk_full

PRELOADED = "howlow.trial.entries"
_FOR_THE_SWEEP = (signal.SIGINT, signal.SIGTERM)
_CAN_HOLD_BACK = hasattr(signal, "pthread_sigmask")
_ENDS = ("result", "user_error", "disk_full", "crashed", "stopped")


class Link:
    """The child's end of the pipe."""

    def __init__(self, pipe: "connection.Connection[Any, Any]") -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._listen, name="howlow-lifeline", daemon=True).start()

    @property
    def stop_requested(self) -> bool:
        """Whether to come to an end at the next chance."""
        return self._stop.is_set()

    def request_stop(self, *_: object) -> None:
        """Ask this process to stop (also as a signal handler)."""
        self._stop.set()

    def report(self, kind: str, value: Any) -> None:
        """Send something up."""
        with self._lock:
            self._pipe.send((kind, value))

    def _listen(self) -> None:
        try:
            while True:
                self._pipe.recv()
                self._stop.set()
        except (EOFError, OSError):
            os._exit(1)  # the sweep is gone; the last checkpoint stands


def _child(entry: str, payload: dict[str, Any], pipe: "connection.Connection[Any, Any]", log: str) -> None:
    """The child's entry function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the sweep passes it on as "stop"
    link = Link(pipe)
    signal.signal(signal.SIGTERM, link.request_stop)
    if _CAN_HOLD_BACK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_SWEEP)
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module, _, name = entry.rpartition(".")
    try:
        result = getattr(importlib.import_module(module), name)(payload, link)
        link.report("result", result)
    except UserError as error:
        link.report("user_error", str(error))
    except StoppedError:
        link.report("stopped", None)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        text = " ".join(str(error).split()) or type(error).__name__
        link.report("disk_full" if is_disk_full(error) else "crashed", f"{type(error).__name__}: {text}"[:500])


class LocalExecutor:
    """Runs pieces of work one after the other, each in a process of its own."""

    def __init__(self) -> None:
        method = "forkserver" if sys.platform == "linux" else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([PRELOADED])

    def run(
        self,
        entry: str,
        payload: dict[str, Any],
        log: Path,
        on_event: Callable[[str, Any], None] | None = None,
        patience_s: float = 60.0,
    ) -> Finished:
        """Run `entry(payload, link)` in a child and wait for it; events go to `on_event`.

        On KeyboardInterrupt the child is asked to stop and given `patience_s` to keep its work; a second one kills it.
        What it told before its end is heard all the same.
        """
        ours, theirs = self._context.Pipe(duplex=True)
        arguments = (entry, payload, theirs, str(log))
        process = self._context.Process(target=_child, args=arguments, daemon=False)  # type: ignore[attr-defined]
        with _plain_start():
            if self._context.get_start_method() == "forkserver":
                with _held_back():
                    forkserver.ensure_running()
                process.start()  # waits for the server's imports, and may be interrupted in that time
            else:
                with _held_back():
                    process.start()
        theirs.close()
        hear = on_event or (lambda kind, value: None)
        try:
            return self._wait(process, ours, hear)
        except KeyboardInterrupt:
            self._stop(process, ours, patience_s)
            _hear_the_rest(ours, hear)
            raise
        except BaseException:
            self._stop(process, ours, patience_s)
            raise
        finally:
            ours.close()

    def _wait(
        self, process: Any, pipe: "connection.Connection[Any, Any]", on_event: Callable[[str, Any], None]
    ) -> Finished:
        last: tuple[str, Any] | None = None
        while True:
            ready = connection.wait([pipe, process.sentinel])
            if pipe in ready:
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    break
                if kind in _ENDS:
                    last = (kind, value)
                else:
                    on_event(kind, value)
            elif process.sentinel in ready:
                break
        process.join()
        if last is not None:
            return Finished(last[0], last[1])  # type: ignore[arg-type]
        code = process.exitcode or 0
        return Finished("died", f"exit code {code}", exit_signal=-code if code < 0 else None)

    def _stop(self, process: Any, pipe: "connection.Connection[Any, Any]", patience_s: float) -> None:
        try:
            pipe.send("stop")
            process.join(patience_s)
        except (KeyboardInterrupt, OSError):
            pass
        if process.is_alive():
            process.kill()
            process.join()


def _hear_the_rest(pipe: "connection.Connection[Any, Any]", on_event: Callable[[str, Any], None]) -> None:
    """What a child that has ended left in its pipe."""
    with suppress(EOFError, OSError):
        while pipe.poll():
            kind, value = pipe.recv()
            if kind not in _ENDS:
                on_event(kind, value)


@contextmanager
def _held_back() -> Iterator[None]:
    """What is started here never meets Ctrl-C or SIGTERM: both reach the whole group, and are the sweep's to handle.

    The mask is inherited; a child takes it off when it has its handlers. What comes meanwhile is delivered to us after.
    """
    if not _CAN_HOLD_BACK:
        yield
        return
    resource_tracker.ensure_running()  # it would be started now, and takes the mask off when it is
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_SWEEP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _plain_start() -> Iterator[None]:
    """What the fork server and the child are to inherit: one thread, and nothing of the program that calls us.

    OpenBLAS starts threads of its own when NumPy is imported, and threads do not survive a fork; the fork server keeps
    the environment it was started with, ours is put back. multiprocessing would run the caller's main module again in
    every child, which a script without a guard, a notebook or standard input cannot bear and no child of ours needs.
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
