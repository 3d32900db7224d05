"""Workers on this machine: threads of this process that share one fork server.

A worker is a function. Its events are handed over one at a time to the main thread, which alone shows them and alone
meets Ctrl-C and SIGTERM. The first signal, or the first error of a worker, asks all workers to stop; a second signal
kills their children.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from howlow.executors.fork_server import ForkServer
from howlow.jobs import SweepEvent, Tell
from howlow.meters.clock import now_s
from howlow.outcomes import StoppedError

_LOOK_EVERY_S = 1.0


@dataclass
class _Crew:
    """What the threads of one `run_workers` share."""

    processes: ForkServer
    events: "queue.SimpleQueue[tuple[SweepEvent, threading.Event] | None]" = field(default_factory=queue.SimpleQueue)
    """A simple queue, because a signal's exception may break the lock of any other that the main thread waits for."""
    problems: list[BaseException] = field(default_factory=list)
    look_at_s: float = 0.0

    def tell(self, event: SweepEvent) -> None:
        """Give an event to the main thread, and wait until it was shown."""
        shown = threading.Event()
        self.events.put((event, shown))
        while not shown.wait(1.0):
            if self.processes.is_stopping:
                return

    def work(self, worker: Callable[[Tell], None]) -> None:
        """One thread."""
        try:
            worker(self.tell)
        except StoppedError:
            pass
        except BaseException as problem:
            self.problems.append(problem)
            self.processes.stop()
        finally:
            self.events.put(None)

    def hear(self, tell: Tell, look: Callable[[], None]) -> None:
        """Show one event, and look around every now and then, however many events there are."""
        if now_s() >= self.look_at_s:
            look()
            self.look_at_s = now_s() + _LOOK_EVERY_S
        try:
            item = self.events.get(timeout=max(0.0, self.look_at_s - now_s()))
        except queue.Empty:
            return
        if item is not None:  # else a worker has ended
            event, shown = item
            try:
                tell(event)
            finally:
                shown.set()


def run_workers(
    processes: ForkServer, workers: Sequence[Callable[[Tell], None]], tell: Tell, look: Callable[[], None]
) -> None:
    """Run workers side by side until all have ended; `look` is called now and then between events.

    Raises:
        KeyboardInterrupt: after the workers' children have saved their work.
        Exception: the first error of a worker, after the others have stopped.
    """
    crew = _Crew(processes)
    threads = [
        threading.Thread(target=crew.work, args=(worker,), name=f"howlow-worker-{index}", daemon=True)
        for index, worker in enumerate(workers)
    ]
    for thread in threads:
        thread.start()
    interrupt: KeyboardInterrupt | None = None
    while any(thread.is_alive() for thread in threads):
        try:
            crew.hear(tell, look)
        except Exception as problem:
            crew.problems.append(problem)
            processes.stop()
        except KeyboardInterrupt as problem:
            (processes.kill if interrupt else processes.stop)()
            interrupt = interrupt or problem
    if interrupt is not None:
        raise interrupt
    if crew.problems:
        raise crew.problems[0]
